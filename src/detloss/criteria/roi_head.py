"""The criterion of a box head: what is in a proposal, and where exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.assigners.samplers import RandomSampler
from detloss.checks import check_float, check_option, shape_of, upcast
from detloss.criteria.anchor_head import box_pair, check_box_loss, check_delta_weights, iou_of_positives
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
from detloss.criteria.roi_samples import RoISamples, assign_proposals, sample_proposals
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import Assignment, LossDict, Target

__all__ = ["BACKGROUNDS", "RoIHeadLoss", "own_class_rows"]

BACKGROUNDS = ("last", "first")


@dataclass(frozen=True, kw_only=True)
class RoIMatched(Matched):
    """``samples`` with their predictions: ``logits [N, K]`` and the ``deltas [N, 4]`` of each one's own class."""

    samples: RoISamples
    logits: Tensor
    deltas: Tensor


@CRITERIA.register_module(
    family="two-stage",
    formula="softmax cross entropy (all samples) + box (positives), each / samples over all ranks",
    paper="Girshick 2015, arXiv:1504.08083",
)
class RoIHeadLoss(Criterion):
    """Criterion of a box head: ``losses = criterion(cls_logits, box_deltas, samples)``.

    The head works on a sample of the proposals, so the sample is drawn first::

        samples = criterion.sample(proposals, targets)
        features = roi_align(feature_map, samples.proposals, 7)
        losses = criterion(*box_head(features), samples)

    ``loss_cls`` runs over all samples, ``loss_box`` over the positives among them; each is a sum over the whole batch
    divided by the number of samples on all ranks. Predictions of proposals that you chose yourself (a validation loss) go
    in as ``criterion(cls_logits, box_deltas, proposals, targets)``: all of them count.

    Args:
        num_classes: number of classes C, without the background; labels are 0…C−1.
        class_agnostic: four deltas per proposal instead of four per class.
        background: where predictions have the background: in the ``"last"`` column of the logits (deltas: C × 4), or
            ``"first"`` in those of the logits and of the deltas ((C + 1) × 4), as torchvision's are.
        delta_weights: factors of the deltas (x, y, w, h).
        loss_cls: object, configuration or name; softmax cross entropy. Losses with a sigmoid get logits without a column
            for the background, quality losses the IoU of the predicted box as score.
        loss_box: likewise; L1Loss. It is fed deltas, or corners if it is of the IoU family.
        assigner: likewise; MaxIoUAssigner(0.5, 0.5) without low-quality matches.
        sampler: object that chooses from an assignment; RandomSampler(512, 0.25).
        append_ground_truth: :meth:`sample` adds the boxes of the objects to the proposals.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: weights by name of the term.
        memory_budget: bytes for the temporaries of the assignment.

    Presets: ``"torchvision"``, ``"detectron2"`` and ``"mmdet"``. Labels are 0…C−1 in all of them: torchvision's own data
    sets start at 1.

    >>> criterion = RoIHeadLoss(num_classes=2)
    >>> target = {"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0]]), "labels": torch.tensor([1])}
    >>> samples = criterion.sample([torch.tensor([[0.0, 0.0, 8.0, 9.0], [40.0, 40.0, 50.0, 50.0]])], [target])
    >>> samples.labels  # the proposal, the object itself, background
    tensor([1, 1, 2])
    >>> criterion(torch.zeros(3, 3), torch.zeros(3, 8), samples)["loss_cls"]  # ln 3
    tensor(1.0986)
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all samples", "samples on all ranks, at least 1"),
        Term("loss_box", "positives among the samples", "samples on all ranks, at least 1"),
    )
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "torchvision": {
            "background": "first", "loss_box": {"type": "SmoothL1Loss", "beta": 1 / 9}, "normalizer": "local",
        },
        "detectron2": {"normalizer": "local"},
        "mmdet": {"normalizer": "local"},
    }  # fmt: skip

    def __init__(
        self,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        background: Literal["last", "first"] = "last",
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        assigner: AssignerConfig | None = None,
        sampler: Callable[[Assignment], Assignment] | None = None,
        append_ground_truth: bool = True,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(weights, normalizer)
        check_option("RoIHeadLoss", "background", background, BACKGROUNDS)
        self.num_classes = check_classes("RoIHeadLoss", num_classes)
        self.class_agnostic = class_agnostic
        self.background = background
        self.delta_weights = check_delta_weights("RoIHeadLoss", delta_weights)
        self.loss_cls = self.build_term("loss_cls", loss_cls, "CrossEntropyLoss")
        self.loss_box = self.build_term("loss_box", loss_box, "L1Loss")
        check_box_loss("RoIHeadLoss", "loss_box", self.loss_box)
        half = MaxIoUAssigner(0.5, 0.5, match_low_quality=False, memory_budget=memory_budget)
        self.assigner = self.build_assigner(assigner, half)
        self.sampler = RandomSampler(512, 0.25) if sampler is None else sampler
        self.append_ground_truth = append_ground_truth

    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> RoISamples:
        """Choose what the head is to work on, positives first in every image. The host waits once for their number.

        Args:
            proposals: per image corners ``[R_i, 4]`` in pixels.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, optional ``iscrowd`` and ``ignore_boxes``.
        """
        return sample_proposals(
            "RoIHeadLoss", proposals, targets, self.assigner, self.sampler, self.num_classes, self.append_ground_truth
        )

    def forward(
        self,
        cls_logits: Tensor,
        box_deltas: Tensor,
        samples: RoISamples | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
    ) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            cls_logits: ``[N, C + 1]`` (``[N, C]`` for losses with a sigmoid), the samples of all images one after the other.
            box_deltas: ``[N, 4·C]``, or ``[N, 4]`` if class-agnostic.
            samples: what :meth:`sample` returned, or per image proposals ``[R_i, 4]``, which are then all assigned and count.
            targets: as in :meth:`sample`, with proposals only.

        Returns:
            LossDict with ``loss_cls``, ``loss_box`` and the metrics ``num_pos``, ``num_sampled``, ``num_gt``,
            ``num_gt_without_pos`` and ``mean_iou`` of the positives.
        """
        return self.finish(self.match(cls_logits, box_deltas, samples, targets))

    def match(
        self,
        cls_logits: Tensor,
        box_deltas: Tensor,
        samples: RoISamples | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
    ) -> RoIMatched:
        """Assign what is not assigned yet, and count. Arguments as in the call."""
        found = self.assigned(samples, targets)
        self._check(cls_logits, box_deltas, sum(found.counts))
        logits, deltas = upcast(cls_logits), upcast(box_deltas)
        if not self.class_agnostic:
            deltas = own_class_rows(deltas.unflatten(1, (-1, 4)), found.labels, self.background)
        return RoIMatched(
            counts=(~found.ignore).sum().to(logits.dtype)[None],
            minimum=(1.0,),
            truth=found.truth,
            assignment=found.assignment,
            priors=found.priors,
            samples=found,
            logits=logits,
            deltas=deltas,
        )

    def assigned(self, samples: RoISamples | Sequence[Tensor], targets: Sequence[Target] | None) -> RoISamples:
        """Samples as they are; proposals with the object that each is responsible for."""
        if isinstance(samples, RoISamples):
            if targets is not None:
                raise ValueError("RoIHeadLoss: samples know their targets; targets are given with a list of proposals only")
            return samples
        if targets is None:
            raise ValueError("RoIHeadLoss: expected targets with a list of proposals; got None (or give what sample() returned)")
        return assign_proposals("RoIHeadLoss", samples, targets, self.assigner, self.num_classes)

    def _check(self, cls_logits: Tensor, box_deltas: Tensor, count: int) -> None:
        where, classes = "RoIHeadLoss", self.num_classes
        for name, value in (("cls_logits", cls_logits), ("box_deltas", box_deltas)):
            check_float(where, name, value)
            if value.ndim != 2 or len(value) != count:
                raise ValueError(f"{where}: {name} must have shape [{count}, columns], one row per sample; got {shape_of(value)}")
        sigmoid = getattr(self.loss_cls, "use_sigmoid", None)
        columns = [classes + (not fixed) for fixed in ((True, False) if sigmoid is None else (sigmoid,))]
        if cls_logits.shape[1] not in columns:
            kind = {True: " (a sigmoid loss has no background column)", False: " (background included)", None: ""}[sigmoid]
            raise ValueError(
                f"{where}: cls_logits must have {' or '.join(map(str, columns))} columns for {classes} classes{kind}; "
                f"got {cls_logits.shape[1]}"
            )
        width = 4 if self.class_agnostic else 4 * (classes + (self.background == "first"))
        if box_deltas.shape[1] != width:
            kind = "class_agnostic=True" if self.class_agnostic else f"{classes} classes, background={self.background!r}"
            raise ValueError(f"{where}: box_deltas must have {width} columns ({kind}); got {box_deltas.shape[1]}")

    def compute(self, matched: RoIMatched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by ``normalizers [1]``."""
        (divisor,) = normalizers.unbind()
        samples, logits = matched.samples, matched.logits
        dtype, positive = logits.dtype, samples.gt_index >= 0
        deltas = matched.deltas
        given = samples.boxes.to(deltas.dtype), deltas, samples.gt_boxes.to(deltas.dtype)
        iou = iou_of_positives(*given, positive, self.delta_weights)
        labels = samples.labels
        if self.background == "first" and logits.shape[1] > self.num_classes:
            labels = torch.where(positive, labels + 1, 0)
        terms = {
            "loss_cls": self.loss_cls(
                logits,
                class_target(self.loss_cls, labels, iou),
                weight=(~samples.ignore).to(dtype),
                avg_factor=divisor,
            ),
            "loss_box": self.loss_box(
                *box_pair(self.loss_box, *given, positive, self.delta_weights),
                weight=positive.to(deltas.dtype),
                avg_factor=divisor,
            ),
        }
        metrics = assignment_metrics(samples.truth, samples.assignment, iou)
        return self.collect(terms, {**metrics, "num_sampled": (~samples.ignore).sum()})


def own_class_rows(values: Tensor, labels: Tensor, background: str) -> Tensor:
    """``[N, …]``: of ``values [N, K, …]`` the entry of each row's class; any entry for the background.

    Args:
        values: one entry per class, with the background as entry 0 if ``background`` is ``"first"``.
        labels: ``[N]`` classes 0…C−1, background C.
        background: ``"last"`` or ``"first"``.
    """
    entry = (labels + (background == "first")).clamp(max=values.shape[1] - 1)
    index = entry.view(-1, *(1,) * (values.ndim - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index).squeeze(1)
