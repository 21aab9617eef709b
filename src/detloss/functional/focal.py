"""Focal losses: cross entropies that fade for examples the classifier already gets right, from logits.

The arguments shared by all classification losses are described in :mod:`detloss.functional.classification`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_non_negative, shape_of
from detloss.functional.classification import binary_cross_entropy, check_smoothing
from detloss.functional.targets import (
    CLASS_DIM,
    ClassIndex,
    as_targets,
    class_index,
    class_weights,
    dense_target,
    flat,
    is_class_index,
    of_own_class,
    put_positive,
)
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.reduction import check_reduction
from detloss.types import ClassWeights, Number, Reduction
from detloss.values import check_unit_interval

__all__ = ["alpha_factors", "as_logits", "power", "sigmoid_focal_loss", "softmax_focal_loss"]


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` for ``base`` in [0, 1] with a gradient that stays finite at 0, for every exponent >= 0."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent in (1.0, 2.0):
        return base if exponent == 1 else base * base
    return base.clamp(min=torch.finfo(base.dtype).tiny).pow(exponent)


def as_logits(where: str, pred: Tensor, activated: bool) -> Tensor:
    """``pred`` itself, or the logits of probabilities (``activated``), which are kept off 0 and 1 by the dtype's epsilon."""
    if not activated:
        return pred
    check_unit_interval(where, "probabilities (activated=True)", pred)
    return torch.logit(pred, eps=torch.finfo(pred.dtype).eps)


def alpha_factors(
    where: str, alpha: float | Sequence[float] | Tensor | None, pred: Tensor
) -> tuple[Tensor | float | None, Tensor | float | None]:
    """Factors of positives and negatives: α and 1 − α, per class when ``alpha`` is a sequence, ``None`` without."""
    if alpha is None:
        return None, None
    if isinstance(alpha, (int, float)):
        check_non_negative(where, alpha=alpha)
        if alpha > 1:
            raise ValueError(f"{where}: alpha must lie in [0, 1]; got {alpha}")
        return float(alpha), 1.0 - alpha
    values = class_weights(where, "alpha", alpha, pred)
    if values is None:
        return None, None
    check_unit_interval(where, "alpha", values)
    return values, 1 - values


def _times(loss: Tensor, factor: Tensor | float | None) -> Tensor:
    return loss if factor is None else loss * factor


def _number(factor: Tensor | float | None) -> float:
    """A factor that is one for all classes; 1 where there is none or one per class."""
    return factor if isinstance(factor, float) else 1.0


def _every_class(factor: Tensor | float | None, pred: Tensor) -> Tensor | None:
    """A factor as ``[C]``, one number per class."""
    if isinstance(factor, float):
        return torch.full((pred.shape[CLASS_DIM],), factor, dtype=torch.float32, device=pred.device)
    return flat(factor)


