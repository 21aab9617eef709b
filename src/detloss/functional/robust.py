"""Robust regression losses besides those of :mod:`detloss.functional.regression`, which describes the shared arguments."""

from __future__ import annotations

import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_positive, check_same_shape
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.types import Number, Reduction

__all__ = ["huber_loss"]


def huber_loss(
    pred: Tensor,
    target: Tensor,
    *,
    delta: float = 1.0,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Huber loss: d²/2 for d = \\|pred − target\\| < δ, else δ (d − δ/2). It is δ · SmoothL1(β = δ).

    Source: Huber 1964, doi:10.1214/aoms/1177703732.

    Args:
        delta: where the parabola ends, in the unit of ``pred``, > 0.

    >>> import torch
    >>> huber_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), delta=2.0, reduction="none")  # 0.5²/2 and 2 · (3 − 1)
    tensor([0.1250, 4.0000])
    """
    where = "huber_loss"
    check_positive(where, delta=delta)
    check_same_shape(where, pred, target)

    def formula(pred: Tensor) -> Tensor:
        return torch_f.huber_loss(pred, target.to(pred.dtype), delta=delta, reduction="none")

    call = Call("huber", pred, target=target, weight=weight, numbers=(delta,))
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction)
