"""What assigners need of predictions: checked shapes, sums over classes within the budget, the column of an object's class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detloss.assigners.base import chunks
from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_float, shape_of, upcast
from detloss.geometry.iou import iou_of

__all__ = ["check_predictions", "finite_predictions", "fold_sum", "matched_iou", "over_classes", "own_class", "take"]


def check_predictions(where: str, scores: Tensor | None, boxes: Tensor | None, count: int | None = None) -> tuple[Tensor, Tensor]:
    """``scores [B, P, C]`` and ``boxes [B, P, 4]`` without gradient; ``TypeError``, ``ValueError`` unless P is ``count``."""
    if scores is None or boxes is None:
        raise TypeError(f"{where} looks at predictions: scores [B, P, C] (class logits) and boxes [B, P, 4] are required")
    check_float(where, "scores", scores)
    check_float(where, "boxes", boxes)
    count = scores.shape[1] if count is None and scores.ndim == 3 else count
    if scores.ndim != 3 or scores.shape[1] != count:
        raise ValueError(f"{where}: scores must have shape [B, P, C] with P = {count} priors; got {shape_of(scores)}")
    if boxes.shape != (scores.shape[0], count, 4):
        raise ValueError(f"{where}: boxes must have shape [{scores.shape[0]}, {count}, 4]; got {shape_of(boxes)}")
    return scores.detach(), boxes.detach()


def fold_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension, halves added to halves: the order of additions depends on nothing but its length."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        rest = x[..., 2 * half :]
        x = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat((x, rest), dim=-1) if rest.shape[-1] else x
    return x.sum(-1)


def take(values: Tensor, kept: Tensor | None) -> Tensor:
    """``[B, M]`` or ``[B, M, N]``: ``values`` of the priors ``kept [B, M]``; ``None`` keeps them all."""
    if kept is None:
        return values
    return values.gather(1, kept if values.ndim == 2 else kept.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def over_classes(
    scores: Tensor, reduce: Callable[[Tensor, slice], Tensor], memory_budget: int, kept: Tensor | None = None
) -> Tensor:
    """``[B, M]``: ``reduce(logits [B, m, C] of a chunk of the kept priors, the chunk)`` of every chunk, in at least fp32."""
    images, count, classes = scores.shape
    count = count if kept is None else kept.shape[1]
    bytes_each = images * classes * 8 * max(4, scores.element_size())
    parts = []
    for part in chunks(count, bytes_each, memory_budget):
        logits = scores[:, part] if kept is None else take(scores, kept[:, part])
        parts.append(reduce(upcast(logits), part))
    return torch.cat(parts, dim=1) if parts else scores.new_zeros(images, 0)


def finite_predictions(scores: Tensor, boxes: Tensor, memory_budget: int, kept: Tensor | None = None) -> Tensor:
    """``[B, M]`` bool: every class logit and every coordinate of the prediction is finite. ``boxes`` are those kept."""
    finite = over_classes(scores, lambda logits, _: (logits * 0).sum(-1) == 0, memory_budget, kept).bool()
    return finite & ((boxes * 0).sum(-1) == 0)


def own_class(scores: Tensor, labels: Tensor, kept: Tensor | None = None) -> Tensor:
    """``[B, G, M]``: of every kept prior's logits ``[B, P, C]`` the one of every object's class ``[B, G]``."""
    if kept is None:
        return upcast(scores.transpose(1, 2).gather(1, labels.unsqueeze(-1).expand(-1, -1, scores.shape[1])))
    image = torch.arange(len(scores), device=scores.device)[:, None, None]
    return upcast(scores[image, kept.unsqueeze(1), labels.unsqueeze(-1)])


def matched_iou(boxes: Tensor, targets: PaddedTargets, gt_index: Tensor, memory_budget: int) -> Tensor:
    """``[B, P]``: IoU of every positive's box ``[B, P, 4]`` with its object; 0 for the others."""
    images, count = gt_index.shape
    if not targets.boxes.shape[1]:
        return upcast(boxes).new_zeros(images, count)
    parts = [upcast(boxes).new_zeros(images, 0)]
    for part in chunks(count, images * 32 * max(4, boxes.element_size()), memory_budget):
        index = gt_index[:, part]
        own = targets.boxes.gather(1, index.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4))
        parts.append(torch.where(index >= 0, iou_of(boxes[:, part], own), 0.0))
    return torch.cat(parts, dim=1)
