"""``transformers.loss.loss_for_object_detection``: the matcher and criterion of DETR, YOLOS, Table Transformer and their like.

What differs: all layers are matched in one call; pairs of boxes are compared one by one; boxes turned inside out, without area
or not finite never end the run (a ``ValueError``, or NaN, there); the number of objects is that of all ranks wherever
``torch.distributed`` runs (there with accelerate only) and the host does not wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.hungarian import HungarianAssigner
from detloss.compat.transformers.loss.pairs import (
    Layer,
    Pairs,
    SetLoss,
    SetMatcher,
    Targets,
    check_costs,
    dice_loss,
    logits_of,
    number_of_objects,
    sigmoid_focal_loss,
)
from detloss.functional.classification import cross_entropy_loss
from detloss.functional.iou_costs import giou_cost
from detloss.geometry.iou import overlap
from detloss.types import Number

__all__ = [
    "ForObjectDetectionLoss",
    "ForSegmentationLoss",
    "HungarianMatcher",
    "ImageLoss",
    "box_iou",
    "dice_loss",
    "generalized_box_iou",
    "sigmoid_focal_loss",
]

Losses = tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]


def box_iou(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union ``[N, M]`` of all pairs of corners; the IoU of two equal boxes without area is 1 (NaN there).

    >>> box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]))
    (tensor([[0.3333]]), tensor([[6.]]))
    """
    pair = overlap(boxes1.unsqueeze(1), boxes2.unsqueeze(0))
    areas = [torch.stack(size).clamp(min=0).prod(0) for size in (pair.pred_size, pair.target_size)]
    return pair.iou, (areas[0] + areas[1]) / (1 + pair.iou)


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """GIoU ``[N, M]`` of all pairs of corners, less the depth by which a first box is inverted, as in ``giou_loss``.

    >>> generalized_box_iou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 2.0, 2.0]]))
    tensor([[-0.5000]])
    """
    pair = overlap(boxes1.unsqueeze(1), boxes2.unsqueeze(0))
    return 1 - giou_cost(pair) - pair.inverted


class HungarianMatcher(SetMatcher):
    """Match with the costs −softmax(x)_y, \\|b − b*\\| and −GIoU; see :class:`SetMatcher`.

    Args:
        class_cost: weight of the class.
        bbox_cost: weight of the distance.
        giou_cost: weight of the overlap.
    """

    CLASS_COST = "softmax"

    def __init__(self, class_cost: float = 1, bbox_cost: float = 1, giou_cost: float = 1) -> None:
        super().__init__()
        check_costs(self, (class_cost, bbox_cost, giou_cost))
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost

    def assigner(self) -> HungarianAssigner:
        """The assigner with these costs."""
        return HungarianAssigner(self.CLASS_COST, self.class_cost, self.bbox_cost, self.giou_cost)  # type: ignore[arg-type]


