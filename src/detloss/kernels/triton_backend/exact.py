"""Arithmetic that decides: every operation rounds as that of torch does, so ties are the same ties.

Divisions and roots are the ones that round to nearest, and kernels that decide are launched with ``EXACT``, without which
products and sums would be contracted. What two boxes have in common is computed by the operations of
:mod:`detloss.geometry.iou` in their order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = [
    "EXACT",
    "PAIR_LIMIT",
    "SMALLEST",
    "SMALLEST_SIDE",
    "clamped",
    "is_finite",
    "pair_axis",
    "pair_iou",
    "pair_whole",
]

EXACT: dict[str, Any] = {"enable_fp_fusion": False}
PAIR_LIMIT = tl.constexpr(1e30)
SMALLEST_SIDE = tl.constexpr(1e-12)
LEAST_UNION = tl.constexpr(1e-6)
SMALLEST = tl.constexpr(2.0**-126)  # normal number
LARGEST = tl.constexpr((2.0 - 2.0**-23) * 2.0**127)  # rounded up in decimals it would be a number of double precision


@triton.jit
def is_finite(x: tl.tensor) -> tl.tensor:
    """Whether ``x`` is neither NaN nor infinite."""
    return tl.abs(x) <= LARGEST


@triton.jit
def clamped(x: tl.tensor, LIMIT: tl.constexpr) -> tl.tensor:
    """``x`` within ±LIMIT; NaN stays."""
    return tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))


@triton.jit
def pair_axis(p1: tl.tensor, p2: tl.tensor, t1: tl.tensor, t2: tl.tensor) -> tl.tensor:
    """Along one axis, of sides within the limit: length (signed), target length, enclosing length, offset of the centres,
    shares of prediction, target and overlap in units of the enclosing length, sameness."""
    length = p2 - p1
    target = tl.maximum(t2 - t1, 0.0)
    enclosing = tl.maximum(tl.maximum(p1, p2), tl.maximum(t1, t2)) - tl.minimum(tl.minimum(p1, p2), tl.minimum(t1, t2))
    unit = tl.maximum(enclosing, SMALLEST_SIDE)
    common = tl.maximum(tl.minimum(p2, t2) - tl.maximum(p1, t1), 0.0)
    offset = ((p1 - t1) + (p2 - t2)) * 0.5
    same = (p1 == t1) & (p2 == t2) & (length >= 0)
    share, target_share = tl.div_rn(tl.maximum(length, 0.0), unit), tl.div_rn(target, unit)
    return length, target, enclosing, offset, share, target_share, tl.div_rn(common, unit), same


@triton.jit
def pair_whole(
    px: tl.tensor, tx: tl.tensor, cx: tl.tensor, py: tl.tensor, ty: tl.tensor, cy: tl.tensor
) -> tl.tensor:  # fmt: skip
    """Common area and union, in units of the enclosing area, from the shares of both axes."""
    common = cx * cy
    return common, (px * py + tx * ty) - common


@triton.jit
def pair_iou(common: tl.tensor, whole: tl.tensor, same: tl.tensor) -> tl.tensor:
    """IoU from the areas; 1 where the boxes are the same."""
    return tl.where(same, 1.0, tl.minimum(tl.div_rn(common, tl.maximum(whole, LEAST_UNION)), 1.0))
