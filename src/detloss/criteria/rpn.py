"""The criterion of a region proposal network: is there an object at an anchor, and where exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.assigners.samplers import RandomSampler
from detloss.assigners.targets import PaddedTargets, pad_targets
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
from detloss.criteria.levels import check_images, check_maps, map_sizes, matched_rows, rows
from detloss.criteria.sampled import chosen_rows, in_slots, sample_limit
from detloss.geometry.deltas import delta_to_box
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import Assignment, LossDict, Number, Target

__all__ = ["RPNLoss"]

NORMALIZE_BY = ("sampled", "floored", "requested")
SIZES = ((32,), (64,), (128,), (256,), (512,))


@dataclass(frozen=True, kw_only=True)
class RPNMatched(Matched):
    """The S sampled anchors of every image (``sampled`` says which object each has): ``logits [B, S, 1]``, ``deltas``,
    ``references`` (their corners) and ``true_boxes [B, S, 4]``."""

    sampled: Assignment
    logits: Tensor
    deltas: Tensor
    references: Tensor
    true_boxes: Tensor


@CRITERIA.register_module(
    family="two-stage",
    formula="BCE (sampled anchors) + box (sampled positives), each / sampled anchors over all ranks",
    paper="Ren et al. 2015, arXiv:1506.01497",
)
class RPNLoss(Criterion):
    """Criterion of a region proposal network: ``losses = criterion(objectness, bbox_preds, targets)``.

    Anchors are assigned by :class:`detloss.MaxIoUAssigner` and sampled per image. ``loss_rpn_cls`` runs over the sampled
    anchors, ``loss_rpn_box`` over the positives among them; each is a sum over the whole batch divided by the number of
    sampled anchors on all ranks. The classes of the objects play no part. ``loss_rpn_cls`` is the objectness loss of the
    model, which is called loss_obj where there is no other classification.

    Args:
        strides: pixels per cell of every level. Fewer maps than strides may be given: the first ones count.
        anchor_sizes: sizes of the anchors of every level in pixels; ``None``: ``anchor_scales`` times the stride.
        anchor_scales: sizes in strides.
        anchor_ratios: height / width.
        anchor_offset: place of the centre in its cell in cells.
        anchor_order: order of the anchors of a cell, see :func:`detloss.geometry.base_anchors`.
        anchor_rounded: corners rounded to whole pixels, as torchvision's are.
        delta_weights: factors of the deltas (x, y, w, h).
        loss_rpn_cls: object, configuration or name of a loss from one logit per anchor; binary cross entropy. Quality losses
            get the IoU of the predicted box as score.
        loss_rpn_box: likewise; L1Loss. It is fed deltas, or corners if it is of the IoU family.
        assigner: likewise; MaxIoUAssigner(0.7, 0.3, 0.3).
        sampler: object that chooses from an assignment; RandomSampler(256, 0.5).
        normalize_by: ``"sampled"`` anchors; ``"floored"``, where positives and negatives of an image count at least 1 each
            (mmdet); or ``"requested"``: as many as the sampler takes at most, for every image (detectron2).
        num_classes: number of classes of the objects, where their labels are to be checked.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: weights by name of the term.
        memory_budget: bytes for the temporaries of the assignment.

    Presets: ``"torchvision"`` (Faster and Mask R-CNN with FPN), ``"detectron2"`` and ``"mmdet"``.

    >>> criterion = RPNLoss(strides=(8,), anchor_ratios=(1.0,), anchor_scales=(2,))
    >>> maps = [torch.zeros(1, 1, 4, 4)], [torch.zeros(1, 4, 4, 4)]
    >>> criterion(*maps, [{"boxes": torch.tensor([[0, 0, 16, 16]]), "labels": torch.tensor([2])}])["loss_rpn_cls"]  # ln 2
    tensor(0.6931)
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_rpn_cls", "sampled anchors", "sampled anchors on all ranks, at least 1"),
        Term("loss_rpn_box", "positives among the sampled anchors", "sampled anchors on all ranks, at least 1"),
    )
    BACKGROUND: ClassVar[str] = "one logit per anchor, background is its 0; anchors in ignore boxes are never sampled"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "torchvision": {
            "anchor_sizes": SIZES, "anchor_rounded": True, "loss_rpn_box": {"type": "SmoothL1Loss", "beta": 1 / 9},
            "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "low_quality": "anchor"},
            "normalizer": "local",
        },
        "detectron2": {
            "anchor_sizes": SIZES, "anchor_order": "size",
            "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "low_quality": "anchor"},
            "normalize_by": "requested", "normalizer": "local",
        },
        "mmdet": {"normalize_by": "floored", "normalizer": "local"},
    }  # fmt: skip

    def __init__(
        self,
        strides: Sequence[Number] = (4, 8, 16, 32, 64),
        *,
        anchor_sizes: Sequence[Sequence[Number]] | None = None,
        anchor_scales: Sequence[Number] = (8,),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchor_offset: float = 0.0,
        anchor_order: Literal["ratio", "size"] = "ratio",
        anchor_rounded: bool = False,
        delta_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        loss_rpn_cls: LossConfig | None = None,
        loss_rpn_box: LossConfig | None = None,
        assigner: AssignerConfig | None = None,
        sampler: Callable[[Assignment], Assignment] | None = None,
        normalize_by: Literal["sampled", "floored", "requested"] = "sampled",
        num_classes: int | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(weights, normalizer)
        check_option("RPNLoss", "normalize_by", normalize_by, NORMALIZE_BY)
        self.grid = AnchorGrid.of(
            "RPNLoss", strides, anchor_sizes, anchor_scales, anchor_ratios, anchor_offset, anchor_order, anchor_rounded
        )
        self.delta_weights = check_delta_weights("RPNLoss", delta_weights)
        self.loss_rpn_cls = self.build_term("loss_rpn_cls", loss_rpn_cls, {"type": "CrossEntropyLoss", "use_sigmoid": True})
        self.loss_rpn_box = self.build_term("loss_rpn_box", loss_rpn_box, "L1Loss")
        if not getattr(self.loss_rpn_cls, "use_sigmoid", True):
            raise ValueError("RPNLoss: there is one logit per anchor, so loss_rpn_cls must have use_sigmoid=True; got False")
        check_box_loss("RPNLoss", "loss_rpn_box", self.loss_rpn_box)
        self.assigner = self.build_assigner(assigner, MaxIoUAssigner(0.7, 0.3, 0.3, memory_budget=memory_budget))
        self.sampler = RandomSampler(256, 0.5) if sampler is None else sampler
        self.normalize_by = normalize_by
        self.num_classes = None if num_classes is None else check_classes("RPNLoss", num_classes)

    def forward(
        self,
        objectness: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Sequence[Target],
        anchors: GivenAnchors | None = None,
    ) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            objectness: per level logits ``[B, A, H, W]``, A anchors per cell.
            bbox_preds: per level deltas ``[B, A·4, H, W]``, the four of an anchor together.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]`` (not used), optional ``iscrowd [G]`` and
                ``ignore_boxes [K, 4]``.
            anchors: corners ``[P, 4]``, level by level, cell by cell, then the anchors of a cell (or a list per level), in
                the place of those that the options describe.

        Returns:
            LossDict with ``loss_rpn_cls``, ``loss_rpn_box`` and the metrics ``num_pos`` and ``num_sampled`` of the sample,
            ``num_gt``, ``num_gt_without_pos`` and ``mean_iou`` of the positives.
        """
        return self.finish(self.match(objectness, bbox_preds, targets, anchors))

    def match(
        self,
        objectness: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        targets: Sequence[Target] | PaddedTargets,
        anchors: GivenAnchors | None = None,
    ) -> RPNMatched:
        """Assign the anchors, sample and count. Arguments as in the call."""
        per_cell = self.grid.per_cell
        maps = {"objectness": objectness, "bbox_preds": bbox_preds}
        check_maps("RPNLoss", maps, {"objectness": per_cell, "bbox_preds": 4 * per_cell}, self.grid.strides)
        logits, deltas = (upcast(rows(levels, per_cell)) for levels in maps.values())
        priors = self.grid.anchors(map_sizes(objectness), deltas, anchors)
        truth = targets if isinstance(targets, PaddedTargets) else pad_targets(targets, deltas, self.num_classes)
        check_images("RPNLoss", truth, len(logits))
        scores = boxes = None
        if self.assigner.needs_predictions:
            scores, boxes = logits.detach(), delta_to_box(priors.boxes, deltas.detach(), self.delta_weights)
        assignment = self.assigner(priors, truth, scores, boxes)
        slots = chosen_rows(self.sampler(assignment), sample_limit(self.sampler, logits.shape[1]))
        sampled = in_slots(slots, assignment)
        return RPNMatched(
            counts=self._count(sampled, deltas)[None],
            minimum=(1.0,),
            truth=truth,
            assignment=assignment,
            priors=priors,
            scores=scores,
            boxes=boxes,
            sampled=sampled,
            logits=slots.take(logits),
            deltas=slots.take(deltas),
            references=slots.take(priors.boxes.expand(*logits.shape[:2], 4)),
            true_boxes=matched_rows(truth.boxes, sampled),
        )

    def _count(self, sampled: Assignment, like: Tensor) -> Tensor:
        """What the sums over the sample are divided by."""
        if self.normalize_by == "requested":
            images, slots = sampled.gt_index.shape
            return like.new_full((), images * getattr(self.sampler, "num", slots))
        parts = torch.stack((sampled.positive.sum(1), sampled.negative.sum(1)))
        return (parts.clamp(min=1) if self.normalize_by == "floored" else parts).sum().to(like.dtype)

    def compute(self, matched: RPNMatched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by ``normalizers [1]``."""
        (divisor,) = normalizers.unbind()
        sampled, positive = matched.sampled, matched.sampled.positive.reshape(-1)
        given = matched.references.reshape(-1, 4), matched.deltas.reshape(-1, 4), matched.true_boxes.reshape(-1, 4)
        iou = iou_of_positives(*given, positive, self.delta_weights)
        dtype = matched.logits.dtype
        terms = {
            "loss_rpn_cls": self.loss_rpn_cls(
                matched.logits.reshape(-1, 1),
                class_target(self.loss_rpn_cls, (~positive).long(), iou),
                weight=(~sampled.ignore).reshape(-1).to(dtype),
                avg_factor=divisor,
            ),
            "loss_rpn_box": self.loss_rpn_box(
                *box_pair(self.loss_rpn_box, *given, positive, self.delta_weights),
                weight=positive.to(dtype),
                avg_factor=divisor,
            ),
        }
        metrics = assignment_metrics(matched.truth, sampled, iou)
        return self.collect(terms, {**metrics, "num_sampled": (~sampled.ignore).sum()})
