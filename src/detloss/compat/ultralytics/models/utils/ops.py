"""``ultralytics.models.utils.ops``: the matcher of its RT-DETR, on :class:`detloss.HungarianAssigner`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloss.assigners.hungarian import HungarianAssigner
from detloss.compat.patches.detr_layers import Truth, match_layers
from detloss.compat.patches.ultralytics_detr import rtdetr_targets

__all__ = ["HungarianMatcher"]

Matches = list[tuple[Tensor, Tensor]]


class HungarianMatcher(nn.Module):
    """Match every object with one query so that the sum of the costs is least.

    A query whose prediction is not finite never matches (there its costs are 0, the least there are, so that it is chosen
    first). A box turned inside out pays for it. The host gets one copy for all images.

    Args:
        cost_gain: weights of the costs ``class``, ``bbox`` and ``giou``; ``None``: 1, 5 and 2.
        use_fl: focal cost of a sigmoid; ``False``: −softmax.
        alpha: α of the focal cost.
        gamma: γ of the focal cost.
    """

    def __init__(
        self, cost_gain: Mapping[str, float] | None = None, use_fl: bool = True, alpha: float = 0.25, gamma: float = 2.0
    ) -> None:
        super().__init__()
        self.cost_gain = {"class": 1, "bbox": 5, "giou": 2} if cost_gain is None else cost_gain
        self.use_fl = use_fl
        self.alpha = alpha
        self.gamma = gamma

    def match(self, boxes: Tensor, scores: Tensor, truth: Truth) -> Tensor:
        """``[L, B, Q]`` object of every query of L layers; −1 for none."""
        gain = self.cost_gain
        assigner = HungarianAssigner(
            "focal" if self.use_fl else "softmax", gain["class"], gain["bbox"], gain["giou"], alpha=self.alpha, gamma=self.gamma
        )
        return match_layers(assigner, scores, boxes, truth)

    @torch.no_grad()
    def forward(
        self, pred_bboxes: Tensor, pred_scores: Tensor, gt_bboxes: Tensor, gt_cls: Tensor, gt_groups: Sequence[int]
    ) -> Matches:
        """Match the queries of B images.

        Args:
            pred_bboxes: ``[B, Q, 4]`` (cx, cy, w, h) in units of the image.
            pred_scores: ``[B, Q, C]`` logits.
            gt_bboxes: ``[N, 4]`` likewise, image by image.
            gt_cls: ``[N]``.
            gt_groups: number of objects of each image.

        Returns:
            Per image (queries, objects counted over the batch), on the CPU.
        """
        truth = truth_of({"bboxes": gt_bboxes, "cls": gt_cls, "gt_groups": gt_groups}, pred_bboxes)
        index = self.match(pred_bboxes.unsqueeze(0), pred_scores.unsqueeze(0), truth)[0].cpu()
        found, start = [], 0
        for own, count in zip(index, gt_groups, strict=True):
            query = (own >= 0).nonzero().squeeze(1)
            found.append((query, own[query] + start))
            start += count
        return found


def truth_of(batch: Mapping[str, Any], like: Tensor) -> Truth:
    """The objects of a batch of their loader, padded."""
    targets = [{"boxes": target["boxes"], "class_labels": target["labels"]} for target in rtdetr_targets(batch)]
    return Truth.of(targets, like)
