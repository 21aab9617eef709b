"""The criterion for predictions that are already matched to their targets: classes, boxes, objectness, masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from detloss.checks import check_tensor, did_you_mean, shape_of, upcast
from detloss.criteria.base import Counted, Criterion, LossConfig, Term, check_classes
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict

__all__ = ["MultiPartLoss"]

PARTS = ("cls", "box", "obj", "mask")
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class PartsMatched(Counted):
    """Predictions and targets of the parts as rows, and which rows count: all, or those on foreground (``None``: every row)."""

    rows: Mapping[str, Any]
    keep: Tensor | None
    foreground: Tensor | None


@CRITERIA.register_module(family="matched", formula="w_cls loss_cls + w_box loss_box + w_obj loss_obj + w_mask loss_mask")
class MultiPartLoss(Criterion):
    """Total loss of matched predictions and its parts: ``losses = criterion(predictions, targets)``.

    ``predictions`` may hold ``cls_pred [..., K]`` logits, ``box_pred [..., 4]``, ``obj_pred [...]`` logits and
    ``mask_pred [..., *pixels]`` logits; ``targets`` the matching ``cls_target [...]``, ``box_target [..., 4]``,
    ``obj_target [...]`` and ``mask_target [..., *pixels]``. The leading dimensions (batch, boxes …) are the same for all
    parts; of masks alone the last dimension is taken as the pixels. Only the parts given are computed; a part without its
    target, or the reverse, is an error.

    Where ``cls_target`` is given, boxes and masks count on foreground only: the class index ``num_classes`` is the
    background (with softmax it is the last of K = num_classes + 1 columns); −100 and the ``ignore_index`` of ``loss_cls`` are
    ignored. Each part is a mean over the elements that count, on all ranks, and a connected 0 when there are none.

    Args:
        num_classes: number of classes, labels 0…num_classes − 1.
        loss_cls: object, configuration or name; softmax CrossEntropyLoss.
        loss_box: likewise; SmoothL1Loss.
        loss_obj: likewise; binary cross entropy.
        loss_mask: likewise; MaskBCELoss.
        cls_weight: weight of ``loss_cls``.
        box_weight: weight of ``loss_box``.
        obj_weight: weight of ``loss_obj``.
        mask_weight: weight of ``loss_mask``.
        weights: weights by name of the term (``{"loss_box": 2.0}``); they replace the four above.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.

    >>> criterion = MultiPartLoss(num_classes=2)
    >>> losses = criterion({"cls_pred": torch.zeros(1, 3, 2)}, {"cls_target": torch.tensor([[0, 1, 1]])})
    >>> losses.total_loss  # ln 2
    tensor(0.6931)
    """

    COUNTS: ClassVar[int] = 2
    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all boxes that are not ignored", "their number"),
        Term("loss_box", "foreground boxes", "their number × 4 coordinates (× 1 for the IoU family)"),
        Term("loss_obj", "all boxes that are not ignored", "their number"),
        Term("loss_mask", "masks of foreground boxes", "their pixels (their number for losses of whole masks)"),
    )

    def __init__(
        self,
        num_classes: int,
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        loss_obj: LossConfig | None = None,
        loss_mask: LossConfig | None = None,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        obj_weight: float = 0.2,
        mask_weight: float = 0.5,
        weights: Mapping[str, float] | None = None,
        normalizer: NormalizerConfig = "sync",
    ) -> None:
        super().__init__(normalizer=normalizer)
        self.set_weights({"loss_cls": cls_weight, "loss_box": box_weight, "loss_obj": obj_weight, "loss_mask": mask_weight})
        self.set_weights(weights or {})
        self.num_classes = check_classes("MultiPartLoss", num_classes)
        self.loss_cls = self.build_term("loss_cls", loss_cls, "CrossEntropyLoss")
        self.loss_box = self.build_term("loss_box", loss_box, "SmoothL1Loss")
        self.loss_obj = self.build_term("loss_obj", loss_obj, {"type": "CrossEntropyLoss", "use_sigmoid": True})
        self.loss_mask = self.build_term("loss_mask", loss_mask, "MaskBCELoss")

    def forward(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> LossDict:
        """Compute the parts that ``predictions`` and ``targets`` hold.

        Raises:
            ValueError: an unknown or unpaired key, no part at all, or shapes that do not match.
        """
        return self.finish(self.match(predictions, targets))

    def match(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> PartsMatched:
        """Pair the parts and count the rows that count and those on foreground. Arguments as in the call."""
        parts = _pair(predictions, targets)
        lead = _leading_shape(parts)
        keep = foreground = None
        if "cls" in parts:
            label = parts["cls"][1]
            own_ignored = getattr(self.loss_cls, "ignore_index", IGNORED)
            keep = ((label != IGNORED) & (label != own_ignored)).reshape(-1)
            foreground = keep & (label != self.num_classes).reshape(-1)
        rows = {name: tuple(x.reshape(lead.numel(), *x.shape[len(lead) :]) for x in pair) for name, pair in parts.items()}
        like = next(iter(parts.values()))[0]
        every = torch.full((), lead.numel(), device=like.device)
        all_kept, positives = (every if mask is None else mask.sum() for mask in (keep, foreground))
        counts = torch.stack((all_kept, positives)).to(upcast(like).dtype)
        return PartsMatched(counts=counts, minimum=(1.0, 1.0), rows=rows, keep=keep, foreground=foreground)

    def compute(self, matched: PartsMatched, normalizers: Tensor) -> LossDict:
        """Each part: the sum over the rows that count, divided by their number and by the elements of a row."""
        kept, positives = normalizers.unbind()
        terms = {}
        for name, (pred, target) in matched.rows.items():
            on_foreground = name in ("box", "mask")
            counted = matched.foreground if on_foreground else matched.keep
            terms[f"loss_{name}"] = self._part(name, pred, target, counted, positives if on_foreground else kept)
        return self.collect(terms, {"num_pos": matched.counts[1].long()})

    def _part(self, name: str, pred: Tensor, target: Tensor, counted: Tensor | None, count: Tensor) -> Tensor:
        loss = getattr(self, f"loss_{name}")
        weight = None if counted is None else counted.to(upcast(pred).dtype)
        if name == "cls" and counted is not None:
            target = torch.where(counted, target, 0)  # a class that stands in for ignored labels, whose weight is 0
        # Elements per row as this loss counts them (4 for L1, 1 for IoU), read off its own result for no rows.
        per_row = loss(pred[:0], target[:0], reduction_override="none").shape[1:].numel()
        term: Tensor = loss(pred, target, weight=weight, avg_factor=count * per_row)
        return term


def _pair(predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    for kind, given in (("pred", predictions), ("target", targets)):
        if not isinstance(given, Mapping):
            raise TypeError(f"MultiPartLoss: expected dicts of tensors; got {type(given).__name__}")
        valid = [f"{part}_{kind}" for part in PARTS]
        for key, value in given.items():
            if key not in valid:
                raise ValueError(f"MultiPartLoss: unknown key {key!r}.{did_you_mean(key, valid)} Valid keys: {valid}")
            check_tensor("MultiPartLoss", key, value)
    parts = {}
    for part in PARTS:
        names = (f"{part}_pred", f"{part}_target")
        present = (names[0] in predictions, names[1] in targets)
        if present[0] != present[1]:
            missing, there = (names[1], names[0]) if present[0] else names
            raise ValueError(f"MultiPartLoss: {there!r} was given without {missing!r}")
        if all(present):
            parts[part] = (predictions[names[0]], targets[names[1]])
    if not parts:
        raise ValueError(f"MultiPartLoss: nothing to compute; expected at least one of {[f'{p}_pred' for p in PARTS]}")
    return parts


def _leading_shape(parts: Mapping[str, tuple[Tensor, Tensor]]) -> torch.Size:
    """The dimensions that all parts share: batch, boxes and the like."""
    shapes: dict[str, torch.Size] = {}
    for name, (pred, target) in parts.items():
        trailing = {"cls": 1, "box": 1, "obj": 0, "mask": 1}[name]
        if pred.ndim < trailing:
            raise ValueError(f"MultiPartLoss: {name}_pred has too few dimensions; got {shape_of(pred)}")
        expected = pred.shape[:-1] if name == "cls" else pred.shape
        if target.shape != expected:
            raise ValueError(
                f"MultiPartLoss: {name}_target must have shape {list(expected)} for {name}_pred {shape_of(pred)}; "
                f"got {shape_of(target)}"
            )
        shapes[name] = pred.shape[: pred.ndim - trailing]
    whole = [shape for name, shape in shapes.items() if name != "mask"]
    lead = whole[0] if whole else shapes["mask"]
    for name, shape in shapes.items():
        if (shape[: len(lead)] if name == "mask" else shape) != lead:
            raise ValueError(f"MultiPartLoss: all parts must share the leading dimensions {list(lead)}; {name} has {list(shape)}")
    return lead
