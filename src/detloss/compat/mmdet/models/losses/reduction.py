"""``weight_reduce_loss``, ``weighted_loss`` and ``reduce_loss``, and the ``forward`` that the losses share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss import reduction as engine
from detloss.compat.arguments import known_reduction
from detloss.losses.base import Loss
from detloss.types import Number, Reduction

__all__ = ["PeerLoss", "fitted_weight", "reduce_loss", "row_weight", "weight_reduce_loss", "weighted_loss"]


class PeerLoss(Loss):
    """The ``forward`` of mmdet's losses: that of :class:`detloss.losses.base.Loss`, with its error for a bad reduction."""

    def forward(
        self,
        pred: Tensor,
        target: Any,
        weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
        **extras: Any,
    ) -> Tensor:
        """Compute the loss; see :meth:`detloss.losses.base.Loss.forward`. An unknown override is an ``AssertionError``."""
        check_override(type(self).__name__, reduction_override)
        return super().forward(pred, target, weight, avg_factor, reduction_override, **extras)


def check_override(where: str, reduction_override: object) -> None:
    """Raise ``AssertionError``, as mmdet does, unless it is ``None`` or a reduction."""
    if reduction_override is not None:
        known_reduction(where, reduction_override, AssertionError)


def reduce_loss(loss: Tensor, reduction: Reduction) -> Tensor:
    """Reduce an element-wise loss by ``"none"``, ``"mean"`` or ``"sum"``; the mean of nothing is 0 (there NaN)."""
    return engine.reduce_loss(loss, reduction=reduction)


def weight_reduce_loss(
    loss: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """Weigh and reduce: :func:`detloss.reduction.reduce_loss`.

    Σ w l / ``avg_factor`` has no 1.2e-7 in the denominator: with 0 it is a 0 that is connected to the graph (there 8·10⁶
    times the sum); a negative one is a ``ValueError``. A weight of 0 removes elements that are inf or NaN.

    >>> weight_reduce_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.5]), avg_factor=5)
    tensor(0.5000)
    """
    return engine.reduce_loss(loss, weight=fitted_weight(weight, loss.shape), avg_factor=avg_factor, reduction=reduction)


def weighted_loss(loss_func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator that gives an element-wise ``loss_func(pred, target, **kwargs)`` the arguments ``weight``, ``reduction`` and
    ``avg_factor``, in this order.

    >>> @weighted_loss
    ... def absolute(pred, target):
    ...     return (pred - target).abs()
    >>> absolute(torch.tensor([0.0, 2.0, 3.0]), torch.ones(3), avg_factor=2)
    tensor(2.)
    """

    @functools.wraps(loss_func)
    def wrapper(
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        avg_factor: Number | Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        return weight_reduce_loss(loss_func(pred, target, **kwargs), weight, reduction, avg_factor)

    return wrapper


def fitted_weight(weight: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """``weight`` as the engine takes it: ``[N, 1]`` over the elements of ``[N, C]``, and ``[N · C]`` in their shape.

    Args:
        weight: over the leading dimensions of the element-wise loss, broadcastable to it, or flattened.
        shape: shape of the element-wise loss.
    """
    if weight is None:
        return None
    if weight.ndim == len(shape):
        return weight if tuple(weight.shape) == tuple(shape) else weight.expand(*shape)
    flat = torch.Size(shape).numel()
    return weight.reshape(*shape) if weight.ndim == 1 and len(weight) == flat != shape[0] else weight


def row_weight(weight: Tensor | None) -> Tensor | None:
    """Weights of boxes: those of four coordinates ``[N, 4]`` become their mean ``[N]``."""
    return weight.mean(-1) if weight is not None and weight.ndim > 1 else weight
