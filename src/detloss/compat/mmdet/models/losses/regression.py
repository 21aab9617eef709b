"""The losses of single coordinates: L1, smooth L1, squared and balanced L1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.compat.mmdet.models.losses.reduction import PeerLoss, fitted_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.types import Number, Reduction

__all__ = [
    "BalancedL1Loss",
    "L1Loss",
    "MSELoss",
    "SmoothL1Loss",
    "balanced_l1_loss",
    "l1_loss",
    "mse_loss",
    "smooth_l1_loss",
]


def l1_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """\\|pred − target\\|: :func:`detloss.functional.l1_loss`; ``weight`` of the shape of ``pred``."""
    weight = fitted_weight(weight, pred.shape)
    return F.l1_loss(pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction)


def mse_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """(pred − target)²: :func:`detloss.functional.mse_loss`; ``weight`` of the shape of ``pred``."""
    weight = fitted_weight(weight, pred.shape)
    return F.mse_loss(pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction)


def smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    beta: float = 1.0,
) -> Tensor:
    """Smooth L1: :func:`detloss.functional.smooth_l1_loss`; ``weight`` of the shape of ``pred``, L1 for a ``beta`` of 0."""
    weight = fitted_weight(weight, pred.shape)
    return F.smooth_l1_loss(pred, target, beta=beta, weight=weight, avg_factor=avg_factor, reduction=reduction)


def balanced_l1_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    beta: float = 1.0,
    alpha: float = 0.5,
    gamma: float = 1.5,
) -> Tensor:
    """Balanced L1: :func:`detloss.functional.balanced_l1_loss`; ``weight`` of the shape of ``pred``.

    For ``beta`` = 1 the number is that of mmdet; for others mmdet's has a step at β, and below 0 for β = 2.
    """
    return F.balanced_l1_loss(
        pred,
        target,
        alpha=alpha,
        gamma=gamma,
        beta=beta,
        weight=fitted_weight(weight, pred.shape),
        avg_factor=avg_factor,
        reduction=reduction,
    )


class _Coordinates(PeerLoss):
    def compute(self, pred: Tensor, target: Tensor, weight: Tensor | None = None, **arguments: Any) -> Tensor:
        return super().compute(pred, target, weight=fitted_weight(weight, pred.shape), **arguments)


@MODELS.register_module()
class L1Loss(_Coordinates, engine.L1Loss):
    """L1 loss; see :func:`l1_loss`."""


@MODELS.register_module()
class MSELoss(_Coordinates, engine.MSELoss):
    """Squared error; see :func:`mse_loss`."""


@MODELS.register_module()
class SmoothL1Loss(_Coordinates, engine.SmoothL1Loss):
    """Smooth L1 loss; see :func:`smooth_l1_loss`."""


@MODELS.register_module()
class BalancedL1Loss(_Coordinates, engine.BalancedL1Loss):
    """Balanced L1 loss; see :func:`balanced_l1_loss`."""
