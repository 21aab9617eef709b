"""How the tensors of a call lie in memory, in the terms of the kernels: contiguous numbers x[outer, classes, inner]."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detloss.kernels.contract import Call, loss_shape

__all__ = ["ELEMENT", "NONE", "ONE", "POSITION", "Layout", "class_layout", "element_layout", "in_order", "restored", "spread"]

# How weights or upstream gradients are spread over a loss: none, one per position, one per element, one for all.
NONE, POSITION, ELEMENT, ONE = range(4)


class Layout(NamedTuple):
    """``x[outer, classes, inner]``; a position is an (outer, inner) pair. ``order`` permutes the dimensions to get there."""

    outer: int
    classes: int
    inner: int
    order: tuple[int, ...]


def class_layout(pred: Tensor) -> Layout:
    """Layout of logits ``[N, C]`` or ``[B, C, H, W]`` as they lie: rows, planes, or else as if they were contiguous."""
    shape = pred.shape
    if pred.ndim == 2:
        if not pred.is_contiguous() and pred.t().is_contiguous():
            return Layout(1, shape[1], shape[0], (1, 0))
        return Layout(shape[0], shape[1], 1, (0, 1))
    pixels = shape[2] * shape[3]
    if not pred.is_contiguous() and pred.is_contiguous(memory_format=torch.channels_last):
        return Layout(shape[0] * pixels, shape[1], 1, (0, 2, 3, 1))
    return Layout(shape[0], shape[1], pixels, (0, 1, 2, 3))


def element_layout(call: Call) -> Layout:
    """Layout of numbers that are taken one by one: rows share a weight where the weight has fewer dimensions."""
    pred, weight = call.pred, call.weight
    plain = tuple(range(pred.ndim))
    if weight is None or weight.ndim == pred.ndim:
        return Layout(pred.numel(), 1, 1, class_layout(pred).order if pred.ndim in (2, 4) else plain)
    return Layout(weight.numel(), pred.numel() // max(weight.numel(), 1), 1, plain)


def in_order(x: Tensor, layout: Layout) -> Tensor:
    """``x`` with its dimensions in the order of the layout, contiguous; no copy where it lies so already."""
    return x.permute(layout.order).contiguous()


def restored(x: Tensor, layout: Layout) -> Tensor:
    """The inverse of :func:`in_order`: a view with the dimensions in their own order."""
    return x.permute(sorted(range(len(layout.order)), key=layout.order.__getitem__))


def spread(values: Tensor | None, call: Call, layout: Layout, by_class: bool) -> tuple[Tensor | None, int]:
    """Weights or upstream gradients over leading dimensions of the loss as contiguous fp32 numbers, and how they are spread."""
    if values is None:
        return None, NONE
    values = values.to(torch.float32)
    pred, shape = call.pred, loss_shape(call)
    if values.numel() and not any(values.stride()) and values.ndim == len(shape):
        return values.as_strided((1,), (1,)), ONE
    if len(shape) < pred.ndim:  # one loss per position
        return _over(values, shape), POSITION
    if not by_class and values.ndim < pred.ndim:
        return values.contiguous(), POSITION
    if by_class and values.ndim <= 1:
        return _over(values, (*pred.shape[:1], *pred.shape[2:])), POSITION
    return in_order(values.reshape(*values.shape, *(1,) * (pred.ndim - values.ndim)).expand(pred.shape), layout), ELEMENT


def _over(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``values`` over leading dimensions repeated over all of ``shape``."""
    return values.reshape(*values.shape, *(1,) * (len(shape) - values.ndim)).expand(shape).contiguous()
