"""Element-wise regression losses of box coordinates, offsets or distances.

Arguments shared by every function here: ``pred`` and ``target`` of the same shape, usually ``[N, 4]``; ``weight``,
``avg_factor`` and ``reduction`` as in :func:`detloss.reduction.reduce_loss`. ``none`` gives the shape of ``pred``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_non_negative, check_positive, check_same_shape
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.types import Number, Reduction

__all__ = ["balanced_l1_loss", "l1_loss", "mse_loss", "smooth_l1_loss"]

SMALLEST_BETA = 1e-30


def _of_difference(
    where: str,
    cost: Callable[[Tensor], Tensor],
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    avg_factor: Number | Tensor | None,
    reduction: Reduction,
    kernel: tuple[str, tuple[float, ...]] | None = None,
) -> Tensor:
    """Check and reduce ``cost(pred − target)``; ``kernel`` names the operation that computes the same, and its numbers."""
    check_same_shape(where, pred, target)

    def formula(pred: Tensor) -> Tensor:
        return cost(pred - target.to(pred.dtype))

    op, numbers = kernel or ("l1", ())
    call = Call(op, pred, target=target, weight=weight, numbers=numbers)
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction, fusible=kernel is not None)


def l1_loss(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """L1 loss: \\|pred − target\\|. A mean divides by the number of coordinates, 4 N for boxes ``[N, 4]``.

    >>> l1_loss(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    tensor(0.5000)
    """
    return _of_difference(
        "l1_loss", torch.abs, pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction, kernel=("l1", ())
    )


def mse_loss(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Squared error: (pred − target)².

    >>> mse_loss(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    tensor(1.)
    """
    return _of_difference(
        "mse_loss", torch.square, pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction, kernel=("mse", ())
    )


def smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    *,
    beta: float = 1.0,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Smooth L1 loss: d²/(2β) for d = \\|pred − target\\| < β, else d − β/2. It is Huber(β)/β; β = 0 is L1.

    Source: Fast R-CNN, Girshick 2015, arXiv:1504.08083.

    Args:
        beta: where the parabola ends, in the unit of ``pred``, >= 0.

    >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), reduction="none")
    tensor([0.1250, 2.5000])
    """
    check_non_negative("smooth_l1_loss", beta=beta)

    def cost(difference: Tensor) -> Tensor:
        if beta == 0:
            return difference.abs()
        return torch_f.smooth_l1_loss(difference, torch.zeros_like(difference), beta=beta, reduction="none")

    return _of_difference(
        "smooth_l1_loss", cost, pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction,
        # 1/beta must be a number of fp32; where it is not, the parabola is too narrow for its numbers anyway.
        kernel=("smooth_l1", (beta,)) if beta > SMALLEST_BETA else ("l1", ()),
    )  # fmt: skip


def balanced_l1_loss(
    pred: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    gamma: float = 1.5,
    beta: float = 1.0,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Balanced L1 loss: β f(d/β) with d = \\|pred − target\\| and b = e^(γ/α) − 1.

    f(u) = (α/b)(b u + 1) ln(b u + 1) − α u for u < 1, else γ u + γ/b − α. The gradient is 0 at d = 0, grows as
    α ln(b u + 1) and is bounded by γ. Equal to Libra R-CNN at β = 1.
    Source: Libra R-CNN, Pang et al. 2019, arXiv:1904.02701.

    Args:
        alpha: larger values give accurate boxes less gradient, > 0.
        gamma: upper bound of the gradient, > 0.
        beta: where outliers begin, in the unit of ``pred``, > 0.

    >>> balanced_l1_loss(torch.tensor([0.0, 2.0]), torch.zeros(2), reduction="none")  # 3 + 1.5 / (e³ − 1) − 0.5
    tensor([0.0000, 2.5786])
    """
    where = "balanced_l1_loss"
    check_positive(where, alpha=alpha, gamma=gamma, beta=beta)
    b = math.expm1(gamma / alpha)

    def cost(difference: Tensor) -> Tensor:
        u = difference.abs() / beta
        inner = u.clamp(max=1.0)
        inlier = alpha / b * (b * inner + 1) * torch.log1p(b * inner) - alpha * inner
        return beta * torch.where(u < 1, inlier, gamma * u + (gamma / b - alpha))

    return _of_difference(where, cost, pred, target, weight=weight, avg_factor=avg_factor, reduction=reduction)