def sigmoid_focal_loss(
    pred: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | Tensor | None = 0.25,
    class_weight: ClassWeights | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    activated: bool = False,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sigmoid focal loss: −α_t (1 − p_t)^γ ln p_t for every class on its own.

    p_t = σ(x) and α_t = α for positives, 1 − σ(x) and 1 − α for negatives; the index C (background) is negative in every
    column. For dense targets y, p_t = y σ(x) + (1 − y)(1 − σ(x)), likewise α_t, and −ln p_t becomes the binary cross
    entropy. With γ = 0 and ``alpha=None`` this is :func:`binary_cross_entropy_loss`. ``none`` gives the shape of ``pred``.
    Source: Lin et al. 2017, arXiv:1708.02002.

    Args:
        gamma: focusing exponent, >= 0.
        alpha: weight of the positives in [0, 1] (negatives get 1 − α), one per class or one for all; ``None`` for no weights.
        class_weight: further weighs the positives of each class.
        label_smoothing: ε; the cross entropy is taken against (1 − ε) y + ε/2, p_t and α_t against y.
        activated: ``pred`` holds probabilities σ(x), not logits; logits keep more digits.

    >>> sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([0]), reduction="none")  # 0.25 · ln 2 / 4 and 0.75 · ln 2 / 4
    tensor([[0.0433, 0.1300]])
    """
    where = "sigmoid_focal_loss"
    check_non_negative(where, gamma=gamma)
    check_smoothing(where, label_smoothing)
    check_reduction(where, reduction, avg_factor)
    indexed = is_class_index(where, pred, target)
    per_class = class_weights(where, "class_weight", class_weight, pred)
    high, low = alpha_factors(where, alpha, pred)

    def formula(pred: Tensor) -> Tensor:
        pred = as_logits(where, pred, activated)
        if not indexed:
            y = dense_target(where, pred, target)
            entropy = binary_cross_entropy(pred, y * (1 - label_smoothing) + label_smoothing / 2, per_class)
            missing = y * (-pred).sigmoid() + (1 - y) * pred.sigmoid()
            loss = power(missing, gamma) * entropy
            return loss if high is None or low is None else loss * (high * y + low * (1 - y))
        found = class_index(where, pred, target, ignore_index, background=True)
        pred = torch.where(found.valid, pred, 0.0)
        negative = power(pred.sigmoid(), gamma) * binary_cross_entropy(pred, label_smoothing / 2, per_class)
        own = of_own_class(pred, found)
        own_weight = None if per_class is None else of_own_class(per_class, found)
        own_alpha = of_own_class(high, found) if isinstance(high, Tensor) else high
        positive = power((-own).sigmoid(), gamma) * binary_cross_entropy(own, 1 - label_smoothing / 2, own_weight)
        loss = put_positive(_times(negative, low), _times(positive, own_alpha), found)
        return torch.where(found.valid, loss, 0.0)

    call = Call(
        "sigmoid_focal", pred, **as_targets(target, indexed), weight=weight, class_weight=flat(per_class), alpha=flat(high),
        ignore_index=ignore_index, numbers=(gamma, _number(high), _number(low), label_smoothing),
    )  # fmt: skip
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction, fusible=not activated)


def _odds_against(pred: Tensor, target: ClassIndex) -> Tensor:
    """ln((1 − p_y)/p_y) of softmax, so that 1 − p_y = σ(odds) and −ln p_y = −ln σ(−odds) keep all digits as p_y nears 1."""
    lowest = pred.new_full((), torch.finfo(pred.dtype).min)
    others = put_positive(pred, lowest, target)
    return torch.logsumexp(others, CLASS_DIM, keepdim=True) - of_own_class(pred, target)


def _softmax_terms(pred: Tensor, gamma: float) -> Tensor:
    """(1 − p)^γ · (−ln p) of every column of softmax."""
    log_p = torch_f.log_softmax(pred, dim=CLASS_DIM)
    return power(-torch.expm1(log_p), gamma) * -log_p


def softmax_focal_loss(
    pred: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | Tensor | None = 0.25,
    class_weight: ClassWeights | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax focal loss: −α (1 − p_y)^γ ln p_y with p = softmax(x); ``none`` gives ``[N]`` or ``[B, H, W]``.

    Every column is a class, a background class included. For dense targets the sum over classes of y_c times the term of
    class c. Source: Lin et al. 2017, arXiv:1708.02002, with softmax in the place of the sigmoid.

    Args:
        gamma: focusing exponent, >= 0.
        alpha: factor of all classes, or one per class; ``None`` for no weights.
        class_weight: further factor per class.
        label_smoothing: ε; the target becomes (1 − ε) y + ε/C.

    >>> softmax_focal_loss(torch.zeros(1, 2), torch.tensor([0]), alpha=None)  # ln 2 / 4
    tensor(0.1733)
    """
    where = "softmax_focal_loss"
    check_non_negative(where, gamma=gamma)
    check_smoothing(where, label_smoothing)
    check_reduction(where, reduction, avg_factor)
    indexed = is_class_index(where, pred, target)
    if pred.ndim not in (2, 4):
        raise ValueError(f"{where}: logits must be [N, C] or [B, C, H, W]; got {shape_of(pred)}")
    per_class, high = class_weights(where, "class_weight", class_weight, pred), alpha_factors(where, alpha, pred)[0]

    def formula(pred: Tensor) -> Tensor:
        factor = _times(_times(torch.ones_like(pred[:1]), high), per_class)
        if indexed:
            found = class_index(where, pred, target, ignore_index, background=False)
            pred = torch.where(found.valid, pred, 0.0)
            odds = _odds_against(pred, found)
            own = power(odds.sigmoid(), gamma) * -torch_f.logsigmoid(-odds) * of_own_class(factor, found)
            loss = (1 - label_smoothing) * own.squeeze(CLASS_DIM)
        else:
            y = dense_target(where, pred, target)
            every = _softmax_terms(pred, gamma) * factor
            loss = (1 - label_smoothing) * torch.where(y == 0, 0.0, y * every).sum(CLASS_DIM)
        if label_smoothing:
            loss = loss + label_smoothing * (_softmax_terms(pred, gamma) * factor).mean(CLASS_DIM)
        return torch.where(found.foreground.squeeze(CLASS_DIM), loss, 0.0) if indexed else loss

    call = Call(
        "softmax_focal", pred, **as_targets(target, indexed), weight=weight, class_weight=flat(per_class),
        alpha=_every_class(high, pred), ignore_index=ignore_index, numbers=(gamma, label_smoothing),
    )  # fmt: skip
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction)
