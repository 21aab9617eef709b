"""What the class targets of a loss are: class indices, dense targets or scores, checked and never made one-hot."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detloss.checks import check_float, check_real, check_same_device, check_tensor, shape_of
from detloss.types import ClassWeights
from detloss.values import check_class_indices, check_unit_interval

__all__ = [
    "ClassIndex",
    "as_targets",
    "class_index",
    "class_weights",
    "dense_target",
    "flat",
    "is_class_index",
    "of_own_class",
    "put_positive",
]

CLASS_DIM = 1


class ClassIndex(NamedTuple):
    """Class indices made safe for ``gather`` and ``scatter`` along the class dimension.

    Attributes:
        column: int64, the shape of the logits with a class dimension of 1; 0 where there is no class.
        foreground: bool, same shape: the position has a class.
        valid: bool, same shape: the position is not ignored.
    """

    column: Tensor
    foreground: Tensor
    valid: Tensor


def is_class_index(where: str, pred: Tensor, target: Tensor) -> bool:
    """Whether ``target`` holds class indices (``True``) or has the shape of the logits (``False``); else ``ValueError``."""
    check_float(where, "pred", pred)
    check_tensor(where, "target", target)
    check_same_device(where, pred, "target", target)
    if pred.shape == target.shape and pred.ndim > 0:
        return False
    if pred.ndim in (2, 4) and target.shape == pred.shape[:1] + pred.shape[2:]:
        if target.is_floating_point() or target.dtype == torch.bool or target.is_complex():
            raise TypeError(
                f"{where}: class indices must have an integer dtype; got {target.dtype} of shape {shape_of(target)} "
                f"(dense targets have the shape of the logits, {shape_of(pred)})"
            )
        return True
    raise ValueError(
        f"{where}: expected logits [N, C] with class indices [N], logits [B, C, H, W] with class indices [B, H, W], "
        f"or a dense target of the logits' shape; got pred {shape_of(pred)} and target {shape_of(target)}"
    )


def class_index(where: str, pred: Tensor, target: Tensor, ignore_index: int, *, background: bool) -> ClassIndex:
    """Check and unpack class indices; ``background`` says whether the index C (no class) is allowed."""
    classes = pred.shape[CLASS_DIM]
    check_class_indices(where, target, classes, ignore_index, background=background)
    target = target.long().unsqueeze(CLASS_DIM)
    valid = target != ignore_index
    foreground = valid & (target >= 0) & (target < classes)
    return ClassIndex(torch.where(foreground, target, 0), foreground, valid)


def dense_target(where: str, pred: Tensor, target: Tensor) -> Tensor:
    """Check a dense target in [0, 1] and bring it to the dtype of ``pred``."""
    check_real(where, "target", target)
    check_unit_interval(where, "dense targets", target)
    return target.to(pred.dtype)


def class_weights(where: str, name: str, weights: ClassWeights | None, pred: Tensor) -> Tensor | None:
    """Per-class numbers ``[C]`` shaped to multiply ``pred``, or ``None``."""
    if weights is None:
        return None
    dtype = torch.float32 if pred.dtype in (torch.float16, torch.bfloat16) else pred.dtype
    values = torch.as_tensor(weights, dtype=dtype, device=pred.device)
    classes = pred.shape[CLASS_DIM] if pred.ndim in (2, 4) else None
    if values.shape != (classes,):
        raise ValueError(
            f"{where}: {name} must hold one number per class, [C] for logits [N, C] or [B, C, H, W]; "
            f"got {shape_of(values)} for pred {shape_of(pred)}"
        )
    return values.view(1, -1, *(1,) * (pred.ndim - 2))


def as_targets(target: Tensor, indexed: bool) -> dict[str, Tensor]:
    """``target`` under the name that a kernel call gives it: ``index`` or ``target``."""
    return {"index" if indexed else "target": target}


def flat(per_class: Tensor | float | None) -> Tensor | None:
    """Per-class numbers as ``[C]``; ``None`` for one number for all classes."""
    return per_class.reshape(-1) if isinstance(per_class, Tensor) else None


def of_own_class(values: Tensor, target: ClassIndex) -> Tensor:
    """``values`` (logits, or ``[1, C]`` / ``[1, C, 1, 1]`` per class) in the column of each position's class; size 1 there."""
    shape = list(target.column.shape)
    shape[CLASS_DIM] = values.shape[CLASS_DIM]
    if shape[CLASS_DIM] == 0:
        return torch.zeros_like(target.column, dtype=values.dtype)
    return values.expand(shape).gather(CLASS_DIM, target.column)


def put_positive(negative: Tensor, positive: Tensor, target: ClassIndex) -> Tensor:
    """``negative`` everywhere but in the column of each position's class, where ``positive`` (class dimension 1) goes.

    With no class (C = 0) there is no column to fill.
    """
    if negative.shape[CLASS_DIM] == 0:
        return negative
    kept = negative.gather(CLASS_DIM, target.column)
    return negative.scatter(CLASS_DIM, target.column, torch.where(target.foreground, positive, kept))
