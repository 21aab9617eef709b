"""The only place that knows ``mean``, ``sum``, ``avg_factor``, row weights and the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detloss.checks import check_float, check_option, check_positive, check_same_device, check_tensor, shape_of, upcast
from detloss.types import NormalizerMode, Number, Reduction
from detloss.values import value_checks_enabled

__all__ = [
    "Normalizer",
    "NormalizerConfig",
    "check_reduction",
    "check_weight",
    "global_count",
    "mute",
    "reduce_loss",
    "scale_of",
    "sum_over_ranks",
]

REDUCTIONS: tuple[str, ...] = get_args(Reduction)
NORMALIZERS: tuple[str, ...] = get_args(NormalizerMode)


def check_reduction(where: str, reduction: object, avg_factor: Number | Tensor | None = None) -> None:
    """Raise ``ValueError`` for an unknown reduction, ``avg_factor`` with ``sum``, or a bad ``avg_factor``."""
    check_option(where, "reduction", reduction, REDUCTIONS)
    if avg_factor is None:
        return
    if reduction == "sum":
        raise ValueError(f"{where}: avg_factor cannot be used with reduction='sum'; use 'mean', which divides by it")
    if isinstance(avg_factor, Tensor):
        if avg_factor.numel() != 1:
            raise ValueError(f"{where}: avg_factor must be a number or a one-element tensor; got {shape_of(avg_factor)}")
        if not value_checks_enabled(avg_factor):
            return
    elif not isinstance(avg_factor, (int, float, Real)):
        raise TypeError(f"{where}: avg_factor must be a number or a tensor; got {type(avg_factor).__name__}")
    # Written so that NaN fails too; math.isnan would break the graph of torch.compile for a number that changes.
    if not avg_factor >= 0:
        raise ValueError(f"{where}: avg_factor must be >= 0; got {float(avg_factor):g}")


def check_weight(where: str, weight: Tensor, shape: Sequence[int]) -> None:
    """Raise unless ``weight`` is a tensor over the leading dimensions of ``shape``, that of the element-wise loss."""
    check_tensor(where, "weight", weight)
    if tuple(weight.shape) != tuple(shape[: weight.ndim]):
        raise ValueError(
            f"{where}: weight must have the leading dimensions of the element-wise loss {list(shape)}; "
            f"got weight {shape_of(weight)}"
        )


def _align_weight(where: str, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """``weight`` over the leading dimensions of ``shape``, with ones appended so that it acts on rows."""
    check_weight(where, weight, shape)
    return weight.reshape(*weight.shape, *(1,) * (len(shape) - weight.ndim))


def mute(where: str, pred: Tensor, weight: Tensor | None, shape: Sequence[int], reduced_dim: int | None = None) -> Tensor:
    """Replace the predictions of zero-weight elements by 0, so that no inf or NaN of theirs reaches loss or gradient.

    Args:
        where: name of the loss, for error messages.
        pred: predictions.
        weight: row weights over the leading dimensions of ``shape``, or ``None`` for no change.
        shape: shape of the element-wise loss.
        reduced_dim: the dimension of ``pred`` that the element-wise loss no longer has, if any.
    """
    if weight is None:
        return pred
    aligned = _align_weight(where, weight, shape)
    if reduced_dim is not None:
        aligned = aligned.unsqueeze(reduced_dim)
    return torch.where(aligned == 0, 0.0, pred)


def reduce_loss(
    loss: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
    where: str = "reduce_loss",
) -> Tensor:
    """Weigh and reduce an element-wise loss; every loss ends with this call.

    ``none``: w·l; ``sum``: Σ w·l; ``mean``: Σ w·l / number of elements, or Σ w·l / avg_factor when it is given.

    Args:
        loss: element-wise loss of any shape; fp16 and bf16 are reduced in fp32.
        weight: weights over the leading dimensions of ``loss`` (``[N]`` acts on the rows of ``[N, 4]``). A weight of
            0 removes an element even when its loss is inf or NaN.
        avg_factor: what ``mean`` divides by; 0 gives a 0 that is connected to the graph. Not used by ``none``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        where: name for error messages.

    Raises:
        ValueError: unknown reduction, ``avg_factor`` with ``sum`` or negative, weight of another shape.

    >>> reduce_loss(torch.tensor([1.0, 3.0]), weight=torch.tensor([1.0, 0.0]))
    tensor(0.5000)
    >>> reduce_loss(torch.tensor([1.0, 3.0]), avg_factor=8)
    tensor(0.5000)
    """
    check_float(where, "loss", loss)
    check_reduction(where, reduction, avg_factor)
    loss = upcast(loss)
    if weight is not None:
        aligned = _align_weight(where, weight, loss.shape)
        check_same_device(where, loss, "weight", weight)
        loss = torch.where(aligned == 0, 0.0, loss) * aligned.to(loss.dtype)
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if avg_factor is None:
        return total / max(loss.numel(), 1)
    if isinstance(avg_factor, Tensor):
        factor = avg_factor.reshape(()).to(device=total.device, dtype=total.dtype)
        present = factor > 0
        return torch.where(present, total, 0.0) / torch.where(present, factor, 1.0)
    if avg_factor > 0:
        return total / avg_factor
    return torch.where(torch.zeros_like(total, dtype=torch.bool), total, 0.0)


def scale_of(reduction: Reduction, avg_factor: Number | Tensor | None, count: int) -> tuple[float, Tensor | None]:
    """What :func:`reduce_loss` multiplies Σ w·l by, for kernels that sum: (factor, divisor).

    The scale is ``factor``, or with a divisor (a one-element tensor, not read here) ``factor / divisor`` where it is above 0
    and 0 elsewhere.

    Args:
        reduction: ``"mean"`` or ``"sum"``.
        avg_factor: as for :func:`reduce_loss`.
        count: number of elements of the element-wise loss.
    """
    if reduction == "sum":
        return 1.0, None
    if isinstance(avg_factor, Tensor):
        return 1.0, avg_factor
    divisor = max(count, 1) if avg_factor is None else avg_factor
    return (1.0 / divisor if divisor > 0 else 0.0), None


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, one all-reduce; ``values`` itself when there is one process. Nothing is written in place."""
    if _world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def global_count(counts: Tensor, normalizer: Literal["sync", "local"] = "sync", minimum: float | Sequence[float] = 1.0) -> Tensor:
    """The normalisers of a criterion call: n = max(Σ over ranks of count, minimum) / number of ranks.

    DDP averages gradients over ranks; dividing each rank's sum by n therefore gives the gradient of one process that
    holds the whole batch, whatever the split, also when some or all ranks count 0. ``"local"`` gives max(count, minimum)
    of this rank. All counts of a call travel in one all-reduce.

    Args:
        counts: 1-D (or 0-dim) tensor of counts on this rank; not modified.
        normalizer: ``"sync"`` (all-reduced when ``torch.distributed`` is initialised) or ``"local"``.
        minimum: lower bound of the total count, one for all or one per count.
    """
    check_option("global_count", "normalizer", normalizer, ("sync", "local"))
    synced = normalizer == "sync"
    total = sum_over_ranks(counts.detach()) if synced else counts.detach()
    ranks = _world_size() if synced else 1
    least = [minimum] * total.numel() if isinstance(minimum, (int, float)) else minimum
    bounded = [one.clamp(min=low) for one, low in zip(total.reshape(-1), least, strict=True)]
    return torch.stack(bounded).reshape(total.shape) / ranks


