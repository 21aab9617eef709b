"""Losses of instance masks, from logits.

Arguments shared by every function here: ``pred`` and ``target`` of the same shape, one mask per leading index (``[N, H, W]``
or ``[N, ...]``), targets in [0, 1] (bool and integer masks are fine); ``weight``, ``avg_factor`` and ``reduction`` as in
:func:`detloss.reduction.reduce_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from detloss.checks import (
    check_float,
    check_non_negative,
    check_same_device,
    check_same_shape,
    check_tensor,
    shape_of,
)
from detloss.functional.classification import binary_cross_entropy
from detloss.functional.targets import dense_target
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.reduction import check_reduction
from detloss.types import Number, Reduction
from detloss.values import check_class_indices, check_unit_interval

__all__ = ["dice_loss", "mask_bce_loss", "select_class_mask", "tversky_loss"]


def select_class_mask(where: str, pred: Tensor, label: Tensor) -> Tensor:
    """The mask of each object's class: ``[N, H, W]`` from logits ``[N, C, H, W]`` and class indices ``[N]``."""
    check_float(where, "pred", pred)
    check_tensor(where, "label", label)
    check_same_device(where, pred, "label", label)
    if pred.ndim != 4 or label.shape != pred.shape[:1]:
        raise ValueError(f"{where}: expected mask logits [N, C, H, W] and label [N]; got {shape_of(pred)} and {shape_of(label)}")
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"{where}: label must have an integer dtype; got {label.dtype}")
    check_class_indices(where, label, pred.shape[1], None, background=False)
    index = label.long().view(-1, 1, 1, 1).expand(-1, 1, *pred.shape[2:])
    return pred.gather(1, index).squeeze(1)


def mask_bce_loss(
    pred: Tensor,
    target: Tensor,
    *,
    label: Tensor | None = None,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mask loss of Mask R-CNN: binary cross entropy per pixel; ``none`` gives the shape of ``target``.

    Source: Mask R-CNN, He et al. 2017, arXiv:1703.06870.

    Args:
        pred: logits ``[N, H, W]`` of one mask per object, or ``[N, C, H, W]`` with ``label``.
        target: masks ``[N, H, W]``.
        label: class indices ``[N]`` that choose the mask of each object among C.

    >>> mask_bce_loss(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    tensor(0.6931)
    """
    where = "mask_bce_loss"
    check_reduction(where, reduction, avg_factor)
    if label is not None:
        pred = select_class_mask(where, pred, label)
    check_same_shape(where, pred, target)

    def formula(pred: Tensor) -> Tensor:
        return binary_cross_entropy(pred, dense_target(where, pred, target))

    call = Call("binary_cross_entropy", pred, target=target, weight=weight, numbers=(0.0,))
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction)


Shares: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _mask_loss(
    where: str,
    shares: Shares,
    pred: Tensor,
    target: Tensor,
    *,
    numbers: tuple[float, float, float, float],
    smooth: float,
    activated: bool,
    weight: Tensor | None,
    avg_factor: Number | Tensor | None,
    reduction: Reduction,
) -> Tensor:
    """Check, sum over the pixels of each mask, reduce: what the losses of whole masks share.

    Args:
        where: name of the loss, for error messages.
        shares: probabilities and targets ``[N, pixels]`` to (whole − part) and whole.
        pred: as for the losses.
        target: as for the losses.
        numbers: of the same loss as the operation ``tversky`` of :mod:`detloss.kernels.contract`.
        smooth: added to the whole.
        activated: as for the losses.
        weight: as for the losses.
        avg_factor: as for the losses.
        reduction: as for the losses.
    """
    check_same_shape(where, pred, target)
    if pred.ndim < 2:
        raise ValueError(f"{where}: masks must have shape [N, ...] with at least one pixel dimension; got {shape_of(pred)}")
    flat = target.flatten(1)

    def formula(pred: Tensor) -> Tensor:
        if activated:
            check_unit_interval(where, "probabilities (activated=True)", pred)
        missing, whole = shares(pred if activated else pred.sigmoid(), dense_target(where, pred, flat))
        # 1 − (part + s)/(whole + s) as (whole − part)/(whole + s), which is exactly 0 for a perfect and for an empty pair.
        tiny = torch.finfo(whole.dtype).tiny
        return missing / (whole + smooth if smooth >= tiny else (whole + smooth).clamp(min=tiny))

    call = Call("tversky", pred.flatten(1), target=flat, weight=weight, numbers=numbers)
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction, fusible=not activated)


def dice_loss(
    pred: Tensor,
    target: Tensor,
    *,
    squared: bool = False,
    smooth: float = 1.0,
    activated: bool = False,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Dice loss of each mask: 1 − (2 Σ p t + s)/(Σ p + Σ t + s); ``none`` gives ``[N]``. Two empty masks cost 0.

    Source: V-Net, Milletari et al. 2016, arXiv:1606.04797; the form with sums and s = 1 as in DETR, arXiv:2005.12872.

    Args:
        squared: Σ p² + Σ t² in the denominator, as in V-Net.
        smooth: s >= 0 in pixels; with 0 the loss of two empty masks is 0 still.
        activated: ``pred`` holds probabilities, not logits.

    >>> dice_loss(torch.full((1, 4), 100.0), torch.tensor([[1.0, 1.0, 0.0, 0.0]]), smooth=0.0)  # 1 − 4/6
    tensor(0.3333)
    """
    check_non_negative("dice_loss", smooth=smooth)

    def shares(p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # Sizes ahead of the product: the backward pass then adds their gradient to that of the product in place.
        p_size, t_size = (p.square(), t.square()) if squared else (p, t)
        whole = p_size.sum(-1) + t_size.sum(-1)
        return torch.sub(whole, (p * t).sum(-1), alpha=2), whole

    return _mask_loss(
        "dice_loss", shares, pred, target, numbers=(0.5, 0.5, 0.5 * smooth, float(squared)), smooth=smooth, activated=activated,
        weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip


def tversky_loss(
    pred: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = 1.0,
    activated: bool = False,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Tversky loss of each mask: 1 − (TP + s)/(TP + α FP + β FN + s); ``none`` gives ``[N]``.

    TP = Σ p t, FP = Σ p (1 − t), FN = Σ (1 − p) t; α = β = ½ and s = 0 is the Dice loss.
    Source: Salehi et al. 2017, arXiv:1706.05721.

    Args:
        alpha: price of false positives, >= 0.
        beta: price of false negatives, >= 0.
        smooth: s >= 0 in pixels.
        activated: ``pred`` holds probabilities, not logits.

    >>> tversky_loss(torch.full((1, 4), 100.0), torch.tensor([[1.0, 1.0, 0.0, 0.0]]), smooth=0.0)  # 1 − 2/3
    tensor(0.3333)
    """
    check_non_negative("tversky_loss", alpha=alpha, beta=beta, smooth=smooth)

    def shares(p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # FP = Σ p − TP and FN = Σ t − TP; p first, see dice_loss.
        p_size, t_size = p.sum(-1), t.sum(-1)
        common = (p * t).sum(-1)
        missing = alpha * (p_size - common) + beta * (t_size - common)
        return missing, common + missing

    return _mask_loss(
        "tversky_loss", shares, pred, target, numbers=(alpha, beta, smooth, 0.0), smooth=smooth, activated=activated,
        weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip
