"""What the members of the IoU family add to 1 − IoU, with the gradients of lengths and offsets along both axes."""

from __future__ import annotations

import triton
import triton.language as tl

from detloss.kernels.triton_backend.box_axis import SMALLEST_SIDE
from detloss.kernels.triton_backend.maths import TINY, below

__all__ = ["aspect", "distance", "iou_term", "scylla", "side_differences"]

ASPECT = tl.constexpr(0.4052847345693511)  # 4 / π²


@triton.jit
def iou_term(iou: tl.tensor, eps: tl.tensor, MODE: tl.constexpr) -> tl.tensor:
    """Loss of the IoU and its slope: 0 linear, 1 square, 2 logarithmic."""
    if MODE == 0:
        return 1.0 - iou, iou * 0.0 - 1.0
    elif MODE == 1:
        return 1.0 - iou * iou, -2.0 * iou
    else:
        bounded = tl.maximum(iou, eps)
        return -tl.log(bounded), tl.where(iou > eps, -1.0 / bounded, 0.0)


@triton.jit
def distance(dx: tl.tensor, dy: tl.tensor, cw: tl.tensor, ch: tl.tensor) -> tl.tensor:
    """ρ²/c² and its derivatives with respect to dx, dy, cw, ch."""
    unit = tl.maximum(tl.maximum(cw, ch), SMALLEST_SIDE)
    x, y, w, h = dx / unit, dy / unit, cw / unit, ch / unit
    diagonal = w * w + h * h
    inverse = 1.0 / tl.where(diagonal > 0, diagonal, 1.0)
    value = (x * x + y * y) * inverse
    twice = 2.0 * inverse / unit
    fall = tl.where(diagonal > 0, -value * twice, 0.0)
    return value, x * twice, y * twice, w * fall, h * fall


@triton.jit
def _arctan(t: tl.tensor) -> tl.tensor:
    """arctan, to 1e-7 of its value: a polynomial in [−1, 1], the complement beyond."""
    size = tl.abs(t)
    u = tl.where(size > 1, 1.0 / tl.maximum(size, 1.0), size)
    q = u * u
    p = ((0.00396219135 * q - 0.0203646353) * q + 0.0493852494) * q - 0.0804232451
    p = (((p * q + 0.108774217) * q - 0.14259041) * q + 0.199988105) * q - 0.333333245
    r = u + u * q * p
    r = tl.where(size > 1, 1.57079632679 - r, r)
    return tl.where(t < 0, -r, r)


