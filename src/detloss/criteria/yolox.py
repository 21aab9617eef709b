"""The criterion of YOLOX: anchor-free boxes, objectness, and SimOTA to assign them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from detloss.assigners.simota import SimOTAAssigner
from detloss.assigners.targets import pad_targets
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
from detloss.criteria.levels import check_images, check_maps, check_strides, map_sizes, matched_labels, matched_rows, rows
from detloss.criteria.positives import Positives, select_positives
from detloss.criteria.soft_labels import check_class_loss, class_term
from detloss.geometry.boxes import to_xyxy
from detloss.geometry.iou import overlap
from detloss.geometry.points import Points, grid_points
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Target

__all__ = ["YOLOXLoss"]

LARGEST_LOG_SIDE = 20.0  # sides of up to e²⁰ strides, beyond every image, so that areas stay finite
LOG_EPS = 1e-8  # for objects without extent


@dataclass(frozen=True, kw_only=True)
class YOLOXMatched(Matched):
    """``logits [B, P, C]``, ``raw [B, P, 4]`` box predictions, ``objectness [B, P]`` logits, ``score [B, P]`` of the matches,
    the positives as slots."""

    logits: Tensor
    raw: Tensor
    objectness: Tensor
    score: Tensor
    positives: Positives


@CRITERIA.register_module(
    family="dense",
    formula="5 (1 − IoU²) + BCE of the class, target IoU (positives) + BCE of the objectness (all), each / positives, all ranks",
    paper="Ge et al. 2021, arXiv:2107.08430",
)
class YOLOXLoss(Criterion):
    """YOLOX criterion: ``losses = criterion(cls_scores, bbox_preds, objectnesses, targets)``.

    A cell in column i and row j of a level of stride s predicts (dx, dy, ln w, ln h): the box with the centre
    ((dx + i) s, (dy + j) s) and the sides (w s, h s). Cells are assigned by :class:`detloss.SimOTAAssigner` from their centres,
    scores and boxes. ``loss_obj`` runs over all cells, target 1 for positives; ``loss_cls``, ``loss_box`` and
    ``loss_l1`` over the positives; the target of the matched class is the IoU of the predicted box. Each term is summed over
    the batch and divided by the number of positives on all ranks, at least 1.

    ln w and ln h are bounded by 20, far beyond every image, so that a prediction that runs away stays finite.

    Args:
        num_classes: number of classes C; labels are 0…C−1.
        strides: pixels per cell of every level. Fewer maps than strides may be given: the first ones count.
        loss_cls: object, configuration or name; sigmoid CrossEntropyLoss. Quality and varifocal losses get (class, IoU),
            losses without a score (FocalLoss) the class alone.
        loss_box: likewise; IoULoss(mode="square"). Losses of single coordinates get corners in strides around the cell.
        loss_obj: likewise; sigmoid CrossEntropyLoss.
        loss_l1: likewise; L1Loss, of (dx, dy, ln w, ln h) themselves.
        use_l1: add ``loss_l1``, as in the last epochs without strong augmentation. May be set at any time.
        box_weight: weight of ``loss_box``.
        cls_weight: weight of ``loss_cls``.
        obj_weight: weight of ``loss_obj``.
        l1_weight: weight of ``loss_l1``.
        assigner: object, configuration or name; SimOTAAssigner. The matches of an assigner without quality score 1.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: weights by name of the term (``{"loss_box": 2.0}``); they replace the four above.

    Presets: ``"yolox"`` (the official code: positives of this rank) and ``"mmdet"``.

    >>> criterion = YOLOXLoss(num_classes=3, strides=(8,))
    >>> maps = [torch.zeros(1, 3, 4, 4)], [torch.zeros(1, 4, 4, 4)], [torch.zeros(1, 1, 4, 4)]
    >>> losses = criterion(*maps, [{"boxes": torch.tensor([[4, 4, 20, 20]]), "labels": torch.tensor([2])}])
    >>> sorted(losses), losses.metrics["num_pos"]
    (['loss_box', 'loss_cls', 'loss_obj'], tensor(1))
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "positives", "positives on all ranks, at least 1"),
        Term("loss_box", "positives", "positives on all ranks, at least 1"),
        Term("loss_obj", "all cells that are not ignored", "positives on all ranks, at least 1"),
        Term("loss_l1", "the four numbers of positives, with use_l1", "positives on all ranks, at least 1"),
    )
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "yolox": {"normalizer": "local"},
        "mmdet": {
            "assigner": {
                "type": "SimOTAAssigner", "center_radius": 2.5, "candidates": "box_or_centre", "confidence": "product",
                "eps": 1e-7,
            },
        },
    }  # fmt: skip

    def __init__(
        self,
        num_classes: int,
        *,
        strides: Sequence[int] = (8, 16, 32),
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        loss_obj: LossConfig | None = None,
        loss_l1: LossConfig | None = None,
        use_l1: bool = False,
        box_weight: float = 5.0,
        cls_weight: float = 1.0,
        obj_weight: float = 1.0,
        l1_weight: float = 1.0,
        assigner: AssignerConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(
            {"loss_cls": cls_weight, "loss_box": box_weight, "loss_obj": obj_weight, "loss_l1": l1_weight}, normalizer
        )
        self.set_weights(weights or {})
        self.num_classes = check_classes("YOLOXLoss", num_classes)
        self.strides = check_strides("YOLOXLoss", strides)
        entropy = {"type": "CrossEntropyLoss", "use_sigmoid": True}
        self.loss_cls = self.build_term("loss_cls", loss_cls, entropy)
        self.loss_box = self.build_term("loss_box", loss_box, {"type": "IoULoss", "mode": "square"})
        self.loss_obj = self.build_term("loss_obj", loss_obj, entropy)
        self.loss_l1 = self.build_term("loss_l1", loss_l1, "L1Loss")
        check_class_loss("YOLOXLoss", "loss_cls", self.loss_cls)
        check_class_loss("YOLOXLoss", "loss_obj", self.loss_obj)
        box_format = getattr(self.loss_box, "box_format", "xyxy")
        if box_format != "xyxy":
            raise ValueError(f"YOLOXLoss: loss_box is fed corners, so its box_format must be 'xyxy'; got {box_format!r}")
        self.use_l1 = use_l1
        self.assigner = self.build_assigner(assigner, SimOTAAssigner())

    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        objectnesses: Sequence[Tensor],
        targets: Sequence[Target],
    ) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            cls_scores: per level logits ``[B, C, H, W]``.
            bbox_preds: per level ``[B, 4, H, W]``: (dx, dy, ln w, ln h) in strides.
            objectnesses: per level logits ``[B, 1, H, W]``.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, optional ``iscrowd [G]`` and
                ``ignore_boxes [K, 4]``.

        Returns:
            LossDict with ``loss_cls``, ``loss_box``, ``loss_obj``, with ``use_l1`` also ``loss_l1``, and the metrics
            ``num_pos``, ``num_gt``, ``num_gt_without_pos`` (objects that no cell is responsible for) and ``mean_iou``.
        """
        return self.finish(self.match(cls_scores, bbox_preds, objectnesses, targets))

    def match(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        objectnesses: Sequence[Tensor],
        targets: Sequence[Target],
    ) -> YOLOXMatched:
        """Assign every cell and count. Arguments as in the call."""
        maps = {"cls_scores": cls_scores, "bbox_preds": bbox_preds, "objectnesses": objectnesses}
        check_maps("YOLOXLoss", maps, {"cls_scores": self.num_classes, "bbox_preds": 4, "objectnesses": 1}, self.strides)
        logits, raw, objectness = (upcast(rows(levels)) for levels in maps.values())
        objectness = objectness.squeeze(-1)
        points = grid_points(map_sizes(cls_scores), self.strides[: len(cls_scores)], device=raw.device, dtype=raw.dtype)
        truth = pad_targets(targets, raw, self.num_classes)
        check_images("YOLOXLoss", truth, len(logits))
        boxes = _corners(raw.detach()) * points.stride[:, None] + points.xy.repeat(1, 2)
        known = {"objectness": objectness.detach()} if isinstance(self.assigner, SimOTAAssigner) else {}
        assignment = self.assigner(points, truth, logits.detach(), boxes, **known)
        score = assignment.positive.to(raw.dtype) if assignment.quality is None else assignment.quality.to(raw.dtype)
        # Every object claims at most so many cells.
        most = truth.boxes.shape[1] * self.assigner.candidate_topk if type(self.assigner) is SimOTAAssigner else None
        return YOLOXMatched(
            counts=assignment.num_pos.to(raw.dtype).reshape(1),
            minimum=(1.0,),
            truth=truth,
            assignment=assignment,
            priors=points,
            scores=logits.detach(),
            boxes=boxes,
            logits=logits,
            raw=raw,
            objectness=objectness,
            score=score,
            positives=select_positives(assignment, most),
        )

    def compute(self, matched: YOLOXMatched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by the number of positives."""
        num_pos = normalizers[0]
        truth, assignment, positives = matched.truth, matched.assignment, matched.positives
        weight = positives.filled.flatten().to(matched.raw.dtype)
        raw = positives.take(matched.raw).flatten(0, 1)
        pred, true = _corners(raw), _true_corners(matched)
        labels = matched_labels(truth, assignment, self.num_classes)
        terms = {
            "loss_cls": class_term(
                self.loss_cls,
                positives.take(matched.logits).flatten(0, 1),
                positives.take(labels).flatten(),
                positives.take(matched.score).flatten(),
                weight,
                num_pos,
            ),
            "loss_box": self.loss_box(pred, true, weight=weight, avg_factor=num_pos),
            "loss_obj": self.loss_obj(
                matched.objectness.flatten(),
                assignment.positive.flatten().to(matched.raw.dtype),
                weight=kept_rows(truth, assignment, matched.raw.dtype),
                avg_factor=num_pos,
            ),
        }
        if self.use_l1:
            terms["loss_l1"] = self.loss_l1(raw, _true_raw(true), weight=weight, avg_factor=num_pos)
        with torch.no_grad():
            iou = overlap(pred, true).iou * weight
        return self.collect(terms, assignment_metrics(truth, assignment, iou))