class Normalizer(nn.Module):
    """What a criterion divides its terms by: :func:`global_count` of this call, or its moving average.

    ``"sync"``: the counts of all ranks; ``"local"``: of this rank; ``"ema"``: n ← momentum · n + (1 − momentum) · count over
    all ranks, starting at ``initial``, updated in training mode only and kept in the ``state_dict`` so that a resumed run
    goes on with it (detectron2's scheme, there per rank and lost on resume). One all-reduce a call in ``"sync"`` and
    ``"ema"``.

    Args:
        mode: ``"sync"``, ``"local"`` or ``"ema"``.
        momentum: share of the old average that is kept, in (0, 1).
        initial: first value of the average.
        size: how many counts there are.
    """

    average: Tensor

    def __init__(self, mode: NormalizerMode = "sync", momentum: float = 0.9, initial: float = 100.0, size: int = 1) -> None:
        super().__init__()
        check_option("Normalizer", "mode", mode, NORMALIZERS)
        check_positive("Normalizer", momentum=momentum, initial=initial)
        if momentum >= 1:
            raise ValueError(f"Normalizer: momentum must be below 1; got {momentum}")
        self.mode: NormalizerMode = mode
        self.momentum = momentum
        self._step: list[Tensor] | None = None
        self._fixed: Tensor | None = None
        if mode == "ema":
            self.register_buffer("average", torch.full((size,), float(initial), dtype=torch.float64))

    @classmethod
    def of(cls, config: NormalizerConfig, size: int, where: str) -> Normalizer:
        """A normalizer for ``size`` counts from a mode or from ``dict(mode=..., momentum=..., initial=...)``."""
        if isinstance(config, Mapping):
            unknown = set(config) - {"mode", "momentum", "initial"}
            if unknown:
                raise TypeError(f"{where}: normalizer takes mode, momentum and initial; got {sorted(unknown)}")
            return cls(size=size, **config)
        check_option(where, "normalizer", config, NORMALIZERS)
        return cls(config, size=size)

    def forward(self, counts: Tensor, minimum: Sequence[float]) -> Tensor:
        """The normalisers for ``counts`` on this rank, each at least ``minimum`` before it is divided by the ranks."""
        if self._step is not None:
            if not self._step:
                self._step.append(self._divisors(counts if self._fixed is None else self._fixed, minimum))
            return self._step[0].to(device=counts.device, dtype=counts.dtype)
        return self._divisors(counts, minimum)

    def _divisors(self, counts: Tensor, minimum: Sequence[float]) -> Tensor:
        if self.mode == "local":
            return global_count(counts, "local", minimum)
        now = global_count(counts, "sync", minimum)
        if self.mode == "sync":
            return now
        if self.training:
            self.average.lerp_(now.to(self.average), 1 - self.momentum)
        return self.average.to(device=counts.device, dtype=counts.dtype, copy=True)

    @contextmanager
    def fixed(self, counts: Tensor) -> Iterator[None]:
        """Within this context every call gets the normalisers of ``counts``, computed (and averaged) once."""
        self._fixed, self._step = counts, []
        try:
            yield
        finally:
            self._fixed = self._step = None

    def extra_repr(self) -> str:
        return f"{self.mode!r}, momentum={self.momentum}" if self.mode == "ema" else repr(self.mode)


NormalizerConfig: TypeAlias = NormalizerMode | Mapping[str, Any]
