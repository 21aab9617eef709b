"""Losses of a discrete distribution over a box side."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_float, check_real, check_same_device, shape_of
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.reduction import check_reduction
from detloss.types import Number, Reduction

__all__ = ["distribution_focal_loss"]


def distribution_focal_loss(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Distribution focal loss: (k + 1 − y) · CE(x, k) + (y − k) · CE(x, k + 1) with k = min(⌊y⌋, R − 1).

    The target is clamped to [0, R], so that every side has bins; the tensor given is not written.
    Source: Generalized Focal Loss, Li et al. 2020, arXiv:2006.04388.

    Args:
        pred: logits ``[N, R + 1]`` (or ``[..., R + 1]``) over the distances 0…R, R >= 1.
        target: distances ``[N]`` (or ``[...]``) in bins.

    Returns:
        ``none``: one value per side, ``[N]``.

    >>> distribution_focal_loss(torch.zeros(1, 5), torch.tensor([1.3]))  # ln 5
    tensor(1.6094)
    """
    where = "distribution_focal_loss"
    check_float(where, "pred", pred)
    check_real(where, "target", target)
    check_reduction(where, reduction, avg_factor)
    check_same_device(where, pred, "target", target)
    if pred.ndim < 1 or pred.shape[-1] < 2 or target.shape != pred.shape[:-1]:
        raise ValueError(
            f"{where}: expected logits [N, R + 1] over at least 2 bins and distances [N]; "
            f"got pred {shape_of(pred)} and target {shape_of(target)}"
        )
    last = pred.shape[-1] - 1

    def formula(pred: Tensor) -> Tensor:
        distance = target.to(pred.dtype).clamp(0, last)
        left = torch.nan_to_num(distance).floor().clamp(max=last - 1)
        share = (distance - left).unsqueeze(-1)
        index = left.long().unsqueeze(-1)
        log_p = torch_f.log_softmax(pred, dim=-1)
        return -((1 - share) * log_p.gather(-1, index) + share * log_p.gather(-1, index + 1)).squeeze(-1)

    call = Call("distribution_focal", pred, target=target, weight=weight)
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction)
