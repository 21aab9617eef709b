"""One comparison of rotated boxes (cx, cy, w, h, radians) as Gaussians; the rotated losses are expressions on top of it.

A box is the Gaussian with its centre as mean and the covariance R(θ) diag(w², h²) R(θ)ᵀ times a constant. Products of such
2×2 matrices are sums of non-negative terms in the sides and in the angle between the boxes; written that way nothing
cancels, and long thin boxes lose no digits.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from detloss.checks import upcast_pair
from detloss.geometry.iou import at_least_0

__all__ = ["RotatedPair", "compare_rotated"]

COORDINATE_LIMIT = 1e15
SMALLEST_UNIT = 1e-30
NEAREST_UNIT = 1e-6


class RotatedPair(NamedTuple):
    """What two rotated boxes have in common, lengths in ``unit``. All tensors have the shape of the pair without its last one.

    The sides of the target are named so that its first axis is within 45° of the first axis of the prediction: angles
    that differ by half a turn, or by a quarter with swapped sides, are the same box.

    Attributes:
        pred_size: (w, h) of the first box, bounded below by a share of the longest side.
        target_size: the same of the second.
        pred_offset: offset of the centres along the axes of the first box.
        target_axes: (w, h) of the second box and the offsets of the centres along them, sides named as they were given.
        sin2: squared sine of the angle between the boxes, at most 1/2.
        inverted: how negative the sides of the first box are, in [0, 2]; 0 where none is.
        unit: the longest side of the two boxes, held constant.
    """

    pred_size: tuple[Tensor, Tensor]
    target_size: tuple[Tensor, Tensor]
    pred_offset: tuple[Tensor, Tensor]
    target_axes: tuple[Tensor, Tensor, Tensor, Tensor]
    sin2: Tensor
    inverted: Tensor
    unit: Tensor


def _along(dx: Tensor, dy: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = torch.cos(angle), torch.sin(angle)
    return dx * cos + dy * sin, dy * cos - dx * sin


def compare_rotated(pred: Tensor, target: Tensor, eps: float = 1e-4) -> RotatedPair:
    """Compare rotated boxes ``[..., 5]`` of the same shape.

    Args:
        pred: boxes (cx, cy, w, h, angle in radians).
        target: boxes of the same form.
        eps: sides shorter than this share of the longest side of the pair count as longer, half of it at least. It bounds
            gradients; being relative it changes nothing for boxes that are merely small.
    """
    pred, target = upcast_pair(pred, target)
    px, py, pw, ph = pred[..., :4].clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT).unbind(-1)
    tx, ty, tw, th = target[..., :4].clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT).unbind(-1)
    dx, dy = px - tx, py - ty
    unit = _longest(pw, ph, tw, th, NEAREST_UNIT * dx.abs(), NEAREST_UNIT * dy.abs()).clamp(min=SMALLEST_UNIT)

    def side(length: Tensor) -> Tensor:
        share = at_least_0(length) / unit  # in this order: a quotient may overflow
        return share + torch.relu(eps - share) / 2

    negative = torch.relu(-pw) + torch.relu(-ph)  # see at_least_0
    depth = _longest(pw.abs(), ph.abs(), unit)
    between = pred[..., 4] - target[..., 4]
    sin2, cos2 = torch.sin(between).square(), torch.cos(between).square()
    across = sin2 > cos2
    dx, dy = dx / unit, dy / unit
    width, height = side(tw), side(th)
    return RotatedPair(
        pred_size=(side(pw), side(ph)),
        target_size=(torch.where(across, height, width), torch.where(across, width, height)),
        pred_offset=_along(dx, dy, pred[..., 4]),
        target_axes=(width, height, *_along(dx, dy, target[..., 4])),
        sin2=torch.where(across, cos2, sin2),
        inverted=negative / depth,
        unit=unit,
    )


def _longest(*lengths: Tensor) -> Tensor:
    """The largest of some lengths, held constant."""
    return reduce(torch.maximum, (length.detach() for length in lengths))
