"""The corner losses of D-FINE and DEIMv2: distributions over uneven bins of box sides, and their self-distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss.checks import upcast
from detloss.compat.patches.detr_layers import Truth, matched_iou
from detloss.compat.patches.transformers_matching import alike
from detloss.compat.transformers.loss.loss_d_fine import bbox2distance
from detloss.functional.distillation import kl_distillation_loss
from detloss.functional.distribution import distribution_focal_loss

__all__ = ["corner_terms", "corners_covered"]

Layers = Sequence[Mapping[str, Tensor]]
TEMPERATURE = 5.0
KEYS = ("pred_corners", "ref_points", "teacher_corners", "teacher_logits")


def corners_covered(criterion: Any, layers: Layers) -> bool:
    """Whether the corners of all layers that have some are of one shape, over an even number of bins."""
    own = [layer for layer in layers if KEYS[0] in layer]
    bins = criterion.max_num_bins
    shapes_fit = all(layer[KEYS[0]].shape[-1] == 4 * (bins + 1) == layer["teacher_corners"].shape[-1] for layer in own)
    return bins % 2 == 0 and bins > 2 and alike(own, KEYS) and shapes_fit


def corner_terms(
    criterion: Any, layers: Layers, boxes: Tensor, index: Tensor, number: float, truth: Truth
) -> dict[str, list[Tensor | None]]:
    """``loss_fgl`` and ``loss_ddf`` of the layers that have corners, ``None`` for the others.

    FGL is the distribution focal loss of the four sides of a matched query, weighted by its IoU. DDF is
    T² KL(teacher ‖ student) of all queries, with T = 5 and the last layer as teacher, weighted by the IoU of the matched
    ones and the teacher's confidence of the others.

    Args:
        criterion: theirs, with ``max_num_bins``, ``reg_scale`` and ``up``.
        layers: L of them; corners are ``[B, Q, 4 (R + 1)]``.
        boxes: ``[L, B, Q, 4]`` without gradient.
        index: ``[L, B, Q]`` object of every query; −1 for none.
        number: divides FGL.
        truth: the objects.
    """
    own = [k for k, layer in enumerate(layers) if KEYS[0] in layer]
    found: dict[str, list[Tensor | None]] = {name: [None] * len(layers) for name in ("loss_fgl", "loss_ddf")}
    if not own:
        return found
    index, iou = index[own], matched_iou(boxes[own], index[own], truth)
    teacher = _Teacher.of(layers[own[0]])
    for k, match, quality in zip(own, index, iou, strict=True):
        corners = upcast(layers[k]["pred_corners"]).unflatten(-1, (4, -1))
        found["loss_fgl"][k] = _localization(criterion, corners, layers[k]["ref_points"].detach(), match, quality, truth) / number
        found["loss_ddf"][k] = teacher.distil(corners, match >= 0, quality)
    return found


def _localization(criterion: Any, corners: Tensor, points: Tensor, match: Tensor, quality: Tensor, truth: Truth) -> Tensor:
    """Σ over the sides of the matched queries of IoU · distribution focal loss."""
    image, query = (match >= 0).nonzero(as_tuple=True)
    with torch.no_grad():
        true = truth.padded.boxes[image, match[image, query]]
        reference, up = points[image, query].to(true.dtype), criterion.up.detach().to(true)
        place, share, _ = bbox2distance(reference, true, criterion.max_num_bins, criterion.reg_scale, up)
        bins = (place.floor() + share).unflatten(0, (-1, 4))
    weight = quality[image, query, None].expand(-1, 4)
    return distribution_focal_loss(corners[image, query], bins, weight=weight, reduction="sum")


class _Teacher:
    """The last decoder layer: corners ``[B, Q, 4, R + 1]`` and confidences ``[B, Q]``."""

    def __init__(self, corners: Tensor, logits: Tensor) -> None:
        self.corners = upcast(corners).unflatten(-1, (4, -1))
        self.confidence = upcast(logits).amax(-1).sigmoid()

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Mapping[str, Tensor]) -> _Teacher:
        return cls(layer["teacher_corners"].detach(), layer["teacher_logits"].detach())

    def distil(self, corners: Tensor, matched: Tensor, quality: Tensor) -> Tensor:
        """DDF of a layer: means of matched and of other queries, weighed by the roots of their numbers."""
        with torch.no_grad():
            weight = torch.where(matched, quality, self.confidence)
            found, other = (count.to(weight.dtype) for count in (matched.sum(), (~matched).sum()))
            # (mean of the 4 sides of n queries) · √n = sum / (4 √n)
            share = torch.where(matched, 1 / found.clamp(min=1).sqrt(), 1 / other.clamp(min=1).sqrt())
            factor = weight * share / (4 * (found.sqrt() + other.sqrt()))
        student, teacher = (x.flatten(0, 2) for x in (corners, self.corners))
        weight = factor.flatten().repeat_interleave(4)
        return kl_distillation_loss(student, teacher, temperature=TEMPERATURE, weight=weight, reduction="sum")
