"""``transformers.loss.loss_deformable_detr``: the matcher and criterion of Deformable and Conditional DETR.

What differs: as in :mod:`detloss.compat.transformers.loss.loss_for_object_detection`; no targets of all queries and classes are
built; the cost is computed from logits, so that a certain prediction keeps its digits (1e-8 is added to probabilities there).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detloss.compat.transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss, Losses, detection_loss
from detloss.compat.transformers.loss.pairs import Layer, Pairs, SetLoss, Targets, logits_of
from detloss.functional.focal import sigmoid_focal_loss
from detloss.types import Number

__all__ = ["DeformableDetrForObjectDetectionLoss", "DeformableDetrHungarianMatcher", "DeformableDetrImageLoss"]


class DeformableDetrHungarianMatcher(HungarianMatcher):
    """:class:`HungarianMatcher` with the focal cost of a sigmoid, α = 0.25 and γ = 2."""

    CLASS_COST = "focal"


class DeformableDetrImageLoss(ImageLoss):
    """The criterion of Deformable DETR: :class:`ImageLoss` with a focal loss of the classes, without a column for "no object".

    Args:
        matcher: gives the pairs of a layer.
        num_classes: number of classes C.
        focal_alpha: weight of the positives in the focal loss.
        losses: of ``labels``, ``cardinality``, ``boxes`` and ``masks``.
    """

    def __init__(self, matcher: Any, num_classes: int, focal_alpha: float, losses: list[str]) -> None:
        SetLoss.__init__(self)
        self.matcher = matcher
        self.num_classes = num_classes
        self.focal_alpha = focal_alpha
        self.losses = losses

    def loss_labels(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_ce``: focal loss of all queries and classes over num_boxes."""
        logits = logits_of(outputs)
        labels = self.target_classes(targets, indices, logits).flatten()
        return {"loss_ce": sigmoid_focal_loss(logits.flatten(0, 1), labels, alpha=self.focal_alpha, avg_factor=num_boxes)}

    @torch.no_grad()
    def loss_cardinality(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor
    ) -> dict[str, Tensor]:  # fmt: skip
        """``cardinality_error``: how many queries too many or too few have a class above one half."""
        return self.cardinality_error((logits_of(outputs).amax(-1) > 0).sum(1), targets)


def DeformableDetrForObjectDetectionLoss(
    logits: Tensor,
    labels: Targets,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Tensor | None = None,
    outputs_coord: Tensor | None = None,
    **kwargs: Any,
) -> Losses:
    """The loss of Deformable DETR, as its model calls it.

    Arguments and result as in :func:`detloss.compat.transformers.loss.loss_for_object_detection.ForObjectDetectionLoss`; logits
    are ``[B, Q, C]``, and ``config`` has ``focal_alpha`` in the place of ``eos_coefficient``.
    """
    matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes", "cardinality"])
    outputs = {"logits": logits, "pred_boxes": pred_boxes}
    return detection_loss(criterion, outputs, labels, device, config, (outputs_class, outputs_coord))
