"""Further losses of instance masks, from logits; the shared arguments are described in :mod:`detloss.functional.mask`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_same_shape, shape_of, upcast
from detloss.functional.focal import sigmoid_focal_loss
from detloss.functional.mask import select_class_mask
from detloss.reduction import check_reduction, mute, reduce_loss
from detloss.types import Number, Reduction
from detloss.values import value_checks_enabled, within

__all__ = ["lovasz_hinge_loss", "mask_focal_loss"]


def mask_focal_loss(
    pred: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    label: Tensor | None = None,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sigmoid focal loss of every pixel: −α_t (1 − p_t)^γ ln p_t; ``none`` gives the shape of ``target``.

    Source: Lin et al. 2017, arXiv:1708.02002; on masks as in DETR, Carion et al. 2020, arXiv:2005.12872.

    Args:
        pred: logits ``[N, H, W]`` of one mask per object, or ``[N, C, H, W]`` with ``label``.
        target: masks ``[N, H, W]``.
        gamma: focusing exponent, >= 0.
        alpha: weight of the pixels of the object in [0, 1], the others get 1 − α; ``None`` for no weights.
        label: class indices ``[N]`` that choose the mask of each object among C.

    >>> mask_focal_loss(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))  # 0.25 · ln 2 / 4
    tensor(0.0433)
    """
    where = "mask_focal_loss"
    if label is not None:
        pred = select_class_mask(where, pred, label)
    check_same_shape(where, pred, target)
    return sigmoid_focal_loss(pred, target, gamma=gamma, alpha=alpha, weight=weight, avg_factor=avg_factor, reduction=reduction)


def _check_binary(where: str, target: Tensor, ignore_index: int) -> bool:
    """Raise unless all values are 0, 1 or ignored; whether they are known to be 0 and 1 only."""
    if target.dtype == torch.bool:
        return True
    if not value_checks_enabled(target) or target.numel() == 0:
        return False
    if within(target * target - target, 0, 0):  # also in integers that wrap around: t and t − 1 have no common divisor
        return True
    bad = (target != 0) & (target != 1) & (target != ignore_index) & ~target.isnan()
    if bool(bad.any()):
        at: Sequence[int] = bad.nonzero()[0].tolist()
        value = target[tuple(at)].item()
        raise ValueError(f"{where}: masks must hold 0, 1 or ignore_index={ignore_index}; got {value:g} at {at}")
    return False


def lovasz_hinge_loss(
    pred: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Lovász hinge of each mask: the Lovász extension of 1 − IoU at the hinge errors; ``none`` gives ``[N]``.

    With errors m = max(1 − x·(2t − 1), 0) in falling order, Σ_k m_k (J_k − J_k−1), where J_k = 1 − I_k/U_k is the loss of
    the mask with the k largest errors wrong: I_k = G less the pixels of the object among them, U_k = G plus the others,
    G the size of the object. Where G = 0 it is the largest error. Source: Berman et al. 2018, arXiv:1705.08790.

    Args:
        target: masks of 0 and 1 (bool, integers or floats).
        ignore_index: value of pixels that count neither way.

    >>> lovasz_hinge_loss(torch.tensor([[2.0, -0.5, -2.0]]), torch.tensor([[1, 1, 0]]))  # 1.5 · 1/2
    tensor(0.7500)
    """
    where = "lovasz_hinge_loss"
    check_same_shape(where, pred, target)
    check_reduction(where, reduction, avg_factor)
    if pred.ndim < 2:
        raise ValueError(f"{where}: masks must have shape [N, ...] with at least one pixel dimension; got {shape_of(pred)}")
    all_binary = _check_binary(where, target, ignore_index)
    pred = mute(where, upcast(pred).flatten(1), weight, pred.shape[:1], reduced_dim=-1)
    target = target.flatten(1)
    inside = target == 1
    side = inside.to(pred.dtype) * 2 - 1
    hinge = 1 - pred * side
    if not all_binary:
        # Ignored pixels come last, where they change no step of the others and cost nothing. A target that is NaN stays NaN.
        hinge = hinge.masked_fill(~(inside | (target == 0)), -torch.inf)
        if target.is_floating_point():
            hinge += target - target
    falling, order = hinge.sort(dim=-1, descending=True, stable=True)
    step, wrong = _jaccard_steps(inside.gather(-1, order), pred.dtype), torch_f.relu(falling)
    return reduce_loss((wrong * step).sum(-1), weight=weight, avg_factor=avg_factor, reduction=reduction, where=where)


def _jaccard_steps(inside: Tensor, dtype: torch.dtype) -> Tensor:
    """J_k − J_k−1 for pixels in order of error: 1/U_k for one of the object, I_k/(U_k U_k−1) for another."""
    pixels = inside.shape[-1]
    # Counts, exact in a dtype whose integers go that far.
    count = dtype if pixels * torch.finfo(dtype).eps <= 1 else torch.float64
    hot = inside.to(count)
    found = hot.cumsum(-1)
    size = found[..., -1:].clone()
    intersection = size - found
    union = intersection + torch.arange(1, pixels + 1, device=inside.device, dtype=count)
    cold = found.copy_(hot).neg_().add_(1)
    before = (union - 1).mul_(cold).clamp_(min=1)  # of another pixel; 1 for one of the object
    step = intersection.mul_(cold).add_(hot).div_(union.mul_(before))
    step[..., :1] += size == 0  # the first pixel of a mask without object has no union before it: its step is 1
    return step.to(dtype)
