"""One overlap core for aligned and pairwise boxes; every member of the IoU family is an expression on top of it.

Lengths are measured along each axis in units of the enclosing box of the pair. IoU and its relatives do not change under
such a scaling, and in these units no area can overflow or vanish: the same code is exact for 1e-6 and for 1e6 pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detloss.checks import check_float, shape_of, upcast
from detloss.geometry.boxes import to_xyxy
from detloss.types import BoxFormat

__all__ = ["Overlap", "at_least_0", "iou_of", "overlap", "pairwise_iou"]

COORDINATE_LIMIT = 1e30
SMALLEST_SIDE = 1e-12


class Overlap(NamedTuple):
    """What two boxes have in common. All tensors have the broadcast shape of the pair without its last dimension.

    Attributes:
        iou: intersection over union, in [0, 1]; 1 for identical boxes, also when they have no area.
        hollow: (C − U)/C, the share of the enclosing box C that is outside the union U, in [0, 1].
        inverted: how far the first box is turned inside out, in units of the enclosing box held constant, so that its
            gradient always turns the box back; 0 for x1 <= x2 and y1 <= y2.
        pred_size: (width, height) of the first box, negative where it is inverted.
        target_size: (width, height) of the second, at least 0.
        enclosing_size: (width, height) of the smallest box that holds both.
        centre_offset: (dx, dy) from the centre of the second box to that of the first.
    """

    iou: Tensor
    hollow: Tensor
    inverted: Tensor
    pred_size: tuple[Tensor, Tensor]
    target_size: tuple[Tensor, Tensor]
    enclosing_size: tuple[Tensor, Tensor]
    centre_offset: tuple[Tensor, Tensor]


class _Axes(NamedTuple):
    """Both axes of a pair of boxes, ``[2, ...]``: lengths in pixels and, ``_share``, in units of the enclosing length."""

    pred: Tensor
    target: Tensor
    enclosing: Tensor
    unit: Tensor
    pred_share: Tensor
    target_share: Tensor
    common_share: Tensor
    low_gap: Tensor
    high_gap: Tensor


def _without_gradient() -> bool:
    """Whether what is computed here is never differentiated; a trace may be, though it is recorded without gradient."""
    # A compiler guards the mode itself, and knows nothing of traces.
    return not torch.is_grad_enabled() and (torch.compiler.is_compiling() or not torch._C._is_tracing())


def at_least_0(x: Tensor) -> Tensor:
    """``x`` where it is positive, else 0, of finite x; at 0 the gradient is 1, so that boxes that touch can grow together."""
    if _without_gradient():
        return x.clamp(min=0)
    return x + torch.relu(-x)  # the gradient of relu at 0 is 0, that of clamp depends on the version of torch


def _corners(boxes: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """The lower and the upper corners, ``[2, ...]`` each: coordinates first, so that both axes take one operation."""
    boxes = boxes[(None,) * (dimensions - boxes.ndim)] if boxes.ndim < dimensions else boxes
    first = boxes.clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT).movedim(-1, 0).contiguous()
    return first[:2], first[2:]


def _axes_of(pred: Tensor, target: Tensor) -> _Axes:
    """Compare corners ``[..., 4]`` that broadcast against each other."""
    dimensions = max(pred.ndim, target.ndim)
    return _axes(*_corners(pred, dimensions), *_corners(target.to(pred.dtype), dimensions))


def _axes(p1: Tensor, p2: Tensor, t1: Tensor, t2: Tensor) -> _Axes:
    """Compare the intervals [p1, p2] with [t1, t2]; a reversed interval has length 0 but still spans what it spans."""
    signed = p2 - p1
    pred, target = at_least_0(signed), at_least_0(t2 - t1)
    low = torch.minimum(torch.minimum(p1, p2), torch.minimum(t1, t2))
    high = torch.maximum(torch.maximum(p1, p2), torch.maximum(t1, t2))
    enclosing = high - low
    unit = enclosing.clamp(min=SMALLEST_SIDE)
    common = at_least_0(torch.minimum(p2, t2) - torch.maximum(p1, t1))
    return _Axes(signed, target, enclosing, unit, pred / unit, target / unit, common / unit, p1 - t1, p2 - t2)


def _pair(both: Tensor) -> tuple[Tensor, Tensor]:
    x, y = both.unbind(0)
    return x, y


def _area(shares: Tensor) -> Tensor:
    width, height = _pair(shares)
    return width * height


def _identical(axes: _Axes) -> Tensor:
    """Whether the boxes are the same and not turned inside out; sums and minima, as comparisons are slow."""
    gap = axes.low_gap.detach().abs() + axes.high_gap.detach().abs()
    return (gap[0] + gap[1] == 0) & (torch.minimum(*_pair(axes.pred.detach())) >= 0)


def _inverted(axes: _Axes) -> Tensor:
    """How far the first box is turned inside out, in units of the enclosing box held constant."""
    if _without_gradient():  # all else is about the gradient
        x, y = _pair((-axes.pred).clamp(min=0) / axes.unit)
        return x + y
    # A side of length 0 also gets the gradient that opens it, unless its target is as empty.
    turned = (axes.pred < 0) | ((axes.pred == 0) & (axes.target > 0))
    x, y = _pair(torch.where(turned, -axes.pred, 0.0) / axes.unit.detach())
    return x + y


def _iou(axes: _Axes, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, the union in units of the enclosing area, and whether the boxes are identical."""
    intersection = _area(axes.common_share)
    union = _area(axes.pred_share) + _area(axes.target_share) - intersection
    identical = _identical(axes)
    iou = torch.where(identical, 1.0, (intersection / union.clamp(min=eps)).clamp(max=1.0))
    return iou, union, identical


