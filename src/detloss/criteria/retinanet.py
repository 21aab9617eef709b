"""The criterion of RetinaNet: anchors matched by IoU, focal classification, deltas to the anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.assigners.targets import pad_targets
from detloss.checks import check_option, upcast
from detloss.criteria.anchor_head import (
    AnchorGrid,
    GivenAnchors,
    box_pair,
    check_box_loss,
    check_delta_weights,
    iou_of_positives,
)
from detloss.criteria.base import (
    AssignerConfig,
    Criterion,
    LossConfig,
    Matched,
    Term,
    assignment_metrics,
    check_classes,
    class_target,
)
from detloss.criteria.levels import check_images, check_maps, map_sizes, matched_labels, matched_rows, rows
from detloss.geometry.deltas import delta_to_box
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Number, Target

__all__ = ["RetinaNetLoss"]

NORMALIZE_BY = ("positives", "positives_of_image", "positives_at_least_images")
OCTAVE = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))
TORCHVISION_SIZES = tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in (32, 64, 128, 256, 512))


@dataclass(frozen=True, kw_only=True)
class RetinaNetMatched(Matched):
    """``logits [B, P, C]``, ``deltas [B, P, 4]``, ``true_boxes [B, P, 4]`` corners, ``image_weight [B]``."""

    logits: Tensor
    deltas: Tensor
    true_boxes: Tensor
    image_weight: Tensor


@CRITERIA.register_module(
    family="dense",
    formula="focal (all anchors that are not ignored) + L1 of deltas (positives), each / positives over all ranks",
    paper="Lin et al. 2017, arXiv:1708.02002",
)
class RetinaNetLoss(Criterion):
    """RetinaNet criterion: ``losses = criterion(cls_scores, bbox_preds, targets, anchors=None)``.

    Anchors are matched by :class:`detloss.MaxIoUAssigner`: positive from an IoU of 0.5 (and the best anchors of every
    object), background below 0.4, ignored between. ``loss_cls`` runs over all anchors that are not ignored, ``loss_box``
    over the positives; each is divided by the number of positives.

    Args:
        num_classes: number of classes C; labels are 0…C−1.
        strides: pixels per cell of every level. Fewer maps than strides may be given: the first ones count.
        anchor_sizes: sizes of the anchors of every level in pixels; ``None``: 4, 4·∛2 and 4·∛4 strides.
        anchor_ratios: height / width.
        anchor_offset: place of their centres in the cell, see :func:`detloss.geometry.grid_anchors`.
        anchor_order: order of the anchors of a cell, likewise.
        anchors_rounded: corners in whole pixels around the centre, as torchvision has them.
        delta_weights: factors of the deltas, see :func:`detloss.geometry.box_to_delta`.
        normalize_by: ``"positives"``: of the whole batch, at least 1; ``"positives_of_image"``: every image by its own, at
            least 1, then the mean over images (torchvision); ``"positives_at_least_images"``: the sum over images of their
            positives, at least 1 each (mmdet).
        loss_cls: object, configuration or name; FocalLoss. Quality losses get the IoU of the predicted box as score.
        loss_box: likewise; L1Loss on deltas. Losses of the IoU family compare decoded boxes.
        assigner: object, configuration or name; ``MaxIoUAssigner(0.5, 0.4, min_pos_iou=0)``.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: factors by name of the term.
        memory_budget: bytes for the temporaries of the assignment.

    Presets: ``"torchvision"``, ``"detectron2"`` and ``"mmdet"``.

    >>> criterion = RetinaNetLoss(num_classes=3, strides=(8,))
    >>> maps = [torch.zeros(1, 9 * 3, 4, 4)], [torch.zeros(1, 9 * 4, 4, 4)]
    >>> losses = criterion(*maps, [{"boxes": torch.tensor([[0, 0, 32, 32]]), "labels": torch.tensor([2])}])
    >>> sorted(losses)
    ['loss_box', 'loss_cls']
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all anchors that are not ignored", "positives on all ranks, at least 1 (see normalize_by)"),
        Term("loss_box", "positives", "positives on all ranks, at least 1 (see normalize_by)"),
    )
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "torchvision": {
            "anchor_sizes": TORCHVISION_SIZES, "anchors_rounded": True, "normalize_by": "positives_of_image",
            "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "low_quality": "anchor"},
            "normalizer": "local",
        },
        "detectron2": {
            "anchor_order": "size", "loss_box": {"type": "SmoothL1Loss", "beta": 0.1},
            "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "low_quality": "anchor"},
            "normalizer": {"mode": "ema", "momentum": 0.9, "initial": 100.0},
        },
        "mmdet": {"normalize_by": "positives_at_least_images", "normalizer": "local"},
    }  # fmt: skip

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[Number] = (8, 16, 32, 64, 128),
        *,
        anchor_sizes: Sequence[Sequence[Number]] | None = None,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchor_offset: float = 0.0,
        anchor_order: Literal["ratio", "size"] = "ratio",
        anchors_rounded: bool = False,
        delta_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        normalize_by: Literal["positives", "positives_of_image", "positives_at_least_images"] = "positives",
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        assigner: AssignerConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(weights, normalizer)
        check_option("RetinaNetLoss", "normalize_by", normalize_by, NORMALIZE_BY)
        self.num_classes = check_classes("RetinaNetLoss", num_classes)
        self.grid = AnchorGrid.of(
            "RetinaNetLoss", strides, anchor_sizes, OCTAVE, anchor_ratios, anchor_offset, anchor_order, anchors_rounded
        )
        self.delta_weights = check_delta_weights("RetinaNetLoss", delta_weights)
        self.normalize_by = normalize_by
        self.loss_cls = self.build_term("loss_cls", loss_cls, "FocalLoss")
        self.loss_box = self.build_term("loss_box", loss_box, "L1Loss")
        check_box_loss("RetinaNetLoss", "loss_box", self.loss_box)
        self.assigner = self.build_assigner(assigner, MaxIoUAssigner(0.5, 0.4, memory_budget=memory_budget))

    def forward(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Sequence[Target],
        anchors: GivenAnchors | None = None,
    ) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            cls_scores: per level logits ``[B, A·C, H, W]``, the C classes of the first anchor of a cell first.
            bbox_preds: per level deltas ``[B, A·4, H, W]``, likewise.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, optional ``iscrowd``, ``ignore_boxes``.
            anchors: ``[P, 4]`` corners (level by level, row by row, then the A anchors of a cell) or a list of them per
                level, in the place of those that the options describe.

        Returns:
            LossDict with ``loss_cls``, ``loss_box`` and the metrics ``num_pos``, ``num_gt``, ``num_gt_without_pos`` and
            ``mean_iou``.
        """
        return self.finish(self.match(cls_scores, bbox_preds, targets, anchors))

    def match(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Sequence[Target],
        anchors: GivenAnchors | None = None,
    ) -> RetinaNetMatched:
        """Assign every anchor and count. Arguments as in the call."""
        each = self.grid.per_cell
        maps = {"cls_scores": cls_scores, "bbox_preds": bbox_preds}
        check_maps("RetinaNetLoss", maps, {"cls_scores": each * self.num_classes, "bbox_preds": each * 4}, self.grid.strides)
        logits, deltas = (upcast(rows(levels, each)) for levels in maps.values())
        priors = self.grid.anchors(map_sizes(cls_scores), deltas, anchors)
        truth = pad_targets(targets, deltas, self.num_classes)
        check_images("RetinaNetLoss", truth, len(logits))
        scores = boxes = None
        if self.assigner.needs_predictions:
            scores, boxes = logits.detach(), delta_to_box(priors.boxes, deltas.detach(), self.delta_weights)
        assignment = self.assigner(priors, truth, scores, boxes)
        of_image = assignment.positive.sum(1).to(deltas.dtype)
        weight = torch.ones_like(of_image)
        count = of_image.sum()
        if self.normalize_by == "positives_of_image":
            weight, count = 1 / of_image.clamp(min=1), weight.sum()
        elif self.normalize_by == "positives_at_least_images":
            count = of_image.clamp(min=1).sum()
        return RetinaNetMatched(
            counts=count.reshape(1),
            minimum=(1.0,),
            truth=truth,
            assignment=assignment,
            priors=priors,
            scores=scores,
            boxes=boxes,
            logits=logits,
            deltas=deltas,
            true_boxes=matched_rows(truth.boxes, assignment),
            image_weight=weight,
        )

    def compute(self, matched: RetinaNetMatched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by the count that ``normalize_by`` names."""
        count = normalizers[0]
        assignment = matched.assignment
        positive = assignment.positive.reshape(-1)
        anchors = matched.priors.boxes.expand_as(matched.deltas).reshape(-1, 4)
        deltas, true = matched.deltas.reshape(-1, 4), matched.true_boxes.reshape(-1, 4)
        iou = iou_of_positives(anchors, deltas, true, positive, self.delta_weights).view_as(assignment.gt_index)
        pred, target = box_pair(self.loss_box, anchors, deltas, true, positive, self.delta_weights)
        row_weight = matched.image_weight[:, None].expand_as(assignment.gt_index).reshape(-1)
        labels = matched_labels(matched.truth, assignment, self.num_classes)
        terms = {
            "loss_cls": self.loss_cls(
                matched.logits.reshape(-1, self.num_classes),
                class_target(self.loss_cls, labels, iou),
                weight=row_weight * ~assignment.ignore.reshape(-1),
                avg_factor=count,
            ),
            "loss_box": self.loss_box(pred, target, weight=row_weight * positive, avg_factor=count),
        }
        return self.collect(terms, assignment_metrics(matched.truth, assignment, iou))
