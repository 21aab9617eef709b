"""The criterion of YOLOv8: task-aligned assignment, soft labels, boxes as distributions of distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from detloss.assigners.targets import pad_targets
from detloss.assigners.task_aligned import TaskAlignedAssigner
from detloss.checks import upcast
from detloss.criteria.base import (
    AssignerConfig,
    Criterion,
    LossConfig,
    Matched,
    Term,
    assignment_metrics,
    check_classes,
    kept_rows,
)
from detloss.criteria.distances import distribution_term, expected_distance
from detloss.criteria.levels import check_images, check_maps, check_strides, map_sizes, matched_labels, matched_rows
from detloss.criteria.positives import Positives, select_positives
from detloss.criteria.soft_labels import check_class_loss, class_term_of_maps
from detloss.geometry.boxes import box_to_distance, distance_to_box
from detloss.geometry.iou import overlap
from detloss.geometry.points import grid_points
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Target

__all__ = ["YOLOv8Loss"]

BIN_MARGIN = 0.01  # the largest true distance stays so far below the last bin


@dataclass(frozen=True, kw_only=True)
class YOLOv8Matched(Matched):
    """The maps of class logits and of bins, ``score [B, P]`` of the matches, the positives as slots."""

    cls_scores: tuple[Tensor, ...]
    bbox_preds: tuple[Tensor, ...]
    score: Tensor
    positives: Positives


@CRITERIA.register_module(
    family="dense",
    formula="0.5 BCE (all locations, soft labels) + score · (7.5 CIoU + 1.5 DFL) (positives), each / Σ score over all ranks",
    paper="Jocher et al. 2023, Ultralytics YOLOv8; Feng et al. 2021, arXiv:2108.07755",
)
class YOLOv8Loss(Criterion):
    """YOLOv8 criterion: ``losses = criterion(cls_scores, bbox_preds, targets)``.

    Locations, the centres of the cells, are assigned by :class:`detloss.TaskAlignedAssigner`, which also scores every match in
    [0, 1]. ``loss_cls`` runs over all locations; the target of the matched class is the score. ``loss_box`` compares the
    predicted with the matched boxes and ``loss_dfl`` the distributions of their distances, mean of the four sides; both weigh
    a positive by its score. Each term is summed over the batch and divided by the sum of the scores on all ranks, at least 1.

    A side is predicted as a distribution over ``reg_max`` bins; its distance is their mean, in strides. True distances are
    clamped to [0, reg_max − 1.01] for ``loss_dfl``, and only there.

    Args:
        num_classes: number of classes C; labels are 0…C−1.
        strides: pixels per cell of every level. Fewer maps than strides may be given: the first ones count.
        reg_max: number of bins per side, at least 2 (ultralytics counts so; mmdet's ``reg_max`` is the last bin, one less).
        loss_cls: object, configuration or name; sigmoid CrossEntropyLoss. Quality and varifocal losses get (class, score),
            losses without a score (FocalLoss) the class alone.
        loss_box: likewise; CIoULoss. Losses of single coordinates (L1 …) get distances in strides.
        loss_dfl: likewise; DistributionFocalLoss.
        box_weight: weight of ``loss_box``.
        cls_weight: weight of ``loss_cls``.
        dfl_weight: weight of ``loss_dfl``.
        assigner: object, configuration or name; TaskAlignedAssigner(topk=10, alpha=0.5, beta=6, iou="ciou"). The matches of
            an assigner without quality score 1.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: weights by name of the term (``{"loss_box": 2.0}``); they replace the three above.
        times_batch: multiply every term by the number of images on this rank, as ultralytics does before the optimizer step.

    Preset: ``"ultralytics"`` (v8DetectionLoss: its weights, ``times_batch``, the scores of this rank only).

    >>> criterion = YOLOv8Loss(num_classes=3, strides=(8,), reg_max=8)
    >>> maps = [torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 4 * 8, 4, 4)]
    >>> losses = criterion(*maps, [{"boxes": torch.tensor([[4, 4, 20, 20]]), "labels": torch.tensor([2])}])
    >>> sorted(losses)
    ['loss_box', 'loss_cls', 'loss_dfl']
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all locations that are not ignored", "sum of the scores on all ranks, at least 1"),
        Term("loss_box", "positives, weighed by their score", "sum of the scores on all ranks, at least 1"),
        Term("loss_dfl", "positives, weighed by their score, mean of 4 sides", "sum of the scores on all ranks, at least 1"),
    )
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ultralytics": {"times_batch": True, "normalizer": "local"}}

    def __init__(
        self,
        num_classes: int,
        *,
        strides: Sequence[int] = (8, 16, 32),
        reg_max: int = 16,
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        loss_dfl: LossConfig | None = None,
        box_weight: float = 7.5,
        cls_weight: float = 0.5,
        dfl_weight: float = 1.5,
        assigner: AssignerConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        times_batch: bool = False,
    ) -> None:
        super().__init__({"loss_cls": cls_weight, "loss_box": box_weight, "loss_dfl": dfl_weight}, normalizer)
        self.set_weights(weights or {})
        self.num_classes = check_classes("YOLOv8Loss", num_classes)
        self.strides = check_strides("YOLOv8Loss", strides)
        if isinstance(reg_max, bool) or not isinstance(reg_max, int) or reg_max < 2:
            raise ValueError(f"YOLOv8Loss: reg_max, the number of bins per side, must be an integer >= 2; got {reg_max!r}")
        self.reg_max = reg_max
        self.loss_cls = self.build_term("loss_cls", loss_cls, {"type": "CrossEntropyLoss", "use_sigmoid": True})
        self.loss_box = self.build_term("loss_box", loss_box, "CIoULoss")
        self.loss_dfl = self.build_term("loss_dfl", loss_dfl, "DistributionFocalLoss")
        check_class_loss("YOLOv8Loss", "loss_cls", self.loss_cls)
        box_format = getattr(self.loss_box, "box_format", "xyxy")
        if box_format != "xyxy":
            raise ValueError(f"YOLOv8Loss: loss_box is fed corners, so its box_format must be 'xyxy'; got {box_format!r}")
        self.times_batch = times_batch
        self.assigner = self.build_assigner(assigner, TaskAlignedAssigner(topk=10, alpha=0.5, beta=6.0, iou="ciou"))

    def forward(self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], targets: Sequence[Target]) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            cls_scores: per level logits ``[B, C, H, W]``.
            bbox_preds: per level logits ``[B, 4·reg_max, H, W]``, the bins of the left side first, then top, right, bottom.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, optional ``iscrowd [G]`` and
                ``ignore_boxes [K, 4]``.

        Returns:
            LossDict with ``loss_cls``, ``loss_box``, ``loss_dfl`` and the metrics ``num_pos``, ``num_gt``,
            ``num_gt_without_pos`` (objects that no location is responsible for) and ``mean_iou`` of the positives.
        """
        return self.finish(self.match(cls_scores, bbox_preds, targets))

    def split_outputs(self, outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
        """The output of ultralytics' Detect head as ``(cls_scores, bbox_preds)``, without a copy.

        ``criterion(*criterion.split_outputs(model(images)), targets)``

        Args:
            outputs: a list of maps ``[B, 4·reg_max + C, H, W]``; or the dict of ``boxes [B, 4·reg_max, P]``,
                ``scores [B, C, P]`` and ``feats``, whose maps have the sizes of the levels; or a pair of predictions for
                inference and one of these.
        """
        if isinstance(outputs, tuple) and len(outputs) == 2 and not isinstance(outputs[1], Tensor):
            outputs = outputs[1]
        sides = 4 * self.reg_max
        if isinstance(outputs, Mapping):
            sizes = map_sizes(outputs["feats"])
            counts = [height * width for height, width in sizes]
            scores, boxes = (
                [part.unflatten(2, size) for part, size in zip(outputs[key].split(counts, 2), sizes, strict=True)]
                for key in ("scores", "boxes")
            )
            return scores, boxes
        check_maps("YOLOv8Loss.split_outputs", {"outputs": outputs}, {"outputs": sides + self.num_classes}, self.strides)
        return [x[:, sides:] for x in outputs], [x[:, :sides] for x in outputs]

    def match(self, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], targets: Sequence[Target]) -> YOLOv8Matched:
        """Assign every location and count. Arguments as in the call."""
        maps = {"cls_scores": cls_scores, "bbox_preds": bbox_preds}
        check_maps("YOLOv8Loss", maps, {"cls_scores": self.num_classes, "bbox_preds": 4 * self.reg_max}, self.strides)
        scores = torch.cat([x.detach().flatten(2) for x in cls_scores], 2).transpose(1, 2)
        distances = torch.cat([_distances(x.detach()) for x in bbox_preds], 2).transpose(1, 2)
        sizes, dtype = map_sizes(cls_scores), distances.dtype
        points = grid_points(sizes, self.strides[: len(sizes)], device=scores.device, dtype=dtype)
        truth = pad_targets(targets, distances, self.num_classes)
        check_images("YOLOv8Loss", truth, len(scores))
        boxes = distance_to_box(points.xy.expand(*distances.shape[:2], 2), distances * points.stride[:, None])
        assignment = self.assigner(points, truth, scores, boxes)
        score = assignment.positive.to(dtype) if assignment.quality is None else assignment.quality.to(dtype)
        return YOLOv8Matched(
            counts=score.sum().reshape(1),
            minimum=(1.0,),
            truth=truth,
            assignment=assignment,
            priors=points,
            scores=scores,
            boxes=boxes,
            cls_scores=tuple(cls_scores),
            bbox_preds=tuple(bbox_preds),
            score=score,
            positives=select_positives(assignment, self._most(truth.boxes.shape[1])),
        )

    def compute(self, matched: YOLOv8Matched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by the sum of the scores."""
        total = normalizers[0]
        truth, assignment, positives = matched.truth, matched.assignment, matched.positives
        score = positives.take(matched.score).flatten()
        bins = upcast(positives.take_maps(matched.bbox_preds)).flatten(0, 1)
        pred, true = expected_distance(bins), self._true_distances(matched)
        in_strides = getattr(self.loss_box, "box_space", "corners") == "distances"
        pred_boxes, true_boxes = (pred, true) if in_strides else (_around_point(pred), _around_point(true))
        labels = matched_labels(truth, assignment, self.num_classes)
        keep = kept_rows(truth, assignment, score.dtype)
        terms = {
            "loss_cls": class_term_of_maps(self.loss_cls, matched.cls_scores, labels, matched.score, keep, positives, total),
            "loss_box": self.loss_box(pred_boxes, true_boxes, weight=score, avg_factor=total),
            "loss_dfl": distribution_term(self.loss_dfl, bins, true, score, total, BIN_MARGIN),
        }
        if self.times_batch:
            terms = {name: term * len(labels) for name, term in terms.items()}
        with torch.no_grad():
            iou = overlap(_around_point(pred), _around_point(true)).iou * positives.filled.flatten()
        return self.collect(terms, assignment_metrics(truth, assignment, iou))

    def _most(self, objects: int) -> int | None:
        """The most positives an image can have; ``None`` where the assigner does not say."""
        return objects * self.assigner.topk if type(self.assigner) is TaskAlignedAssigner else None

    def _true_distances(self, matched: YOLOv8Matched) -> Tensor:
        """``[B·K, 4]`` distances in strides from the positives to the sides of their objects."""
        positives, points = matched.positives, matched.priors
        objects = positives.take(matched_rows(matched.truth.boxes, matched.assignment))
        xy, stride = points.xy[positives.index], points.stride[positives.index].unsqueeze(-1)
        return torch.where(positives.filled.unsqueeze(-1), box_to_distance(xy, objects) / stride, 0.0).flatten(0, 1)


def _distances(bins: Tensor) -> Tensor:
    """``[B, 4, H·W]`` distances in strides of maps."""
    return expected_distance(bins, 1).flatten(2)


def _around_point(distances: Tensor) -> Tensor:
    """Corners relative to the location: overlaps do not change under translation, and small numbers keep their digits."""
    return torch.cat((-distances[..., :2], distances[..., 2:]), dim=-1)
