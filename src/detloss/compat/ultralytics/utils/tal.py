"""``ultralytics.utils.tal``: its task-aligned assigner, on :class:`detloss.TaskAlignedAssigner`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloss.checks import check_at_least
from detloss.compat.patches.ultralytics_yolo import task_aligned_targets
from detloss.functional.iou_costs import ciou_cost
from detloss.geometry.iou import overlap

__all__ = ["TaskAlignedAssigner"]

IOU_EPS = 1e-6
Targets = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class TaskAlignedAssigner(nn.Module):
    """Every object takes the ``topk`` locations inside its box that score its class and overlap it best.

    What differs: only pairs of an object and a location inside it are looked at, all images at once and within a budget of
    memory (there a table of all pairs, image by image once the memory of the device is out). Fewer locations than ``topk`` are
    fine (an error there), and a location whose prediction is not finite, or does not overlap the object, is never chosen.
    Without objects the labels are integers too (floats there).

    Args:
        topk: locations that an object may choose.
        num_classes: number of classes.
        alpha: exponent of the score.
        beta: exponent of the overlap.
        stride: pixels per cell of every level; shorter sides of a box count as long as the second (the only) one.
        eps: added to the largest metric.
        topk2: locations that an object keeps of those it got; ``None``: all of them.
    """

    def __init__(
        self,
        topk: int = 13,
        num_classes: int = 80,
        alpha: float = 1.0,
        beta: float = 6.0,
        stride: Sequence[float] | None = None,
        eps: float = 1e-9,
        topk2: int | None = None,
    ) -> None:
        super().__init__()
        self.topk = topk
        self.topk2 = topk2 or topk
        check_at_least("TaskAlignedAssigner", 1, topk=topk, topk2=self.topk2)
        self.num_classes = num_classes
        self.alpha = alpha
        self.beta = beta
        self.stride = [8, 16, 32] if stride is None else stride
        self.stride_val = self.stride[1] if len(self.stride) > 1 else self.stride[0]
        self.eps = eps

    def forward(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        **extra: Tensor,
    ) -> Targets:
        """Assign the P locations of B images.

        Args:
            pd_scores: ``[B, P, C]`` probabilities.
            pd_bboxes: ``[B, P, 4]`` predicted corners in pixels.
            anc_points: ``[P, 2]`` locations in pixels.
            gt_labels: ``[B, G, 1]`` classes.
            gt_bboxes: ``[B, G, 4]`` corners in pixels.
            mask_gt: ``[B, G, 1]`` whether there is such an object.
            extra: must be empty; assigners of other tasks take more there.

        Returns:
            ``[B, P]`` labels (those of the negatives mean nothing), ``[B, P, 4]`` boxes, ``[B, P, C]`` target scores, ``[B, P]``
            whether positive and ``[B, P]`` index of the object.
        """
        found: Targets = _targets(self, pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt, **extra)
        return found


@torch.no_grad()
def _otherwise(self: TaskAlignedAssigner, scores: Tensor, boxes: Tensor, *rest: Tensor, **extra: Any) -> Targets:
    """What a batch without objects, and an assigner with a second top-k, get."""
    if extra:
        raise TypeError(f"TaskAlignedAssigner: unexpected arguments {sorted(extra)}")
    objects = rest[2]
    if not objects.shape[1]:
        nothing = torch.zeros(scores.shape[:2], dtype=torch.long, device=scores.device)
        return nothing + self.num_classes, torch.zeros_like(boxes), torch.zeros_like(scores), nothing.bool(), nothing
    whole = TaskAlignedAssigner(self.topk, self.num_classes, self.alpha, self.beta, self.stride, self.eps)
    return _best_of(self.topk2, boxes, objects.shape[1], whole(scores, boxes, *rest))


_targets = task_aligned_targets(_otherwise)


def _best_of(count: int, boxes: Tensor, objects: int, found: Targets) -> Targets:
    """Each object keeps the ``count`` locations of the highest metric; its scores then reach up to the best overlap of those."""
    labels, own, scores, positive, index = found
    quality = scores.amax(-1)
    kept = positive & (_rank(index, quality, positive, objects) < count)
    iou = torch.where(positive, (1 - ciou_cost(overlap(boxes, own), IOU_EPS)).clamp(min=0).nan_to_num(), 0.0)
    before, after = (_largest(torch.where(some, iou, 0.0), index, objects) for some in (positive, kept))
    factor = torch.where(before > 0, after / before.clamp(min=torch.finfo(iou.dtype).tiny), 0.0)
    factor = torch.where(kept, factor.gather(1, index), 0.0).to(scores.dtype)
    return labels, own, scores * factor.unsqueeze(-1), kept, torch.where(kept, index, 0)


def _rank(index: Tensor, quality: Tensor, positive: Tensor, objects: int) -> Tensor:
    """``[B, P]`` place of every location among those of its object, the highest quality first; negatives come last."""
    by_quality = quality.argsort(dim=1, descending=True, stable=True)
    group = torch.where(positive, index, objects).gather(1, by_quality)
    by_group = group.argsort(dim=1, stable=True)
    sorted_group = group.gather(1, by_group)
    order = torch.arange(index.shape[1], device=index.device).expand_as(index)
    start = torch.searchsorted(sorted_group.contiguous(), sorted_group.contiguous())
    place = torch.empty_like(index)
    return place.scatter_(1, by_quality.gather(1, by_group), order - start)


def _largest(values: Tensor, index: Tensor, objects: int) -> Tensor:
    """``[B, G]`` largest of the values of the locations of each object; 0 for none."""
    return values.new_zeros(len(values), objects).scatter_reduce(1, index, values, "amax")
