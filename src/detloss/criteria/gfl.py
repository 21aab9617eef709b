"""The criterion of GFL: classification that learns the quality of the box, and distances learnt as distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from detloss.assigners.atss import ATSSAssigner
from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.targets import pad_targets
from detloss.checks import check_non_negative, check_positive, upcast
from detloss.criteria.atss import square_anchors
from detloss.criteria.base import (
    AssignerConfig,
    Criterion,
    LossConfig,
    Matched,
    Term,
    assignment_metrics,
    check_classes,
)
from detloss.criteria.distances import distribution_term, expected_distance
from detloss.criteria.levels import check_images, check_maps, check_strides, class_loss, matched_rows, rows
from detloss.criteria.positives import Positives, select_positives
from detloss.geometry.boxes import box_to_distance, distance_to_box
from detloss.geometry.iou import overlap
from detloss.geometry.points import Points
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Number, Target

__all__ = ["GFLLoss"]


@dataclass(frozen=True, kw_only=True)
class GFLMatched(Matched):
    """``logits [B, P, C]``; of the positives' slots ``[B, K]``: bins, predicted and true distances in strides, weight."""

    logits: Tensor
    slots: Positives
    bins: Tensor
    distances: Tensor
    true_distances: Tensor
    weight: Tensor


@CRITERIA.register_module(
    family="dense",
    formula="QFL (all locations) / n + 2 Σ w · GIoU / Σ w + 0.25 Σ w · DFL / Σ w, w the highest class score of a positive",
    paper="Li et al. 2020, arXiv:2006.04388",
)
class GFLLoss(Criterion):
    """GFL criterion: ``losses = criterion(cls_scores, bbox_preds, targets)``.

    Distances to the sides are distributions over the bins 0…R strides. Square anchors around the locations are assigned by
    :class:`detloss.ATSSAssigner`. ``loss_cls`` learns the IoU of the predicted box as the score of its class;
    ``loss_box`` and ``loss_dfl`` run over the positives, weighed by w = max_c σ(x_c), which has no gradient.

    Args:
        num_classes: number of classes C; labels are 0…C−1.
        strides: pixels per cell of every level. Fewer maps than strides may be given: the first ones count.
        reg_max: R, the largest distance in strides; a side has R + 1 bins.
        anchor_scale: side of the anchors in strides.
        anchor_offset: place of the locations in the cell: 0 the corner (mmdet), 0.5 the middle.
        dfl_margin: true distances are clamped to [0, R − margin].
        loss_cls: object, configuration or name; QualityFocalLoss.
        loss_box: likewise; GIoULoss with weight 2. Losses of single coordinates get distances in strides.
        loss_dfl: likewise; DistributionFocalLoss with weight 0.25.
        assigner: object, configuration or name; ATSSAssigner.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: factors by name of the term.
        memory_budget: bytes for the temporaries of the assignment.

    Preset: ``"mmdet"`` (visdet), which is the default.

    >>> criterion = GFLLoss(num_classes=3, strides=(8,), reg_max=4)
    >>> maps = [torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 4 * 5, 4, 4)]
    >>> losses = criterion(*maps, [{"boxes": torch.tensor([[4, 4, 20, 20]]), "labels": torch.tensor([2])}])
    >>> sorted(losses)
    ['loss_box', 'loss_cls', 'loss_dfl']
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all locations that are not ignored", "positives on all ranks, at least 1"),
        Term("loss_box", "positives, weighed by their highest class score", "sum of these scores on all ranks, at least 1"),
        Term("loss_dfl", "the four sides of positives, likewise", "4 × the sum of these scores on all ranks, at least 1"),
    )
    COUNTS: ClassVar[int] = 2
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mmdet": {}}

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[Number] = (8, 16, 32, 64, 128),
        *,
        reg_max: int = 16,
        anchor_scale: float = 8.0,
        anchor_offset: float = 0.0,
        dfl_margin: float = 0.1,
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        loss_dfl: LossConfig | None = None,
        assigner: AssignerConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(weights, normalizer)
        if isinstance(reg_max, bool) or not isinstance(reg_max, int) or reg_max < 1:
            raise ValueError(f"GFLLoss: reg_max must be an integer >= 1; got {reg_max!r}")
        check_positive("GFLLoss", anchor_scale=anchor_scale)
        check_non_negative("GFLLoss", dfl_margin=dfl_margin)
        self.num_classes = check_classes("GFLLoss", num_classes)
        self.strides = check_strides("GFLLoss", strides)
        self.reg_max = reg_max
        self.anchor_scale = anchor_scale
        self.anchor_offset = anchor_offset
        self.dfl_margin = dfl_margin
        self.loss_cls = self.build_term("loss_cls", loss_cls, "QualityFocalLoss")
        self.loss_box = self.build_term("loss_box", loss_box, {"type": "GIoULoss", "loss_weight": 2.0})
        self.loss_dfl = self.build_term("loss_dfl", loss_dfl, {"type": "DistributionFocalLoss", "loss_weight": 0.25})
        self.assigner = self.build_assigner(assigner, ATSSAssigner(memory_budget=memory_budget))

    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Sequence[Target],
        points: Points | None = None,
    ) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            cls_scores: per level logits ``[B, C, H, W]``.
            bbox_preds: per level logits ``[B, 4·(R + 1), H, W]``: the bins of the left side, then top, right, bottom.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, optional ``iscrowd``, ``ignore_boxes``.
            points: the locations of all levels, in the place of those that ``strides`` and ``anchor_offset`` describe.

        Returns:
            LossDict with ``loss_cls``, ``loss_box``, ``loss_dfl`` and the metrics ``num_pos``, ``num_gt``,
            ``num_gt_without_pos`` and ``mean_iou``.
        """
        return self.finish(self.match(cls_scores, bbox_preds, targets, points))

    def match(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Sequence[Target],
        points: Points | None = None,
    ) -> GFLMatched:
        """Assign every location and count. Arguments as in the call."""
        maps = {"cls_scores": cls_scores, "bbox_preds": bbox_preds}
        channels = {"cls_scores": self.num_classes, "bbox_preds": 4 * (self.reg_max + 1)}
        check_maps("GFLLoss", maps, channels, self.strides)
        logits, bins = (upcast(rows(levels)) for levels in maps.values())
        strides = self.strides[: len(cls_scores)]
        anchors = square_anchors("GFLLoss", cls_scores, strides, self.anchor_scale, self.anchor_offset, bins.dtype, points)
        truth = pad_targets(targets, bins, self.num_classes)
        check_images("GFLLoss", truth, len(logits))
        xy, stride = anchors.xy.expand(*bins.shape[:2], 2), anchors.stride[:, None].expand(*bins.shape[:2], 1)
        scores = boxes = None
        if self.assigner.needs_predictions:
            scores = logits.detach()
            boxes = distance_to_box(xy, expected_distance(bins.detach()) * stride)
        assignment = self.assigner(anchors, truth, scores, boxes)
        slots = select_positives(assignment, self._most(truth.boxes.shape[1], len(strides)))
        best = torch.nan_to_num(logits.detach().amax(-1).sigmoid())
        weight = slots.take(best)
        true = box_to_distance(slots.take(xy), slots.take(matched_rows(truth.boxes, assignment)))
        own_bins, own_stride = slots.take(bins), torch.where(slots.filled.unsqueeze(-1), slots.take(stride), 1.0)
        return GFLMatched(
            counts=torch.stack((assignment.num_pos.to(bins.dtype), weight.sum())),
            minimum=(1.0, 1.0),
            truth=truth,
            assignment=assignment,
            priors=anchors,
            scores=scores,
            boxes=boxes,
            logits=logits,
            slots=slots,
            bins=own_bins,
            distances=expected_distance(own_bins),
            true_distances=true / own_stride,
            weight=weight,
        )

    def compute(self, matched: GFLMatched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by (positives, sum of their scores)."""
        num_pos, weight_sum = normalizers.unbind()
        truth, assignment, slots = matched.truth, matched.assignment, matched.slots
        pred, true = (torch.cat((-d[..., :2], d[..., 2:]), dim=-1) for d in (matched.distances, matched.true_distances))
        with torch.no_grad():
            iou = slots.scatter(torch.nan_to_num(overlap(pred, true).iou), assignment.gt_index.shape[1])
        if getattr(self.loss_box, "box_space", "corners") == "distances":
            pred, true = matched.distances, matched.true_distances
        weight = matched.weight.reshape(-1)
        terms = {
            "loss_cls": class_loss(self.loss_cls, matched.logits, truth, assignment, iou, num_pos),
            "loss_box": self.loss_box(pred.reshape(-1, 4), true.reshape(-1, 4), weight=weight, avg_factor=weight_sum),
            "loss_dfl": distribution_term(
                self.loss_dfl,
                matched.bins.flatten(0, 1),
                matched.true_distances.reshape(-1, 4),
                weight,
                weight_sum,
                self.dfl_margin,
            ),
        }
        return self.collect(terms, assignment_metrics(truth, assignment, iou))

    def _most(self, objects: int, levels: int) -> int | None:
        """The most positives an image can have: candidates per level of every object."""
        return objects * levels * self.assigner.topk if isinstance(self.assigner, ATSSAssigner) else None
