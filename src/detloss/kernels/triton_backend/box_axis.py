"""Two boxes along one axis, and the way of a gradient back through it; the overlap core of :mod:`detloss.geometry.iou`.

Lengths are in units of the enclosing length, as there. A length and its derivative with respect to a side of the prediction
go together: :func:`below` gives the half that each of two equal sides gets.
"""

from __future__ import annotations

import triton
import triton.language as tl

from detloss.kernels.triton_backend.maths import below

__all__ = ["axis_back", "axis_facts", "corner_gradients", "corners"]

COORDINATE_LIMIT = tl.constexpr(1e30)
SMALLEST_SIDE = tl.constexpr(1e-12)


@triton.jit
def _kept(x: tl.tensor) -> tl.tensor:
    """``x`` within the limits of a coordinate; NaN stays."""
    return tl.where(x > COORDINATE_LIMIT, COORDINATE_LIMIT, tl.where(x < -COORDINATE_LIMIT, -COORDINATE_LIMIT, x))


@triton.jit
def corners(first: tl.tensor, second: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """Low and high side along one axis from the two numbers of a format: 0 xyxy, 1 xywh, 2 cxcywh."""
    if FORMAT == 0:
        return _kept(first), _kept(second)
    elif FORMAT == 1:
        return _kept(first), _kept(first + second)
    else:
        return _kept(first - second * 0.5), _kept(first + second * 0.5)


@triton.jit
def corner_gradients(low: tl.tensor, high: tl.tensor, g_low: tl.tensor, g_high: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """Gradients of the two numbers of a format from those of the sides; a side beyond the limit has none."""
    g_low = tl.where(tl.abs(low) >= COORDINATE_LIMIT, 0.0, g_low)
    g_high = tl.where(tl.abs(high) >= COORDINATE_LIMIT, 0.0, g_high)
    if FORMAT == 0:
        return g_low, g_high
    elif FORMAT == 1:
        return g_low + g_high, g_high
    else:
        return g_low + g_high, (g_high - g_low) * 0.5


@triton.jit
def axis_facts(p1: tl.tensor, p2: tl.tensor, t1: tl.tensor, t2: tl.tensor) -> tl.tensor:
    """Length (signed), target length, enclosing length, centre offset, shares of prediction, target and overlap, sameness."""
    signed, target = p2 - p1, tl.maximum(t2 - t1, 0.0)
    low = tl.minimum(tl.minimum(p1, p2), tl.minimum(t1, t2))
    high = tl.maximum(tl.maximum(p1, p2), tl.maximum(t1, t2))
    enclosing = high - low
    unit = tl.maximum(enclosing, SMALLEST_SIDE)
    common = tl.maximum(tl.minimum(p2, t2) - tl.maximum(p1, t1), 0.0)
    offset = ((p1 - t1) + (p2 - t2)) * 0.5
    same = (p1 == t1) & (p2 == t2) & (signed >= 0)
    return signed, target, enclosing, offset, tl.maximum(signed, 0.0) / unit, target / unit, common / unit, same


@triton.jit
def inverted_share(signed: tl.tensor, target: tl.tensor, enclosing: tl.tensor) -> tl.tensor:
    """How far an interval is turned inside out, and the slope of that with respect to its length."""
    unit = tl.maximum(enclosing, SMALLEST_SIDE)
    turned = (signed < 0) | ((signed == 0) & (target > 0))
    return tl.where(turned, -signed, 0.0) / unit, tl.where(turned, -1.0 / unit, 0.0)


@triton.jit
def axis_back(
    p1: tl.tensor, p2: tl.tensor, t1: tl.tensor, t2: tl.tensor, a: tl.tensor, b: tl.tensor, c: tl.tensor, g_a: tl.tensor,
    g_b: tl.tensor, g_c: tl.tensor, g_signed: tl.tensor, g_enclosing: tl.tensor,
    g_offset: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Gradients of both sides of the prediction from those of the shares (a, b, c), of the lengths and of the offset."""
    signed = p2 - p1
    p_low, p_high, t_low, t_high = tl.minimum(p1, p2), tl.maximum(p1, p2), tl.minimum(t1, t2), tl.maximum(t1, t2)
    enclosing = tl.maximum(p_high, t_high) - tl.minimum(p_low, t_low)
    unit = tl.maximum(enclosing, SMALLEST_SIDE)
    g_enclosing += tl.where(enclosing > SMALLEST_SIDE, -(g_a * a + g_b * b + g_c * c) / unit, 0.0)
    g_signed += tl.where(signed >= 0, g_a / unit, 0.0)
    g_common = tl.where(tl.minimum(p2, t2) - tl.maximum(p1, t1) >= 0, g_c / unit, 0.0)
    first = below(p1, p2)  # share of the first side in the low end, of the second in the high end
    g_low, g_high = -g_enclosing * below(p_low, t_low), g_enclosing * below(t_high, p_high)
    half = g_offset * 0.5
    g1 = half - g_signed - g_common * below(t1, p1) + g_low * first + g_high * (1.0 - first)
    g2 = half + g_signed + g_common * below(p2, t2) + g_low * (1.0 - first) + g_high * first
    return g1, g2
