"""Checks of shape, dtype, device and options: metadata only, no value of a tensor is ever read here."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = [
    "check_at_least",
    "check_boxes",
    "check_float",
    "check_non_negative",
    "check_option",
    "check_positive",
    "check_real",
    "check_same_shape",
    "check_tensor",
    "did_you_mean",
    "shape_of",
    "upcast",
    "upcast_pair",
]

_HALF = (torch.float16, torch.bfloat16)


def shape_of(x: Tensor) -> str:
    """The shape as users write it: ``[8, 4]``."""
    return str(list(x.shape))


def did_you_mean(name: object, valid: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest of ``valid``, or an empty string when none is near."""
    options = list(valid)
    lowered = {option.lower(): option for option in options}
    near = difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.5)
    return f" Did you mean {lowered[near[0]]!r}?" if near else ""


def check_option(where: str, name: str, value: object, valid: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``valid``."""
    if value not in valid:
        expected = ", ".join(repr(v) for v in valid)
        raise ValueError(f"{where}: {name} must be one of {expected}; got {value!r}.{did_you_mean(value, valid)}")


def _check_number(where: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{where}: {name} must be a number; got {type(value).__name__} {value!r}")
    return float(value)


def check_at_least(where: str, minimum: float, **values: object) -> None:
    """Raise unless every keyword argument is a finite number of at least ``minimum`` (``TypeError`` / ``ValueError``)."""
    for name, value in values.items():
        number = _check_number(where, name, value)
        if not minimum <= number < math.inf:
            raise ValueError(f"{where}: {name} must be a finite number >= {minimum:g}; got {value!r}")


def check_non_negative(where: str, **values: object) -> None:
    """Raise unless every keyword argument is a finite number of at least 0 (``TypeError`` / ``ValueError``)."""
    check_at_least(where, 0, **values)


def check_positive(where: str, **values: object) -> None:
    """Raise unless every keyword argument is a finite number above 0 (``TypeError`` / ``ValueError``)."""
    for name, value in values.items():
        number = _check_number(where, name, value)
        if not 0 < number < math.inf:
            raise ValueError(f"{where}: {name} must be a finite number > 0; got {value!r}")


def check_tensor(where: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a torch.Tensor; got {type(value).__name__}")


def check_float(where: str, name: str, value: Tensor) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor of a real floating-point dtype."""
    check_tensor(where, name, value)
    if not value.is_floating_point():
        raise TypeError(f"{where}: {name} must have a floating-point dtype; got {value.dtype}")


def check_real(where: str, name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor of real numbers (integers and bool included)."""
    check_tensor(where, name, value)
    if isinstance(value, Tensor) and value.is_complex():
        raise TypeError(f"{where}: {name} must be real; got {value.dtype}")


def check_same_device(where: str, pred: Tensor, name: str, other: Tensor) -> None:
    """Raise ``ValueError`` when the two tensors live on different devices (0-dim CPU tensors go anywhere)."""
    if pred.device != other.device and not (other.ndim == 0 and other.device.type == "cpu"):
        raise ValueError(f"{where}: {name} must be on the device of pred, {pred.device}; got {other.device}")


def check_same_shape(where: str, pred: Tensor, target: Tensor) -> None:
    """Raise unless ``pred`` is floating point, both are tensors on one device and their shapes are equal, unbroadcast."""
    check_float(where, "pred", pred)
    check_real(where, "target", target)
    if pred.shape != target.shape:
        raise ValueError(
            f"{where}: pred and target must have the same shape (nothing is broadcast); "
            f"got pred {shape_of(pred)} and target {shape_of(target)}"
        )
    check_same_device(where, pred, "target", target)


def check_boxes(where: str, pred: Tensor, target: Tensor, size: int = 4) -> None:
    """Raise unless both are ``[N, size]`` (or ``[..., size]``) boxes of the same shape."""
    check_same_shape(where, pred, target)
    if pred.ndim < 1 or pred.shape[-1] != size:
        raise ValueError(f"{where}: boxes must have shape [N, {size}]; got {shape_of(pred)}")


def upcast(x: Tensor) -> Tensor:
    """fp16 and bf16 become fp32, so that areas, exponentials and sums do not overflow; other dtypes stay."""
    return x.float() if x.dtype in _HALF else x


def upcast_pair(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype the loss is computed in: that of ``pred`` after :func:`upcast`."""
    pred = upcast(pred)
    return pred, target.to(pred.dtype)
