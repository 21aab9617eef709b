"""Checks of tensor values: always on the CPU, on an accelerator only when asked, so that nothing syncs unseen."""

from __future__ import annotations

import os

import torch
from torch import Tensor

__all__ = ["check_class_indices", "check_unit_interval", "set_value_checks", "value_checks_enabled", "within"]

_state = {"accelerator": os.environ.get("DETLOSS_VALUE_CHECKS", "0").lower() in ("1", "true", "yes", "on")}


def set_value_checks(enabled: bool) -> None:
    """Also check target values (class indices, scores, boxes) that live on an accelerator.

    Values on the CPU are always checked. On an accelerator a check makes the host wait for the device, so it is off
    unless asked for here or by the environment variable ``DETLOSS_VALUE_CHECKS=1``: switch it on for the first batches
    of a new data set, or to turn a device-side assert into a message.
    """
    _state["accelerator"] = bool(enabled)


def value_checks_enabled(*tensors: Tensor) -> bool:
    """Whether the values of these tensors may be read here: not while tracing, nor under ``vmap`` or ``grad`` transforms."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    return all(_readable(t) for t in tensors)


def _readable(t: Tensor) -> bool:
    if t.device.type == "meta" or type(t).__name__ in ("FakeTensor", "FunctionalTensor"):
        return False
    return t.device.type == "cpu" or _state["accelerator"]


def within(value: Tensor, low: float, high: float) -> bool:
    """Whether all values lie in [low, high]: one pass without temporaries. NaN says no, whatever the others are."""
    if value.is_complex():  # which has no order: the caller's comparison says so
        return False
    least, most = torch.aminmax(value.detach())
    return low <= least.item() and most.item() <= high


def check_class_indices(where: str, target: Tensor, num_classes: int, ignore_index: int | None, *, background: bool) -> None:
    """Raise ``ValueError`` when an index is neither a class, nor (if allowed) the background ``num_classes``, nor ignored."""
    if not value_checks_enabled(target) or target.numel() == 0:
        return
    last = num_classes if background else num_classes - 1
    if within(target, 0, last):
        return
    bad = (target < 0) | (target > last)
    if ignore_index is not None:
        bad = bad & (target != ignore_index)
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        value = target[tuple(at)].item()
        meaning = f"0…{num_classes - 1} for the classes"
        meaning += f", {num_classes} for background" if background else ""
        meaning += f", or ignore_index={ignore_index}" if ignore_index is not None else ""
        raise ValueError(f"{where}: class indices must be {meaning}; got {value} at {at}")


def check_unit_interval(where: str, name: str, value: Tensor) -> None:
    """Raise ``ValueError`` when a value lies outside [0, 1]. NaN passes: it stays in its own row."""
    if not value_checks_enabled(value) or value.numel() == 0 or value.dtype == torch.bool or within(value, 0, 1):
        return
    bad = (value < 0) | (value > 1)
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise ValueError(f"{where}: {name} must lie in [0, 1]; got {value[tuple(at)].item():g} at {at}")