def _corners(raw: Tensor) -> Tensor:
    """(dx, dy, ln w, ln h) ``[..., 4]`` as corners in strides around the centre of the cell, where dx = dy = 1/2."""
    size = raw[..., 2:].clamp(max=LARGEST_LOG_SIDE).exp()
    return to_xyxy(torch.cat((raw[..., :2] - 0.5, size), dim=-1), "cxcywh")


def _true_corners(matched: YOLOXMatched) -> Tensor:
    """``[B·K, 4]`` corners of the positives' objects in strides around the centres of their cells."""
    points: Points = matched.priors
    xy, stride = points.xy[matched.positives.index], points.stride[matched.positives.index].unsqueeze(-1)
    objects = matched.positives.take(matched_rows(matched.truth.boxes, matched.assignment))
    corners = (objects - torch.cat((xy, xy), dim=-1)) / stride
    return torch.where(matched.positives.filled.unsqueeze(-1), corners, 0.0).flatten(0, 1)


def _true_raw(corners: Tensor) -> Tensor:
    """What :func:`_corners` turns into these corners."""
    size = corners[..., 2:] - corners[..., :2]
    centre = (corners[..., :2] + corners[..., 2:]) / 2 + 0.5
    return torch.cat((centre, (size + LOG_EPS).log()), dim=-1)
