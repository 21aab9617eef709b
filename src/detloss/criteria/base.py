"""What all criteria share: match, count, compute; terms as objects, configurations or names; weights by name; words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from detloss.assigners.base import Assigner
from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_non_negative, check_option, did_you_mean
from detloss.criteria.explain import Explanation, explain
from detloss.reduction import Normalizer, NormalizerConfig
from detloss.registry import ASSIGNERS, LOSSES
from detloss.types import Assignment, LossDict

__all__ = [
    "AssignerConfig",
    "Counted",
    "Criterion",
    "LossConfig",
    "Matched",
    "Term",
    "assignment_metrics",
    "check_classes",
    "class_target",
    "kept_rows",
]

LossConfig = nn.Module | Mapping[str, Any] | str
AssignerConfig = Assigner | Mapping[str, Any] | str
C = TypeVar("C", bound="Criterion")


@dataclass(frozen=True)
class Term:
    """What :meth:`Criterion.describe` says of a term besides the loss itself."""

    name: str
    over: str
    normalizer: str


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A batch of which is known what its terms are divided by.

    Attributes:
        counts: ``[K]`` counted on this rank.
        minimum: lower bounds of the counts over all ranks.
    """

    counts: Tensor
    minimum: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Matched(Counted):
    """A batch after assignment: all that the terms need. Criteria extend it with their own fields.

    Attributes:
        truth: the objects.
        assignment: which prior is responsible for which object.
        priors: points, anchors or (for matched predictions) predicted boxes, with ``xy`` ``[P, 2]`` or ``[B, P, 2]``.
        scores: class logits ``[B, P, C]`` that the assigner looked at, if it did.
        boxes: predicted corners ``[B, P, 4]``, likewise.
    """

    truth: PaddedTargets
    assignment: Assignment
    priors: Any
    scores: Tensor | None = None
    boxes: Tensor | None = None


