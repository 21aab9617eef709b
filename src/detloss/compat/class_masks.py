"""Softmax probabilities and one-hot targets of every class as masks, for the overlap losses of segmentation."""

from __future__ import annotations

import torch
from torch import Tensor

from detloss.checks import check_float, check_same_device, check_tensor, shape_of, upcast
from detloss.compat.arguments import NOTHING_IGNORED
from detloss.values import check_class_indices

__all__ = ["check_pixels", "class_masks"]


def check_pixels(where: str, logits: Tensor, targets: Tensor) -> None:
    """Raise unless ``logits`` are ``[B, C, H, W]`` and ``targets`` class indices ``[B, H, W]`` on the same device."""
    check_tensor(where, "pred", logits)
    check_tensor(where, "target", targets)
    check_float(where, "pred", logits)
    if logits.ndim != 4 or targets.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"{where}: expected logits [B, C, H, W] and class indices [B, H, W]; got {shape_of(logits)} and {shape_of(targets)}"
        )
    check_same_device(where, logits, "target", targets)


def class_masks(where: str, logits: Tensor, targets: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Probabilities and targets ``[B, C, pixels]`` of each class, both 0 at ignored pixels.

    Args:
        where: name of the loss, for error messages.
        logits: ``[B, C, H, W]``.
        targets: class indices ``[B, H, W]``.
        ignore_index: target value of pixels that count neither way; ``None`` for none.
    """
    check_pixels(where, logits, targets)
    ignored = NOTHING_IGNORED if ignore_index is None else ignore_index
    check_class_indices(where, targets, logits.shape[1], ignored, background=False)
    valid = targets != ignored
    inside = valid.unsqueeze(1)
    probabilities = torch.where(inside, upcast(logits), 0.0).softmax(1) * inside
    column = torch.where(valid, targets, 0).long().unsqueeze(1)
    one_hot = torch.zeros_like(probabilities).scatter(1, column, inside.to(probabilities.dtype))
    return probabilities.flatten(2), one_hot.flatten(2)
