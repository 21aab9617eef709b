"""How tensors lie in memory, in the terms of the library: contiguous numbers x[O, C, I] of one of three dtypes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TYPES", "Layout", "as_fp32", "in_layout", "layout_of", "pointer"]

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class Layout(NamedTuple):
    """Logits ``x[outer, classes, inner]``; ``order`` is the permutation of the dimensions that makes them contiguous."""

    outer: int
    classes: int
    inner: int
    order: tuple[int, ...]


def pointer(x: Tensor | None) -> int | None:
    """Address of the first element."""
    return None if x is None else x.data_ptr()


def as_fp32(x: Tensor | None) -> Tensor | None:
    """Contiguous fp32."""
    return None if x is None else x.to(torch.float32).contiguous()


def layout_of(pred: Tensor) -> Layout:
    """Layout of logits ``[N, C]`` or ``[B, C, H, W]`` as they lie: rows, planes, or as if contiguous."""
    shape = pred.shape
    if pred.ndim == 2:
        if not pred.is_contiguous() and pred.t().is_contiguous():
            return Layout(1, shape[1], shape[0], (1, 0))
        return Layout(shape[0], shape[1], 1, (0, 1))
    pixels = shape[2] * shape[3]
    if not pred.is_contiguous() and pred.is_contiguous(memory_format=torch.channels_last):
        return Layout(shape[0] * pixels, shape[1], 1, (0, 2, 3, 1))
    return Layout(shape[0], shape[1], pixels, (0, 1, 2, 3))


def in_layout(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """``x`` with its dimensions in the order of a layout, contiguous; no copy where it lies so already."""
    return x.permute(order).contiguous()
