"""The criterion of FCOS: fully convolutional one-stage detection from points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.fcos import FCOSAssigner, RangeBounds, RegressRanges, default_regress_ranges
from detloss.assigners.targets import pad_targets
from detloss.checks import check_option, upcast
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
from detloss.geometry.boxes import box_to_distance, centerness, distance_to_box
from detloss.geometry.iou import overlap
from detloss.geometry.points import Points, grid_points
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Target

__all__ = ["FCOSLoss"]

DISTANCE_UNITS = ("pixel", "stride")


@dataclass(frozen=True, kw_only=True)
class FCOSMatched(Matched):
    """``logits [B, P, C]``, ``distances [B, P, 4]`` in pixels and their targets, ``centers [B, P]``, ``quality`` and
    ``box_weight [B, P]``."""

    logits: Tensor
    distances: Tensor
    true_distances: Tensor
    centers: Tensor
    quality: Tensor
    box_weight: Tensor


@CRITERIA.register_module(
    family="dense",
    formula="focal (all locations) + box (positives) + centerness (positives), each / positives over all ranks",
    paper="Tian et al. 2019, arXiv:1904.01355",
)
class FCOSLoss(Criterion):
    """FCOS criterion: ``losses = criterion(cls_scores, bbox_preds, centernesses, targets)``.

    ``loss_cls`` runs over all locations, background included; ``loss_box`` and ``loss_centerness`` over the positives.
    Each is the sum of its elements over the whole batch and all levels, divided by the number of positives on all ranks
    (at least 1). Locations are assigned by :class:`detloss.FCOSAssigner`.

    Args:
        num_classes: number of classes C; labels are 0…C−1.
        focal_alpha: ``alpha`` of the default classification loss.
        focal_gamma: ``gamma`` of the default classification loss.
        cls_loss_weight: weight of ``loss_cls``.
        reg_loss_weight: weight of ``loss_box``.
        centerness_loss_weight: weight of ``loss_centerness``.
        strides: pixels per cell of every level. Fewer maps than strides may be given: the first ones count.
        regress_ranges: (lo, hi) in pixels per level; ``None``: (−1, 8 s₀), (8 s₀, 8 s₁) … (.., ∞).
        loss_cls: object, configuration or name; FocalLoss. Quality losses get the IoU of the predicted box as score.
        loss_box: likewise; GIoULoss. Losses of single coordinates (L1, SmoothL1 …) get distances in strides.
        loss_centerness: likewise; CenternessLoss.
        center_sampling_radius: restrict positives to the centre of objects (the official code: 1.5); ``None``: whole box.
        centerness_weighted: weigh each box by its centerness target and divide ``loss_box`` by the sum of those on all
            ranks, as the official code does.
        distance_unit: unit of ``bbox_preds``, ``"pixel"`` or ``"stride"`` (of the level).
        point_offset: place of the location in its cell, 0.5 for the middle, 0 for the corner.
        range_bounds: see :class:`detloss.FCOSAssigner`.
        assigner: object, configuration or name of another assigner, in the place of the FCOS one.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: weights by name of the term (``{"loss_box": 2.0}``); they replace the three above.
        memory_budget: bytes for the temporaries of the assignment.

    Presets: ``"torchvision"``, ``"detectron2"``, ``"mmdet"`` (visdet) and ``"autotimm"`` (its helper for ready targets).

    >>> criterion = FCOSLoss(num_classes=3, strides=(8,))
    >>> maps = [torch.zeros(1, 3, 4, 4)], [torch.full((1, 4, 4, 4), 8.0)], [torch.zeros(1, 1, 4, 4)]
    >>> losses = criterion(*maps, [{"boxes": torch.tensor([[4, 4, 20, 20]]), "labels": torch.tensor([2])}])
    >>> sorted(losses), losses.metrics["num_pos"]
    (['loss_box', 'loss_centerness', 'loss_cls'], tensor(1))
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all locations that are not ignored", "positives on all ranks, at least 1"),
        Term(
            "loss_box",
            "positives",
            "positives on all ranks, at least 1 (centerness_weighted: the sum of their centerness)",
        ),
        Term("loss_centerness", "positives", "positives on all ranks, at least 1"),
    )
    COUNTS: ClassVar[int] = 2
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "torchvision": {
            "point_offset": 0.0, "range_bounds": "open", "center_sampling_radius": 1.5, "distance_unit": "stride",
            "normalizer": "local",
        },
        "detectron2": {
            "range_bounds": "open", "center_sampling_radius": 1.5, "distance_unit": "stride",
            "normalizer": {"mode": "ema", "momentum": 0.9, "initial": 300.0},
        },
        "mmdet": {"loss_box": {"type": "IoULoss", "mode": "log"}, "centerness_weighted": True},
        "autotimm": {"loss_box": {"type": "IoULoss", "mode": "log"}, "range_bounds": "half_open", "normalizer": "local"},
    }  # fmt: skip

    def __init__(
        self,
        num_classes: int,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        cls_loss_weight: float = 1.0,
        reg_loss_weight: float = 1.0,
        centerness_loss_weight: float = 1.0,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        regress_ranges: RegressRanges | None = None,
        *,
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        loss_centerness: LossConfig | None = None,
        center_sampling_radius: float | None = None,
        centerness_weighted: bool = False,
        distance_unit: Literal["pixel", "stride"] = "pixel",
        point_offset: float = 0.5,
        range_bounds: RangeBounds = "closed",
        assigner: AssignerConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(
            {"loss_cls": cls_loss_weight, "loss_box": reg_loss_weight, "loss_centerness": centerness_loss_weight}, normalizer
        )
        self.set_weights(weights or {})
        check_option("FCOSLoss", "distance_unit", distance_unit, DISTANCE_UNITS)
        self.num_classes = check_classes("FCOSLoss", num_classes)
        self.strides = check_strides("FCOSLoss", strides)
        focal = {"type": "FocalLoss", "alpha": focal_alpha, "gamma": focal_gamma}
        self.loss_cls = self.build_term("loss_cls", loss_cls, focal)
        self.loss_box = self.build_term("loss_box", loss_box, "GIoULoss")
        self.loss_centerness = self.build_term("loss_centerness", loss_centerness, "CenternessLoss")
        box_format = getattr(self.loss_box, "box_format", "xyxy")
        if box_format != "xyxy":
            raise ValueError(f"FCOSLoss: loss_box is fed corners, so its box_format must be 'xyxy'; got {box_format!r}")
        self.centerness_weighted = centerness_weighted
        self.distance_unit = distance_unit
        self.point_offset = point_offset
        ranges = default_regress_ranges(self.strides) if regress_ranges is None else regress_ranges
        if len(ranges) != len(self.strides):
            raise ValueError(
                f"FCOSLoss: expected one regress range per stride; got {len(ranges)} ranges and {len(self.strides)} strides"
            )
        self.assigner = self.build_assigner(assigner, FCOSAssigner(ranges, center_sampling_radius, memory_budget, range_bounds))

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
            bbox_preds: per level distances ``[B, 4, H, W]`` (left, top, right, bottom) from the locations.
            centernesses: per level logits ``[B, 1, H, W]``.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, optional ``iscrowd [G]`` and
                ``ignore_boxes [K, 4]``.
            points: the locations of all levels, in the place of those that ``strides`` and ``point_offset`` describe.

        Returns:
            LossDict with ``loss_cls``, ``loss_box``, ``loss_centerness`` and the metrics ``num_pos``, ``num_gt``,
            ``num_gt_without_pos`` (objects that no location is responsible for) and ``mean_iou`` of the positives.
        """
        return self.finish(self.match(cls_scores, bbox_preds, centernesses, targets, points))

    def match(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        centernesses: Sequence[Tensor],
        targets: Sequence[Target],
        points: Points | None = None,
    ) -> FCOSMatched:
        """Assign every location and count. Arguments as in the call."""
        maps = {"cls_scores": cls_scores, "bbox_preds": bbox_preds, "centernesses": centernesses}
        check_maps("FCOSLoss", maps, {"cls_scores": self.num_classes, "bbox_preds": 4, "centernesses": 1}, self.strides)
        logits, distances, centers = (upcast(rows(levels)) for levels in maps.values())
        if points is None:
            strides = self.strides[: len(cls_scores)]
            points = grid_points(map_sizes(cls_scores), strides, self.point_offset, device=logits.device, dtype=distances.dtype)
        else:
            check_points("FCOSLoss", points, cls_scores)
        truth = pad_targets(targets, distances, self.num_classes)
        check_images("FCOSLoss", truth, len(logits))
        if self.distance_unit == "stride":
            distances = distances * points.stride[:, None]
        xy = points.xy.expand(*distances.shape[:2], 2)
        boxes = distance_to_box(xy, distances).detach() if self.assigner.needs_predictions else None
        scores = None if boxes is None else logits.detach()
        assignment = self.assigner(points, truth, scores, boxes)
        positive = assignment.positive
        true = torch.where(positive.unsqueeze(-1), box_to_distance(xy, matched_rows(truth.boxes, assignment)), 0.0)
        quality = centerness(true) * positive
        box_weight = quality if self.centerness_weighted else positive.to(distances.dtype)
        return FCOSMatched(
            counts=torch.stack((positive.sum().to(distances.dtype), box_weight.sum())),
            minimum=(1.0, 1e-6 if self.centerness_weighted else 1.0),  # 0 centerness means no positives
            truth=truth,
            assignment=assignment,
            priors=points,
            scores=scores,
            boxes=boxes,
            logits=logits,
            distances=distances,
            true_distances=true,
            centers=centers.squeeze(-1),
            quality=quality,
            box_weight=box_weight,
        )

    def compute(self, matched: FCOSMatched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by (positives, positives or their centerness)."""
        num_pos, box_total = normalizers.unbind()
        truth, assignment = matched.truth, matched.assignment
        in_strides = getattr(self.loss_box, "box_space", "corners") == "distances"
        stride = matched.priors.stride[:, None]
        pred_boxes, true_boxes = (
            (d / stride if in_strides else _around_point(d)).reshape(-1, 4) for d in (matched.distances, matched.true_distances)
        )
        iou = _iou_of_positives(matched.distances, matched.true_distances, assignment.positive)
        terms = {
            "loss_cls": class_loss(self.loss_cls, matched.logits, truth, assignment, iou, num_pos),
            "loss_box": self.loss_box(pred_boxes, true_boxes, weight=matched.box_weight.reshape(-1), avg_factor=box_total),
            "loss_centerness": self.loss_centerness(
                matched.centers.reshape(-1),
                matched.quality.reshape(-1),
                weight=assignment.positive.reshape(-1).to(matched.centers.dtype),
                avg_factor=num_pos,
            ),
        }
        return self.collect(terms, assignment_metrics(truth, assignment, iou))


def _around_point(distances: Tensor) -> Tensor:
    """Corners relative to the location: overlaps do not change under translation, and small numbers keep their digits."""
    return torch.cat((-distances[..., :2], distances[..., 2:]), dim=-1)


@torch.no_grad()
def _iou_of_positives(pred: Tensor, true: Tensor, positive: Tensor) -> Tensor:
    """IoU ``[B, P]`` of predicted and matched boxes; 0 for negatives and for predictions that are not numbers."""
    iou = overlap(_around_point(pred), _around_point(true)).iou
    return torch.where(positive, torch.nan_to_num(iou), 0.0)
