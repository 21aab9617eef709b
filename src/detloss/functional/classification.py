"""Cross entropies, from logits.

Arguments shared by every classification loss:

* ``pred``: logits ``[N, C]`` or ``[B, C, H, W]``.
* ``target``: class indices ``[N]`` or ``[B, H, W]``, or dense targets in [0, 1] of the logits' shape.
* ``class_weight``: one factor per class.
* ``ignore_index``: target value of positions that count neither way; their loss and gradient are 0.
* ``weight``, ``avg_factor``, ``reduction``: see :func:`detloss.reduction.reduce_loss`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_non_negative
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

__all__ = ["binary_cross_entropy_loss", "cross_entropy_loss"]


def check_smoothing(where: str, label_smoothing: float) -> None:
    """Raise ``ValueError`` unless ``label_smoothing`` is in [0, 1)."""
    check_non_negative(where, label_smoothing=label_smoothing)
    if label_smoothing >= 1:
        raise ValueError(f"{where}: label_smoothing must be in [0, 1); got {label_smoothing}")


def count_valid(valid: Tensor, reduction: Reduction, avg_factor: Number | Tensor | None) -> Number | Tensor | None:
    """What ``avg_non_ignore`` divides a mean by: the number of elements that are not ignored, unless a factor is given."""
    return valid.sum() if reduction == "mean" and avg_factor is None else avg_factor


def _softmax_from_index(log_p: Tensor, target: ClassIndex, class_weight: Tensor | None, label_smoothing: float) -> Tensor:
    own = -of_own_class(log_p, target)
    if class_weight is not None:
        own = own * of_own_class(class_weight, target)
    if label_smoothing:
        every = -(log_p if class_weight is None else log_p * class_weight).mean(CLASS_DIM, keepdim=True)
        own = (1 - label_smoothing) * own + label_smoothing * every
    return torch.where(target.foreground, own, 0.0).squeeze(CLASS_DIM)


def _softmax_from_dense(log_p: Tensor, target: Tensor, class_weight: Tensor | None, label_smoothing: float) -> Tensor:
    target = target * (1 - label_smoothing) + label_smoothing / log_p.shape[CLASS_DIM]
    if class_weight is not None:
        target = target * class_weight
    return -torch.where(target == 0, 0.0, target * log_p).sum(CLASS_DIM)


def cross_entropy_loss(
    pred: Tensor,
    target: Tensor,
    *,
    class_weight: ClassWeights | None = None,
    ignore_index: int = -100,
    avg_non_ignore: bool = False,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Softmax cross entropy: −w_y ln softmax(x)_y, or −Σ_c w_c y_c ln softmax(x)_c for dense targets.

    With ``label_smoothing`` ε the target is (1 − ε) y + ε/C. Every column is a class here, so a detector with a
    background class has it as its last column. ``none`` gives ``[N]`` or ``[B, H, W]``.

    Args:
        avg_non_ignore: divide a mean by the number of positions that are not ignored, not by all.

    >>> cross_entropy_loss(torch.zeros(2, 4), torch.tensor([1, 3]))  # ln 4
    tensor(1.3863)
    """
    where = "cross_entropy_loss"
    check_smoothing(where, label_smoothing)
    check_reduction(where, reduction, avg_factor)
    indexed = is_class_index(where, pred, target)
    if pred.ndim not in (2, 4):
        raise ValueError(f"{where}: logits must be [N, C] or [B, C, H, W]; got {list(pred.shape)}")
    per_class = class_weights(where, "class_weight", class_weight, pred)
    if indexed and avg_non_ignore:
        avg_factor = count_valid(target != ignore_index, reduction, avg_factor)

    def formula(pred: Tensor) -> Tensor:
        if not indexed:
            log_p = torch_f.log_softmax(pred, dim=CLASS_DIM)
            return _softmax_from_dense(log_p, dense_target(where, pred, target), per_class, label_smoothing)
        found = class_index(where, pred, target, ignore_index, background=False)
        log_p = torch_f.log_softmax(torch.where(found.valid, pred, 0.0), dim=CLASS_DIM)
        return _softmax_from_index(log_p, found, per_class, label_smoothing)

    call = Call(
        "cross_entropy", pred, **as_targets(target, indexed), weight=weight, class_weight=flat(per_class),
        ignore_index=ignore_index, numbers=(label_smoothing,),
    )  # fmt: skip
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction)


def binary_cross_entropy(pred: Tensor, target: Tensor | float, positive_weight: Tensor | None = None) -> Tensor:
    """Element-wise −w y ln σ(x) − (1 − y) ln(1 − σ(x)) from logits, exact for every logit.

    A term whose share of the target is 0 is dropped, so that an infinite logit that is right costs 0.
    """
    if not isinstance(target, Tensor) and target == 0:
        return -torch_f.logsigmoid(-pred)
    positive = -torch_f.logsigmoid(pred)
    if positive_weight is not None:
        positive = positive * positive_weight
    if not isinstance(target, Tensor):
        return positive if target == 1 else target * positive - (1 - target) * torch_f.logsigmoid(-pred)
    negative = -torch_f.logsigmoid(-pred)
    return torch.where(target == 0, 0.0, target * positive) + torch.where(target == 1, 0.0, (1 - target) * negative)


def binary_cross_entropy_loss(
    pred: Tensor,
    target: Tensor,
    *,
    class_weight: ClassWeights | None = None,
    ignore_index: int = -100,
    avg_non_ignore: bool = False,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sigmoid cross entropy of every class on its own: −w_c y ln σ(x) − (1 − y) ln(1 − σ(x)).

    Index targets: ``y`` is 1 in the column of the class; the background index C is 0 in every column. With
    ``label_smoothing`` ε the target is (1 − ε) y + ε/2. ``none`` gives the shape of ``pred``. Dense targets may have any
    number of dimensions, without ``class_weight`` also ``[N]``.

    Args:
        class_weight: weighs the positives of each class (``pos_weight`` of torch).
        avg_non_ignore: divide a mean by the number of elements that are not ignored, not by all.

    >>> binary_cross_entropy_loss(torch.zeros(2, 4), torch.tensor([1, 4]), reduction="sum")  # 8 ln 2
    tensor(5.5452)
    """
    where = "binary_cross_entropy_loss"
    check_smoothing(where, label_smoothing)
    check_reduction(where, reduction, avg_factor)
    indexed = is_class_index(where, pred, target)
    per_class = class_weights(where, "class_weight", class_weight, pred)
    if indexed and avg_non_ignore:
        valid = (target != ignore_index).unsqueeze(CLASS_DIM).expand_as(pred)
        avg_factor = count_valid(valid, reduction, avg_factor)

    def formula(pred: Tensor) -> Tensor:
        if not indexed:
            soft = dense_target(where, pred, target) * (1 - label_smoothing) + label_smoothing / 2
            return binary_cross_entropy(pred, soft, per_class)
        found = class_index(where, pred, target, ignore_index, background=True)
        pred = torch.where(found.valid, pred, 0.0)
        own, own_weight = of_own_class(pred, found), None if per_class is None else of_own_class(per_class, found)
        loss = put_positive(
            binary_cross_entropy(pred, label_smoothing / 2, per_class),
            binary_cross_entropy(own, 1 - label_smoothing / 2, own_weight),
            found,
        )
        return torch.where(found.valid, loss, 0.0)

    call = Call(
        "binary_cross_entropy", pred, **as_targets(target, indexed), weight=weight, class_weight=flat(per_class),
        ignore_index=ignore_index, numbers=(label_smoothing,),
    )  # fmt: skip
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction)
