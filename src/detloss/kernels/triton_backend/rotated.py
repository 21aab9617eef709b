"""ProbIoU of rotated boxes on CUDA: rows of (x, y, w, h, angle)."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.triton_backend.maths import TINY, log1p_unit, scale_of
from detloss.kernels.triton_backend.sums import rows_of

__all__ = ["OPS", "refuses", "run"]

BLOCK_SIZE = 128
OPS = frozenset({"probiou"})
POSITION = tl.constexpr(1)
ONE = tl.constexpr(3)
LIMIT = tl.constexpr(1e15)
SMALLEST_UNIT = tl.constexpr(1e-30)
NEAREST_UNIT = tl.constexpr(1e-6)
SMALLEST_SHARE = tl.constexpr(1e-9)  # of the longest side, whose fourth power is a normal number


@triton.jit
def _number(boxes: tl.tensor, at: tl.tensor, mask: tl.tensor, PLACE: tl.constexpr) -> tl.tensor:
    """One of the five numbers of each box, as it is and within the limit."""
    x = tl.load(boxes + 5 * at + PLACE, mask=mask, other=1.0).to(tl.float32)
    return x, tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))


@triton.jit
def _turn(angle: tl.tensor) -> tl.tensor:
    """Cosine and sine: whole quarter turns are taken off, exactly up to 8192 radians. Those of CUDA need memory of a thread."""
    n = tl.floor(angle * 0.636619772 + 0.5)
    r = angle - n * 1.5703125  # π/2 in three parts: the products with the first two are exact
    r = r - n * 4.837512969970703125e-4
    r = r - n * 7.54978995489188216e-8
    r = tl.where(r > 0.7854, 0.7854, tl.where(r < -0.7854, -0.7854, r))  # of angles that have no digits left
    q = r * r
    sin = ((-1.9515295891e-4 * q + 8.3321608736e-3) * q - 1.6666654611e-1) * (q * r) + r
    cos = ((2.443315711809948e-5 * q - 1.388731625493765e-3) * q + 4.166664568298827e-2) * (q * q) - 0.5 * q + 1.0
    quarter = n - 4.0 * tl.floor(n * 0.25)
    odd = (quarter == 1) | (quarter == 3)
    c, s = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return tl.where((quarter == 1) | (quarter == 2), -c, c), tl.where(quarter >= 2, -s, s)


@triton.jit
def _side(length: tl.tensor, unit: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """A side as a share of the unit, bounded below, and its derivative to the side."""
    share = tl.where(length < 0, 0.0, length) / unit
    lacking = eps - share
    whole = tl.where(length < 0, 0.0, 1.0 / unit)
    return share + tl.where(lacking > 0, 0.5 * lacking, 0.0), tl.where(lacking > 0, 0.5 * whole, whole)


@triton.jit
def _difference(a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor) -> tl.tensor:
    """a b − c d, exactly 0 where both are the same product."""
    product = c * d
    return tl.fma(a, b, -product) + tl.fma(-c, d, product)


@triton.jit
def _log1p(x: tl.tensor) -> tl.tensor:
    """ln(1 + x) for x >= 0 with all digits of a small x."""
    return tl.where(x > 1, tl.log(1.0 + x), log1p_unit(tl.where(x > 1, 1.0, x)))


@triton.jit
def _bounded(distance: tl.tensor) -> tl.tensor:
    """√(1 − exp(−distance)) and its derivative, 1 where the distance is 0."""
    near = distance < 0.5
    small = tl.where(near, distance, 0.0)
    # 1 − exp(−d) as a series, whose terms fall by a factor of 16 at least.
    series = 1.0 - small / 8.0 * (1.0 - small / 9.0)
    series = 1.0 - small / 6.0 * (1.0 - small / 7.0 * series)
    series = 1.0 - small / 4.0 * (1.0 - small / 5.0 * series)
    series = small * (1.0 - small / 2.0 * (1.0 - small / 3.0 * series))
    e = tl.exp(-distance)
    missing = tl.where(near, series, 1.0 - e)
    root = tl.sqrt(tl.where(missing > 0, missing, 0.0))
    slope = tl.where(missing > 0, 0.5 * e / tl.maximum(root, TINY), 1.0)
    return tl.where(missing > 0, root, missing), slope


@triton.jit
def rotated_rows(
    pred: tl.tensor, boxes: tl.tensor, weight: tl.tensor, upstream: tl.tensor, divisor: tl.tensor, partial: tl.tensor,
    out: tl.tensor, n: tl.tensor, factor: tl.tensor, eps: tl.tensor,
    ITSELF: tl.constexpr, W: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """pred[n, 5] against boxes[n, 5], BLOCK pairs a program; ITSELF: the distance, not its bounded form."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    given_x, x = _number(pred, at, mask, 0)
    given_y, y = _number(pred, at, mask, 1)
    given_w, w = _number(pred, at, mask, 2)
    given_h, h = _number(pred, at, mask, 3)
    angle, _ = _number(pred, at, mask, 4)
    _, tx = _number(boxes, at, mask, 0)
    _, ty = _number(boxes, at, mask, 1)
    _, a = _number(boxes, at, mask, 2)
    _, b = _number(boxes, at, mask, 3)
    other, _ = _number(boxes, at, mask, 4)
    dx, dy, between = x - tx, y - ty, angle - other
    eps = tl.maximum(eps, SMALLEST_SHARE)
    longest = tl.maximum(tl.maximum(w, h), tl.maximum(a, b))
    unit = tl.maximum(tl.maximum(longest, tl.maximum(tl.abs(dx), tl.abs(dy)) * NEAREST_UNIT), SMALLEST_UNIT)
    pw, w_slope = _side(w, unit, eps)
    ph, h_slope = _side(h, unit, eps)
    width, _ = _side(a, unit, eps)
    height, _ = _side(b, unit, eps)
    cos_p, sin_p = _turn(angle)
    cos_t, sin_t = _turn(other)
    cos_b, sin_b = _turn(between)
    back = between - angle
    lost = (angle - (between - back)) - (other + back)  # in the subtraction
    cos_b, sin_b = cos_b - lost * sin_b, sin_b + lost * cos_b
    across = sin_b * sin_b > cos_b * cos_b
    s = tl.where(across, cos_b * cos_b, sin_b * sin_b)
    tw, th = tl.where(across, height, width), tl.where(across, width, height)
    ux, uy = dx / unit, dy / unit
    pu, pv = ux * cos_p + uy * sin_p, uy * cos_p - ux * sin_p
    tu, tv = ux * cos_t + uy * sin_t, uy * cos_t - ux * sin_t
    least = 4.0 * ((pw * ph) * (tw * th))
    straight, crossed, more = _difference(pw, th, tw, ph), _difference(pw, tw, ph, th), _difference(pw, ph, tw, th)
    excess = more * more + (1.0 - s) * (straight * straight) + s * (crossed * crossed)
    hu, wv, tall, wide = ph * pu, pw * pv, height * tu, width * tv
    whole = least + excess
    part, z = 3.0 * ((hu * hu + wv * wv) + (tall * tall + wide * wide)) / whole, excess / least
    loss, by_distance = part + 0.5 * _log1p(z), whole * 0.0 + 1.0
    if not ITSELF:
        loss, by_distance = _bounded(loss)
    depth = tl.maximum(tl.maximum(tl.abs(w), tl.abs(h)), unit)
    inverted = (tl.where(w < 0, -w, 0.0) + tl.where(h < 0, -h, 0.0)) / depth
    floored = (inverted > 0) & (loss < 1)
    # Comparisons drop NaN; this sum of finite numbers is 0, of a NaN it is NaN.
    broken = ((x + y) + (w + h) + (dx + dy) + (a + b) + (cos_p + cos_t)) * 0.0
    loss = tl.where(floored, 1.0, loss) + inverted + broken
    wt, up, counts = tl.full([BLOCK], 1.0, tl.float32), tl.full([BLOCK], 1.0, tl.float32), mask
    if W == POSITION:
        wt = tl.load(weight + at, mask=mask, other=0.0)
        counts = counts & (wt != 0)
    loss = tl.where(counts, loss * wt, 0.0)
    if MODE == "each":
        tl.store(out + at, loss, mask=mask)
    if partial is not None:
        tl.store(partial + tl.program_id(0), tl.sum(loss, 0))
    if MODE == "grad":
        if U == POSITION:
            up = tl.load(upstream + at, mask=mask, other=0.0)
        elif U == ONE:
            up = up * tl.load(upstream)
        scale = scale_of(factor, divisor)
        q = tl.where(floored, 0.0, by_distance) / whole
        by_offset, by_excess, by_least = 6.0 * q, 2.0 * q * (0.5 - part), -4.0 * q * (part + 0.5 * z)
        by_straight, by_crossed, by_more = by_excess * (1.0 - s) * straight, by_excess * s * crossed, by_excess * more
        by_w = by_offset * (pw * (pv * pv)) + by_more * ph + by_straight * th + by_crossed * tw + by_least * (tw * th * ph)
        by_h = by_offset * (ph * (pu * pu)) + by_more * pw - by_straight * tw - by_crossed * th + by_least * (tw * th * pw)
        by_pu, by_pv = by_offset * (hu * ph), by_offset * (wv * pw)
        by_tu, by_tv = by_offset * (tall * height), by_offset * (wide * width)
        by_ux = (by_pu * cos_p - by_pv * sin_p) + (by_tu * cos_t - by_tv * sin_t)
        by_uy = (by_pu * sin_p + by_pv * cos_p) + (by_tu * sin_t + by_tv * cos_t)
        turned = tl.where(across, -1.0, 1.0) * (sin_b * cos_b) * by_excess * ((crossed - straight) * (crossed + straight))
        inverse, factors = 1.0 / unit, wt * up * scale
        _store(out, at, mask, counts, scale, factors, tl.where(tl.abs(given_x) > LIMIT, 0.0, by_ux * inverse) + broken, 0)
        _store(out, at, mask, counts, scale, factors, tl.where(tl.abs(given_y) > LIMIT, 0.0, by_uy * inverse) + broken, 1)
        by_w = by_w * w_slope - tl.where(w < 0, 1.0 / depth, 0.0)
        by_h = by_h * h_slope - tl.where(h < 0, 1.0 / depth, 0.0)
        _store(out, at, mask, counts, scale, factors, tl.where(tl.abs(given_w) > LIMIT, 0.0, by_w) + broken, 2)
        _store(out, at, mask, counts, scale, factors, tl.where(tl.abs(given_h) > LIMIT, 0.0, by_h) + broken, 3)
        _store(out, at, mask, counts, scale, factors, by_offset * (pu * pv) * ((ph - pw) * (ph + pw)) + turned + broken, 4)