class Criterion(nn.Module):
    """Base of all criteria. A call is: match (assign and count), normalise (one all-reduce), compute, LossDict.

    A subclass lists its ``TERMS``, keeps the loss of each under the term's name and implements :meth:`match`, which takes
    the arguments of the call and returns a :class:`Matched`, and :meth:`compute`, which takes that and the normalisers and
    returns :meth:`collect` of the terms as its losses return them. The weight of a term multiplies what its loss returns
    (``loss_weight`` included).

    Args:
        weights: factor per term, 1 where none is given; a name that is not a term is a ``ValueError``.
        normalizer: ``"sync"`` over all ranks, ``"local"``, ``"ema"`` or ``dict(mode="ema", momentum=0.9, initial=100)``.
    """

    TERMS: ClassVar[tuple[Term, ...]] = ()
    BACKGROUND: ClassVar[str] = "classes 0…C−1, background C, locations in ignore boxes count neither way"
    COUNTS: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    assigner: Any = None
    preset_name: str | None = None

    def __init__(self, weights: Mapping[str, float] | None = None, normalizer: NormalizerConfig = "sync") -> None:
        super().__init__()
        self.weights = dict.fromkeys(self.term_names, 1.0)
        self.set_weights(weights or {})
        self.normalizer = Normalizer.of(normalizer, self.COUNTS, type(self).__name__)

    @classmethod
    def preset(cls: type[C], name: str, **options: Any) -> C:
        """The criterion with a framework's settings, ``name`` one of ``PRESETS``; ``options`` replace settings.

        For example ``FCOSLoss.preset("torchvision", num_classes=91)``.
        """
        check_option(f"{cls.__name__}.preset", "name", name, tuple(cls.PRESETS))
        criterion = cls(**{**cls.PRESETS[name], **options})
        criterion.preset_name = name
        return criterion

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms, in the order of the LossDict."""
        return tuple(term.name for term in self.TERMS)

    def match(self, *args: Any, **kwargs: Any) -> Counted:
        """Assign and count: the arguments of the call → what :meth:`compute` needs."""
        raise TypeError(f"{type(self).__name__} must implement match(predictions…, targets)")

    def compute(self, matched: Any, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by ``normalizers`` ``[K]``."""
        raise TypeError(f"{type(self).__name__} must implement compute(matched, normalizers) -> LossDict")

    def finish(self, matched: Counted) -> LossDict:
        """Normalise and compute."""
        return self.compute(matched, self.normalizer(matched.counts, matched.minimum))

    @torch.no_grad()
    def count(self, *args: Any, **kwargs: Any) -> Tensor:
        """``[K]`` the counts of a micro-batch on this rank, for :meth:`accumulate`. Arguments as in the call."""
        return self.match(*args, **kwargs).counts

    @contextmanager
    def accumulate(self, counts: Iterable[Tensor]) -> Iterator[None]:
        """Gradient accumulation that equals one large batch: within it every call divides by the counts of all micro-batches.

        The losses of the micro-batches then add up to the loss of the whole batch (divide by nothing else). ``counts``
        are what :meth:`count` gave for each micro-batch; criteria whose assignment does not look at predictions need only
        maps of the right shape for it. One all-reduce for the whole step.

        ::

            with criterion.accumulate([criterion.count(*maps, targets) for maps, targets in shapes]):
                for images, targets in micro_batches:
                    criterion(*model(images), targets).total_loss.backward()
            optimizer.step()
        """
        with self.normalizer.fixed(torch.stack(list(counts)).sum(0)):
            yield

    @torch.no_grad()
    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Which objects got how many positives, on which levels, and why some got none. Arguments as in the call."""
        matched = self.match(*args, **kwargs)
        if not isinstance(matched, Matched):
            raise TypeError(f"{type(self).__name__}.explain: predictions come matched, so there is no assignment to explain")
        return explain(self.assigner, matched.priors, matched.truth, matched.assignment, matched.scores, matched.boxes)

    def build_term(self, name: str, config: LossConfig | None, default: LossConfig) -> nn.Module:
        """The loss of the term ``name``. Its reduction must be ``mean``: what it divides by is the criterion's to say."""
        loss: nn.Module = LOSSES.build(default if config is None else config)
        reduction = getattr(loss, "reduction", "mean")
        if reduction != "mean":
            raise ValueError(f"{type(self).__name__}: {name} must have reduction='mean'; got {reduction!r}")
        return loss

    def build_assigner(self, config: AssignerConfig | None, default: AssignerConfig) -> Any:
        """The assigner from an object, configuration or name."""
        return ASSIGNERS.build(default if config is None else config)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Set the weights of the terms named; others keep theirs. Unknown names and negative numbers are errors."""
        where = type(self).__name__
        if not isinstance(weights, Mapping):
            raise TypeError(f"{where}: weights must be a dict of term name to number; got {type(weights).__name__}")
        for name, value in weights.items():
            if name not in self.term_names:
                valid = ", ".join(self.term_names)
                raise ValueError(f"{where}: no term {name!r} to weigh.{did_you_mean(name, self.term_names)} Terms: {valid}")
            check_non_negative(f"{where} weights", **{name: value})
        self.weights.update({name: float(value) for name, value in weights.items()})

    def collect(self, terms: Mapping[str, Tensor], metrics: Mapping[str, Tensor] | None = None) -> LossDict:
        """Weigh the terms and make the LossDict. ``unweighted`` has each term before its weight and ``loss_weight``."""
        factors = {name: self.weights[name] for name in terms}
        scale = {name: float(getattr(getattr(self, name, None), "loss_weight", 1.0)) for name in terms}
        unweighted = {name: term / scale[name] if scale[name] else term for name, term in terms.items()}
        weighted = {name: term if factors[name] == 1 else term * factors[name] for name, term in terms.items()}
        return LossDict(weighted, unweighted, metrics)

    def describe(self) -> str:
        """Each term in words: loss and options, formula, what it runs over and is divided by, eps, background, paper."""
        lines = [f"{type(self).__name__}: total_loss = " + " + ".join(self.term_names)]
        lines.append(f"preset: {self.preset_name or 'none'}; assigner: {self.assigner!r}; normalizer: {self.normalizer!r}")
        for term in self.TERMS:
            loss = getattr(self, term.name)
            entry = LOSSES.find(type(loss).__name__)
            lines.append(f"{term.name} = {self.weights[term.name]:g} × {loss!r}")
            facts = {
                "formula": entry.formula if entry else "as the module computes it",
                "over": term.over,
                "divided by": term.normalizer,
                "eps": getattr(loss, "eps", "none"),
                "background": self.BACKGROUND,
                "paper": (entry.paper if entry else "") or "none",
                "preset": self.preset_name or "none",
            }
            lines.extend(f"    {name}: {fact}" for name, fact in facts.items())
        return "\n".join(lines)


def check_classes(where: str, num_classes: object) -> int:
    """The number of classes; a ``ValueError`` unless it is an integer of at least 1."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"{where}: num_classes must be an integer >= 1; got {num_classes!r}")
    return num_classes


def assignment_metrics(truth: PaddedTargets, assignment: Assignment, iou: Tensor | None = None) -> dict[str, Tensor]:
    """``num_pos``, ``num_gt``, ``num_gt_without_pos`` and, from ``iou [B, P]`` (0 for negatives), ``mean_iou``."""
    hits = truth.labels.new_zeros(truth.valid.shape[0], truth.valid.shape[1] + 1)
    hits.scatter_add_(1, assignment.gt_index + 1, torch.ones_like(assignment.gt_index))
    metrics = {
        "num_pos": assignment.num_pos,
        "num_gt": truth.num_gt,
        "num_gt_without_pos": (truth.valid & (hits[:, 1:] == 0)).sum(),
    }
    if iou is not None:
        metrics["mean_iou"] = iou.sum() / assignment.num_pos.clamp(min=1)
    return metrics


def class_target(loss: nn.Module, labels: Tensor, score: Tensor) -> Any:
    """What a classification loss is fed: class indices, or (indices, scores) for losses that learn a quality."""
    if getattr(loss, "target_kind", "index") == "index":
        return labels.reshape(-1)
    return labels.reshape(-1), score.reshape(-1)


def kept_rows(truth: PaddedTargets, assignment: Assignment, dtype: torch.dtype, always: bool = False) -> Tensor | None:
    """Weights ``[B·P]``: 0 for ignored priors, else 1. ``None`` when nothing can be ignored, unless ``always``."""
    if not always and not truth.ignore_valid.shape[1]:
        return None
    return (~assignment.ignore).reshape(-1).to(dtype)
