"""The criterion of ATSS: anchors chosen by the statistics of their overlaps, with centerness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.assigners.atss import ATSSAssigner
from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.targets import pad_targets
from detloss.checks import check_option, check_positive, upcast
from detloss.criteria.base import (
    AssignerConfig,
    Criterion,
    LossConfig,
    Matched,
    Term,
    assignment_metrics,
    check_classes,
)
from detloss.criteria.levels import (
    check_images,
    check_maps,
    check_points,
    check_strides,
    class_loss,
    map_sizes,
    matched_rows,
    rows,
)
from detloss.geometry.anchors import Anchors, grid_anchors
from detloss.geometry.boxes import box_to_distance, centerness, distance_to_box
from detloss.geometry.deltas import box_to_delta, delta_to_box
from detloss.geometry.iou import overlap
from detloss.geometry.points import Points
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Number, Target

__all__ = ["ATSSLoss", "square_anchors"]

CODINGS = ("delta", "distance")


def square_anchors(
    where: str,
    maps: Sequence[Tensor],
    strides: Sequence[Number],
    scale: float,
    offset: float,
    dtype: torch.dtype,
    points: Points | None = None,
) -> Anchors:
    """One square anchor of ``scale`` strides per cell, on the device of ``maps``; around ``points`` where they are given."""
    if points is None:
        sizes = [[scale * stride] for stride in strides]
        return grid_anchors(map_sizes(maps), strides, sizes, (1.0,), offset=offset, device=maps[0].device, dtype=dtype)
    check_points(where, points, maps)
    xy, half = points.xy.to(dtype), (points.stride.to(dtype) * (scale / 2))[:, None]
    return Anchors.of(torch.cat((xy - half, xy + half), dim=1), points.counts, points.strides)


@dataclass(frozen=True, kw_only=True)
class ATSSMatched(Matched):
    """``logits [B, P, C]``, ``codes [B, P, 4]`` as predicted, ``centers [B, P]``, ``quality [B, P]`` centerness targets,
    ``true_boxes [B, P, 4]`` corners (the anchor itself for negatives)."""

    logits: Tensor
    codes: Tensor
    centers: Tensor
    quality: Tensor
    true_boxes: Tensor


@CRITERIA.register_module(
    family="dense",
    formula="focal (all anchors) / n + 2 Σ centerness · GIoU / Σ centerness + centerness BCE / n, n positives over all ranks",
    paper="Zhang et al. 2020, arXiv:1912.02424",
)
class ATSSLoss(Criterion):
    """ATSS criterion: ``losses = criterion(cls_scores, bbox_preds, centernesses, targets)``.

    One square anchor per cell, assigned by :class:`detloss.ATSSAssigner`. ``loss_cls`` runs over all anchors,
    ``loss_box`` and ``loss_centerness`` over the positives; each box is weighed by its centerness target.

    Args:
        num_classes: number of classes C; labels are 0…C−1.
        strides: pixels per cell of every level. Fewer maps than strides may be given: the first ones count.
        anchor_scale: side of the anchors in strides.
        anchor_offset: place of their centres in the cell: 0 the corner (mmdet), 0.5 the middle.
        box_coding: ``bbox_preds`` are ``"delta"``s to the anchor, or ``"distance"``s (left, top, right, bottom) from its
            centre in strides.
        delta_weights: weights of the deltas, see :func:`detloss.geometry.box_to_delta`.
        loss_cls: object, configuration or name; FocalLoss. Quality losses get the IoU of the predicted box as score.
        loss_box: likewise; GIoULoss with weight 2. Losses of single coordinates get deltas or distances.
        loss_centerness: likewise; CenternessLoss.
        assigner: object, configuration or name; ATSSAssigner.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: factors by name of the term.
        memory_budget: bytes for the temporaries of the assignment.

    Preset: ``"mmdet"`` (visdet), which is the default.

    >>> criterion = ATSSLoss(num_classes=3, strides=(8,))
    >>> maps = [torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 4, 4, 4)], [torch.zeros(1, 1, 4, 4)]
    >>> losses = criterion(*maps, [{"boxes": torch.tensor([[4, 4, 20, 20]]), "labels": torch.tensor([2])}])
    >>> sorted(losses)
    ['loss_box', 'loss_centerness', 'loss_cls']
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all anchors that are not ignored", "positives on all ranks, at least 1"),
        Term("loss_box", "positives, weighed by centerness", "sum of the centerness targets on all ranks, at least 1"),
        Term("loss_centerness", "positives", "positives on all ranks, at least 1"),
    )
    COUNTS: ClassVar[int] = 2
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mmdet": {}}

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[Number] = (8, 16, 32, 64, 128),
        *,
        anchor_scale: float = 8.0,
        anchor_offset: float = 0.0,
        box_coding: Literal["delta", "distance"] = "delta",
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        loss_centerness: LossConfig | None = None,
        assigner: AssignerConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(weights, normalizer)
        check_option("ATSSLoss", "box_coding", box_coding, CODINGS)
        check_positive("ATSSLoss", anchor_scale=anchor_scale)
        self.num_classes = check_classes("ATSSLoss", num_classes)
        self.strides = check_strides("ATSSLoss", strides)
        self.anchor_scale = anchor_scale
        self.anchor_offset = anchor_offset
        self.box_coding = box_coding
        self.delta_weights = tuple(delta_weights)
        self.loss_cls = self.build_term("loss_cls", loss_cls, "FocalLoss")
        self.loss_box = self.build_term("loss_box", loss_box, {"type": "GIoULoss", "loss_weight": 2.0})
        self.loss_centerness = self.build_term("loss_centerness", loss_centerness, "CenternessLoss")
        self.assigner = self.build_assigner(assigner, ATSSAssigner(memory_budget=memory_budget))

    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        centernesses: Sequence[Tensor],
        targets: Sequence[Target],
        points: Points | None = None,
    ) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            cls_scores: per level logits ``[B, C, H, W]``.
            bbox_preds: per level ``[B, 4, H, W]``, coded as ``box_coding`` says.
            centernesses: per level logits ``[B, 1, H, W]``.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, optional ``iscrowd``, ``ignore_boxes``.
            points: the locations of all levels, in the place of those that ``strides`` and ``anchor_offset`` describe; the
                anchors lie around them.

        Returns:
            LossDict with ``loss_cls``, ``loss_box``, ``loss_centerness`` and the metrics ``num_pos``, ``num_gt``,
            ``num_gt_without_pos`` and ``mean_iou``.
        """
        return self.finish(self.match(cls_scores, bbox_preds, centernesses, targets, points))

    def match(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        centernesses: Sequence[Tensor],
        targets: Sequence[Target],
        points: Points | None = None,
    ) -> ATSSMatched:
        """Assign every anchor and count. Arguments as in the call."""
        maps = {"cls_scores": cls_scores, "bbox_preds": bbox_preds, "centernesses": centernesses}
        check_maps("ATSSLoss", maps, {"cls_scores": self.num_classes, "bbox_preds": 4, "centernesses": 1}, self.strides)
        logits, codes, centers = (upcast(rows(levels)) for levels in maps.values())
        strides = self.strides[: len(cls_scores)]
        anchors = square_anchors("ATSSLoss", cls_scores, strides, self.anchor_scale, self.anchor_offset, codes.dtype, points)
        truth = pad_targets(targets, codes, self.num_classes)
        check_images("ATSSLoss", truth, len(logits))
        boxes = self._corners(codes.detach(), anchors) if self.assigner.needs_predictions else None
        scores = None if boxes is None else logits.detach()
        assignment = self.assigner(anchors, truth, scores, boxes)
        positive = assignment.positive
        true = torch.where(positive.unsqueeze(-1), matched_rows(truth.boxes, assignment), anchors.boxes)
        quality = centerness(box_to_distance(anchors.xy.expand(*positive.shape, 2), true)) * positive
        return ATSSMatched(
            counts=torch.stack((positive.sum().to(codes.dtype), quality.sum())),
            minimum=(1.0, 1.0),
            truth=truth,
            assignment=assignment,
            priors=anchors,
            scores=scores,
            boxes=boxes,
            logits=logits,
            codes=codes,
            centers=centers.squeeze(-1),
            quality=quality,
            true_boxes=true,
        )

    def compute(self, matched: ATSSMatched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by (positives, sum of their centerness)."""
        num_pos, quality_sum = normalizers.unbind()
        truth, assignment = matched.truth, matched.assignment
        corners = self._corners(matched.codes, matched.priors)
        with torch.no_grad():
            iou = torch.where(assignment.positive, torch.nan_to_num(overlap(corners, matched.true_boxes).iou), 0.0)
        if getattr(self.loss_box, "box_space", "corners") == "distances":
            pred, true = matched.codes, self._codes(matched.true_boxes, matched.priors)
        else:
            pred, true = corners, matched.true_boxes
        terms = {
            "loss_cls": class_loss(self.loss_cls, matched.logits, truth, assignment, iou, num_pos),
            "loss_box": self.loss_box(
                pred.reshape(-1, 4), true.reshape(-1, 4), weight=matched.quality.reshape(-1), avg_factor=quality_sum
            ),
            "loss_centerness": self.loss_centerness(
                matched.centers.reshape(-1),
                matched.quality.reshape(-1),
                weight=assignment.positive.reshape(-1).to(matched.centers.dtype),
                avg_factor=num_pos,
            ),
        }
        return self.collect(terms, assignment_metrics(truth, assignment, iou))

    def _corners(self, codes: Tensor, anchors: Anchors) -> Tensor:
        """Predicted boxes ``[B, P, 4]`` in pixels."""
        if self.box_coding == "delta":
            return delta_to_box(anchors.boxes, codes, self.delta_weights)
        return distance_to_box(anchors.xy.expand(*codes.shape[:2], 2), codes * anchors.stride[:, None])

    def _codes(self, boxes: Tensor, anchors: Anchors) -> Tensor:
        """What a perfect prediction of ``boxes`` would be."""
        if self.box_coding == "delta":
            return box_to_delta(anchors.boxes, boxes, self.delta_weights)
        return box_to_distance(anchors.xy.expand(*boxes.shape[:2], 2), boxes) / anchors.stride[:, None]