@triton.jit
def _store(
    out: tl.tensor, at: tl.tensor, mask: tl.tensor, counts: tl.tensor, scale: tl.tensor, factors: tl.tensor, slope: tl.tensor,
    PLACE: tl.constexpr,
) -> None:  # fmt: skip
    """One of the five derivatives of each box; a scale of 0 wins over what is not finite."""
    slope = tl.where(scale == 0, 0.0, tl.where(counts, slope * factors, 0.0))
    tl.store(out + 5 * at + PLACE, slope.to(out.dtype.element_ty), mask=mask)


def refuses(call: Call) -> str | None:
    """Every checked call is taken."""
    return None


def run(
    call: Call, factor: float, divisor: Tensor | None, upstream: Tensor | None, mode: str, total: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Partial sums of the weighted losses (``total``), and the gradient (mode ``"grad"``) or the losses (``"each"``)."""
    rows = rows_of(call, upstream, mode, total, BLOCK_SIZE)
    eps, itself = call.numbers
    rotated_rows[rows.grid](
        *rows.tensors, divisor, rows.partial, rows.out, rows.number, factor, eps,
        ITSELF=itself != 0, W=rows.spreads[0], U=rows.spreads[1], MODE=mode, BLOCK=BLOCK_SIZE,
    )  # fmt: skip
    return rows.partial, rows.out