@triton.jit
def _bounded_side(side: tl.tensor, enclosing: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """A side bounded below by eps of the enclosing one, and the share of the gradient that passes."""
    least = eps * enclosing
    floor = eps * SMALLEST_SIDE
    value = tl.maximum(side, least)
    return tl.maximum(value, floor), tl.where(value > floor, below(least, side), 0.0)


@triton.jit
def aspect(
    pw: tl.tensor,
    ph: tl.tensor,
    tw: tl.tensor,
    th: tl.tensor,
    cw: tl.tensor,
    ch: tl.tensor,
    iou: tl.tensor,
    eps: tl.tensor,
    threshold: tl.tensor,
) -> tl.tensor:
    """αv of CIoU and its derivatives with respect to the predicted width and height, α held constant.

    The difference of two arctangents is one of (w* h − h* w) / (h* h + w* w), exact also where the ratios are close.
    """
    unit = tl.maximum(tl.maximum(cw, ch), SMALLEST_SIDE)
    w, pass_w = _bounded_side(pw, cw, eps)
    h, pass_h = _bounded_side(ph, ch, eps)
    w_target, _ = _bounded_side(tw, cw, eps)
    h_target, _ = _bounded_side(th, ch, eps)
    w, h, w_target, h_target = w / unit, h / unit, w_target / unit, h_target / unit
    difference = _arctan((w_target * h - h_target * w) / tl.maximum(h_target * h + w_target * w, TINY))
    v = ASPECT * difference * difference
    alpha = tl.where(v > 0, v / tl.maximum(1.0 - iou + v, TINY), 0.0)
    alpha = tl.where((threshold < 0) | (iou > threshold), alpha, 0.0)
    pull = -2.0 * ASPECT * alpha * difference / tl.maximum(w * w + h * h, TINY) / unit
    return alpha * v, pull * h * pass_w, -pull * w * pass_h


@triton.jit
def side_differences(p: tl.tensor, t: tl.tensor, c: tl.tensor) -> tl.tensor:
    """(s − s*)²/C² of EIoU along one axis and its derivatives with respect to s and C; C is constant where s is negative."""
    unit = tl.maximum(c, SMALLEST_SIDE)
    u = (p - t) / unit
    return u * u, 2.0 * u / unit, tl.where((p >= 0) & (c > SMALLEST_SIDE), -2.0 * u * u / unit, 0.0)


@triton.jit
def _shape(p: tl.tensor, t: tl.tensor, c: tl.tensor, eps: tl.tensor, theta: tl.tensor) -> tl.tensor:
    """(1 − e^(−gap))^θ with gap = |s − s*| / max(s, s*), and its derivative with respect to s."""
    larger, least = tl.maximum(p, t), eps * c
    bounded = tl.maximum(larger, least)
    unit = tl.maximum(bounded, SMALLEST_SIDE)
    gap = tl.abs(p - t) / unit
    e = tl.exp(-gap)
    omega = tl.maximum(1.0 - e, 0.0)
    lower = tl.where(omega > 0, tl.exp((theta - 1.0) * tl.log(tl.maximum(omega, TINY))), tl.where(theta == 1.0, 1.0, 0.0))
    sign = tl.where(p > t, 1.0, tl.where(p < t, -1.0, 0.0))
    growth = tl.where(bounded > SMALLEST_SIDE, below(t, p) * below(least, larger), 0.0)
    return lower * omega, theta * lower * e * (sign - gap * growth) / unit


@triton.jit
def scylla(
    dx: tl.tensor,
    dy: tl.tensor,
    cw: tl.tensor,
    ch: tl.tensor,
    pw: tl.tensor,
    ph: tl.tensor,
    tw: tl.tensor,
    th: tl.tensor,
    eps: tl.tensor,
    theta: tl.tensor,
) -> tl.tensor:
    """(Δ + Ω)/2 of SIoU and its derivatives with respect to dx, dy, cw, ch, the predicted width and height."""
    unit = tl.maximum(tl.maximum(cw, ch), SMALLEST_SIDE)
    x, y = dx / unit, dy / unit
    squared = x * x + y * y
    inverse = 1.0 / tl.where(squared > 0, squared, 1.0)
    angle = 2.0 * tl.abs(x) * tl.abs(y) * inverse
    wide, tall = tl.maximum(cw, SMALLEST_SIDE), tl.maximum(ch, SMALLEST_SIDE)
    u, v = dx / wide, dy / tall
    e_x, e_y = tl.exp((angle - 2.0) * u * u), tl.exp((angle - 2.0) * v * v)
    shape_w, g_w = _shape(pw, tw, cw, eps, theta)
    shape_h, g_h = _shape(ph, th, ch, eps, theta)
    value = 0.5 * ((1.0 - e_x) + (1.0 - e_y) + shape_w + shape_h)
    # dΛ/d|x| = 2 |y| (y² − x²) / (x² + y²)²
    turn = -0.5 * (u * u * e_x + v * v * e_y) * 2.0 * (y * y - x * x) * inverse * inverse / unit
    sign_x = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))
    sign_y = tl.where(y > 0, 1.0, tl.where(y < 0, -1.0, 0.0))
    away_x, away_y = (2.0 - angle) * e_x * u / wide, (2.0 - angle) * e_y * v / tall
    g_x, g_y = away_x + turn * tl.abs(y) * sign_x, away_y - turn * tl.abs(x) * sign_y
    g_cw = tl.where(cw > SMALLEST_SIDE, -away_x * u, 0.0)
    g_ch = tl.where(ch > SMALLEST_SIDE, -away_y * v, 0.0)
    return value, g_x, g_y, g_cw, g_ch, 0.5 * g_w, 0.5 * g_h