def overlap(pred: Tensor, target: Tensor, box_format: BoxFormat = "xyxy", eps: float = 1e-6) -> Overlap:
    """Compare boxes that broadcast against each other: ``[N, 4]`` and ``[N, 4]`` aligned, ``[N, 1, 4]`` and ``[M, 4]`` pairwise.

    Args:
        pred: ``[..., 4]`` boxes.
        target: ``[..., 4]`` boxes.
        box_format: format of both.
        eps: lower bound of the union in units of the enclosing area. It bounds the gradient of boxes that are almost
            empty; being relative it changes nothing for boxes that are merely small.
    """
    axes = _axes_of(to_xyxy(upcast(pred), box_format), to_xyxy(upcast(target), box_format))
    iou, union, identical = _iou(axes, eps)
    enclosed = torch.minimum(*_pair(axes.enclosing.detach())) > 0
    return Overlap(
        iou=iou,
        hollow=torch.where(enclosed & ~identical, torch.relu(1.0 - union), 0.0),  # see at_least_0
        inverted=_inverted(axes),
        pred_size=_pair(axes.pred),
        target_size=_pair(axes.target),
        enclosing_size=_pair(axes.enclosing),
        centre_offset=_pair((axes.low_gap + axes.high_gap) / 2),
    )


def iou_of(pred: Tensor, target: Tensor) -> Tensor:
    """The IoU of :func:`overlap` alone: corners that broadcast against each other, without gradient at half the cost."""
    return _iou(_axes_of(upcast(pred), upcast(target)), 1e-6)[0]


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU ``[..., N, M]`` of every box of ``[..., N, 4]`` with every box of ``[..., M, 4]``, corners (x1, y1, x2, y2).

    >>> pairwise_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]]))
    tensor([[1.0000, 0.3333]])
    """
    for name, boxes in (("boxes1", boxes1), ("boxes2", boxes2)):
        check_float("pairwise_iou", name, boxes)
        if boxes.ndim < 2 or boxes.shape[-1] != 4:
            raise ValueError(f"pairwise_iou: {name} must have shape [..., N, 4]; got {shape_of(boxes)}")
    return iou_of(boxes1.unsqueeze(-2), boxes2.unsqueeze(-3))
