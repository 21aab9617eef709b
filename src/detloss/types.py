"""Literals, the frozen :class:`Assignment` and the :class:`LossDict` that every criterion returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

__all__ = ["Assignment", "BoxFormat", "ClassWeights", "LossDict", "NormalizerMode", "Number", "Reduction", "Target"]

Reduction: TypeAlias = Literal["none", "mean", "sum"]
BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh"]
NormalizerMode: TypeAlias = Literal["sync", "local", "ema"]
Number: TypeAlias = int | float
ClassWeights: TypeAlias = Sequence[float] | Tensor
Target: TypeAlias = Mapping[str, Tensor]

TOTAL_KEYS = ("total_loss", "loss")


@dataclass(frozen=True)
class Assignment:
    """Which location (or anchor, or query) is responsible for which object, for a whole batch.

    Attributes:
        gt_index: ``[B, P]`` int64, 0-based index of the object within its image; −1 for negatives.
        ignore: ``[B, P]`` bool, locations that count neither as positive nor as negative.
        quality: ``[B, P]`` float score of the match where the assigner computes one, else ``None``.
    """

    gt_index: Tensor
    ignore: Tensor
    quality: Tensor | None = None

    @property
    def positive(self) -> Tensor:
        """``[B, P]`` bool: locations that are responsible for an object."""
        return self.gt_index >= 0

    @property
    def negative(self) -> Tensor:
        """``[B, P]`` bool: locations that are background."""
        return ~self.positive & ~self.ignore

    @property
    def num_pos(self) -> Tensor:
        """Number of positives in the batch on this rank (0-dim int64)."""
        return self.positive.sum()


class LossDict(dict[str, Tensor]):
    """The weighted scalar terms of a criterion; ``sum(losses.values())`` is the total.

    It is a ``dict`` of terms only, so it can be summed, iterated and logged like torchvision's loss dicts.
    ``losses["total_loss"]`` and ``losses["loss"]`` also give the total, without being counted among the terms.

    Args:
        terms: weighted, differentiable scalars by name (``loss_cls``, ``loss_box`` …).
        unweighted: the same terms before their weights; equal to ``terms`` when omitted.
        metrics: scalars that are never summed (``num_pos`` …); stored detached.
    """

    def __init__(
        self,
        terms: Mapping[str, Tensor],
        unweighted: Mapping[str, Tensor] | None = None,
        metrics: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(terms)
        taken = [key for key in TOTAL_KEYS if key in terms]
        if taken:
            raise ValueError(f"LossDict: {taken[0]!r} is the name of the sum of the terms; got it as a term")
        self.unweighted: dict[str, Tensor] = {k: v.detach() for k, v in (terms if unweighted is None else unweighted).items()}
        self.metrics: dict[str, Tensor] = {k: v.detach() for k, v in (metrics or {}).items()}

    @property
    def total_loss(self) -> Tensor:
        """The differentiable sum of all terms (0-dim)."""
        terms = list(self.values())
        if not terms:
            raise ValueError("LossDict: there is no term to sum; expected at least one")
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def __missing__(self, key: str) -> Tensor:
        if key in TOTAL_KEYS:
            return self.total_loss
        raise KeyError(f"{key!r}; the terms are {sorted(self)} (and 'total_loss' for their sum)")

    def log_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """``total_loss``, every weighted term and every metric as detached scalars, keys prefixed, ready for a logger."""
        values = {"total_loss": self.total_loss, **self, **self.metrics}
        return {f"{prefix}{name}": value.detach() for name, value in values.items()}

    def __repr__(self) -> str:
        return f"LossDict({dict.__repr__(self)}, metrics={self.metrics!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (LossDict, (dict(self), self.unweighted, self.metrics))