class ImageLoss(SetLoss):
    """The criterion of DETR: cross entropy of all queries, L1 distance and GIoU of the matched ones, per decoder layer.

    Equal to :class:`detloss.DETRLoss`, in their form: terms before their weights, objects as ``class_labels``.

    Args:
        matcher: gives the pairs of a layer.
        num_classes: number of classes C; "no object" is column C.
        eos_coef: weight of the queries without an object.
        losses: of ``labels``, ``cardinality``, ``boxes`` and ``masks``.
    """

    METHODS: Mapping[str, str] = {"labels": "loss_labels", **SetLoss.METHODS}

    def __init__(self, matcher: Any, num_classes: int, eos_coef: float, losses: list[str]) -> None:
        super().__init__()
        self.matcher = matcher
        self.num_classes = num_classes
        self.eos_coef = eos_coef
        self.losses = losses
        self.register_buffer("empty_weight", torch.tensor([1.0] * num_classes + [eos_coef]))

    def loss_labels(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_ce``: cross entropy over the sum of the weights of all queries."""
        logits = logits_of(outputs)
        labels = self.target_classes(targets, indices, logits).flatten()
        return {"loss_ce": weighted_cross_entropy(logits.flatten(0, 1), labels, self.get_buffer("empty_weight"))}

    @torch.no_grad()
    def loss_cardinality(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor
    ) -> dict[str, Tensor]:  # fmt: skip
        """``cardinality_error``: how many queries too many or too few have a class, for people to look at."""
        logits = logits_of(outputs)
        return self.cardinality_error((logits.argmax(-1) != logits.shape[-1] - 1).sum(1), targets)

    def forward(self, outputs: Layer, targets: Targets) -> dict[str, Tensor]:
        """Compute the terms, those of ``outputs["auxiliary_outputs"]`` with ``_0``, ``_1`` … behind."""
        layers: list[Layer] = [outputs, *(outputs.get("auxiliary_outputs") or ())]
        indices = self.match(layers, targets)
        count = number_of_objects(targets, logits_of(outputs))
        losses: dict[str, Tensor] = {}
        for k, (layer, own) in enumerate(zip(layers, indices, strict=True)):
            losses |= self.all_losses(layer, targets, own, count, f"_{k - 1}" if k else "")
        return losses


def weighted_cross_entropy(logits: Tensor, labels: Tensor, class_weight: Tensor) -> Tensor:
    """Σ w l / Σ w of ``logits [N, C]``, w the weight of the label; 0 for no rows (NaN there)."""
    return cross_entropy_loss(logits, labels, class_weight=class_weight, avg_factor=class_weight[labels].sum())


def _set_aux_loss(outputs_class: Sequence[Tensor], outputs_coord: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """All layers but the last as mappings."""
    pairs = zip(outputs_class[:-1], outputs_coord[:-1], strict=True)
    return [{"logits": logits, "pred_boxes": boxes} for logits, boxes in pairs]


def total_of(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight · term; terms of auxiliary layers weigh as those of the last, and what has no weight does not count."""
    terms = [(re.sub(r"_\d+$", "", name), term) for name, term in losses.items()]
    return torch.stack([term * weights[name] for name, term in terms if name in weights]).sum()


def detection_loss(
    criterion: SetLoss, outputs: dict[str, Any], labels: Targets, device: Any, config: Any, layers: tuple[Any, Any], **more: float
) -> Losses:
    """Total, terms and auxiliary outputs of a criterion whose weights are those of ``config``, and ``more``.

    Args:
        criterion: computes the terms before their weights.
        outputs: of the last layer.
        labels: targets.
        device: of the criterion.
        config: has ``auxiliary_loss``, ``bbox_loss_coefficient`` and ``giou_loss_coefficient``.
        layers: logits and boxes of all layers, ``None`` without auxiliary losses.
        more: further weights by name of the term.
    """
    auxiliary = _set_aux_loss(*layers) if config.auxiliary_loss else None
    if auxiliary is not None:
        outputs["auxiliary_outputs"] = auxiliary
    losses = criterion.to(device)(outputs, labels)
    weights = {"loss_ce": 1.0, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient, **more}
    return total_of(losses, weights), losses, auxiliary


def _image_loss(config: Any, losses: list[str]) -> ImageLoss:
    matcher = HungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    return ImageLoss(matcher, config.num_labels, config.eos_coefficient, losses)


def ForSegmentationLoss(
    logits: Tensor,
    labels: Targets,
    device: Any,
    pred_boxes: Tensor,
    pred_masks: Tensor,
    config: Any,
    outputs_class: Tensor | None = None,
    outputs_coord: Tensor | None = None,
    **kwargs: Any,
) -> Losses:
    """As :func:`ForObjectDetectionLoss`, with the focal and Dice losses of the masks of the last layer.

    Args:
        pred_masks: ``[B, Q, h, w]`` logits; ``labels`` have ``masks [G, H, W]``.
        config: also ``mask_loss_coefficient`` and ``dice_loss_coefficient``.
    """
    outputs = {"logits": logits, "pred_boxes": pred_boxes, "pred_masks": pred_masks}
    more = {"loss_mask": config.mask_loss_coefficient, "loss_dice": config.dice_loss_coefficient}
    criterion = _image_loss(config, ["labels", "boxes", "cardinality", "masks"])
    return detection_loss(criterion, outputs, labels, device, config, (outputs_class, outputs_coord), **more)


def ForObjectDetectionLoss(
    logits: Tensor,
    labels: Targets,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Tensor | None = None,
    outputs_coord: Tensor | None = None,
    **kwargs: Any,
) -> Losses:
    """The loss of DETR, as its model calls it.

    Args:
        logits: ``[B, Q, C + 1]`` of the last layer.
        labels: per image ``class_labels`` and ``boxes``, (cx, cy, w, h) in units of the image.
        device: of the criterion.
        pred_boxes: ``[B, Q, 4]``.
        config: has ``num_labels``, ``class_cost``, ``bbox_cost``, ``giou_cost``, ``eos_coefficient``, ``bbox_loss_coefficient``,
            ``giou_loss_coefficient`` and ``auxiliary_loss``.
        outputs_class: ``[L, B, Q, C + 1]`` of all layers, for auxiliary losses.
        outputs_coord: ``[L, B, Q, 4]`` likewise.
        kwargs: without effect.

    Returns:
        The total, the terms before their weights, and the outputs of the auxiliary layers (or ``None``).
    """
    outputs = {"logits": logits, "pred_boxes": pred_boxes}
    criterion = _image_loss(config, ["labels", "boxes", "cardinality"])
    return detection_loss(criterion, outputs, labels, device, config, (outputs_class, outputs_coord))
