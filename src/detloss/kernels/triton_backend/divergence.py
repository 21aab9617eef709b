"""Divergence of a student's softmax from a teacher's on CUDA.

T² KL = T² ln(1 + Σ q (e^v − 1 − v)) with v = (x − y)/T less its mean under q, a sum of what is never below 0: where v is small
by a series, elsewhere with q e^v = p e^KL and KL as the plain difference of logarithms gives it, which is also the answer
where it is large. The gradient T (p − q) is T q (e^(v − KL) − 1) where the two are near. Classes are taken a block at a time,
four times: maxima; sums of the exponentials; the rest of the mean; loss. A fifth pass writes the gradient. All passes but the
first read the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.layout import class_layout, in_order, restored, spread
from detloss.kernels.triton_backend import softmax
from detloss.kernels.triton_backend.maths import log1p_unit, scale_of
from detloss.kernels.triton_backend.softmax_kernels import positions_of
from detloss.kernels.triton_backend.sums import fresh_results

__all__ = ["OPS", "refuses", "run"]

OPS = frozenset({"kl_divergence"})
ONE = tl.constexpr(3)
POSITION = tl.constexpr(1)
SERIES = tl.constexpr(2.0)  # the series holds for |v| up to it
PLAIN = tl.constexpr(0.69314718)  # a KL above it is the plain difference
BEYOND_SERIES = tl.constexpr(1e30)  # stands in for x − y where q is 0


@triton.jit
def _bend(v: tl.tensor) -> tl.tensor:
    """(e^v − 1 − v) / v² for |v| <= SERIES, to 4e-8 of it."""
    near = (2.540635080094944e-08 * v + 2.966129386550165e-07) * v + 2.7614037207968067e-06
    near = ((near * v + 2.472973574185744e-05) * v + 0.00019838727894239128) * v + 0.0013889871770516038
    near = ((near * v + 0.008333365432918072) * v + 0.04166661947965622) * v + 0.1666666567325592
    return near * v + 0.5


@triton.jit
def _cells(x_ptr: tl.tensor, y_ptr: tl.tensor, at: tl.tensor, tile: tl.tensor) -> tl.tensor:
    """Logits of student and teacher in a tile, −inf outside of it."""
    x = tl.load(x_ptr + at, mask=tile, other=float("-inf")).to(tl.float32)
    return x, tl.load(y_ptr + at, mask=tile, other=float("-inf")).to(tl.float32)


@triton.jit
def _shares(x: tl.tensor, y: tl.tensor, top_x: tl.tensor, top_y: tl.tensor, cold: tl.tensor) -> tl.tensor:
    """e^((x − maximum)/T), the same of y, and the difference of the exponents of y and x."""
    gap_x, gap_y = (top_x - x) * cold, (top_y - y) * cold
    return tl.exp(-gap_x), tl.exp(-gap_y), gap_x - gap_y


@triton.jit
def _centred(x: tl.tensor, y: tl.tensor, q: tl.tensor, mean: tl.tensor) -> tl.tensor:
    """x − y less the mean, to the last digit."""
    difference = x - y
    back = difference - x
    lost = (x - (difference - back)) - (y + back)
    return tl.where(q == 0, BEYOND_SERIES, (difference - mean) + lost)


@triton.jit
def divergence_positions(
    x_ptr: tl.tensor, y_ptr: tl.tensor, weight: tl.tensor, upstream: tl.tensor, divisor: tl.tensor, partial: tl.tensor,
    out: tl.tensor, outer: tl.tensor, inner: tl.tensor, factor: tl.tensor, hot: tl.tensor, C: tl.constexpr, W: tl.constexpr,
    U: tl.constexpr, MODE: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
) -> None:  # fmt: skip
    """x, y[outer, C, inner]: ROWS positions a program, rows or pixels of a plane; writes gradients or losses as MODE says."""
    position, base, mask, step = positions_of(outer, inner, C, PLANES, ROWS)
    counts = mask
    w, up = tl.full([ROWS], 1.0, tl.float32), tl.full([ROWS], 1.0, tl.float32)
    if W == POSITION:
        w = tl.load(weight + position, mask=mask, other=0.0)
        counts = counts & (w != 0)
    if U == POSITION:
        up = tl.load(upstream + position, mask=mask, other=0.0)
    elif U == ONE:
        up = up * tl.load(upstream)
    cold = 1.0 / hot

    top_x, top_y = tl.full([ROWS], float("-inf"), tl.float32), tl.full([ROWS], float("-inf"), tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        x, y = _cells(x_ptr, y_ptr, base[:, None] + (c * step)[None, :], mask[:, None] & (c < C)[None, :])
        top_x, top_y = tl.maximum(top_x, tl.max(x, 1)), tl.maximum(top_y, tl.max(y, 1))
    top_x, top_y = tl.where(mask, top_x, 0.0), tl.where(mask, top_y, 0.0)

    sum_p, sum_q, apart = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        x, y = _cells(x_ptr, y_ptr, base[:, None] + (c * step)[None, :], mask[:, None] & (c < C)[None, :])
        p, q, ahead = _shares(x, y, top_x[:, None], top_y[:, None], cold)
        sum_p, sum_q, apart = sum_p + tl.sum(p, 1), sum_q + tl.sum(q, 1), apart + tl.sum(tl.where(q == 0, 0.0, q * ahead), 1)
    sum_p, sum_q = tl.where(mask, sum_p, 1.0), tl.where(mask, sum_q, 1.0)
    by_p, by_q = 1.0 / sum_p, 1.0 / sum_q
    apart = apart * by_q
    plain = apart + tl.log(sum_p) - tl.log(sum_q)
    mean = (top_x - top_y) - apart * hot
    lifted = by_p * tl.exp(tl.minimum(tl.maximum(plain, 0.0), 1.0))

    rest = tl.zeros([ROWS], tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        x, y = _cells(x_ptr, y_ptr, base[:, None] + (c * step)[None, :], mask[:, None] & (c < C)[None, :])
        q = tl.exp((y - top_y[:, None]) * cold)
        rest += tl.sum(q * _centred(x, y, q, mean[:, None]), 1)
    rest = rest * by_q

    excess = tl.zeros([ROWS], tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        x, y = _cells(x_ptr, y_ptr, base[:, None] + (c * step)[None, :], mask[:, None] & (c < C)[None, :])
        p, q, _ = _shares(x, y, top_x[:, None], top_y[:, None], cold)
        v, share = (_centred(x, y, q, mean[:, None]) - rest[:, None]) * cold, q * by_q[:, None]
        excess += tl.sum(tl.where(tl.abs(v) <= SERIES, share * (v * v * _bend(v)), p * lifted[:, None] - share * (1.0 + v)), 1)
    near = plain <= PLAIN
    cost = tl.where(near, log1p_unit(tl.minimum(excess, 1.0)), plain)
    loss = tl.where(counts, hot * (hot * cost) * w, 0.0)
    if MODE == "each":
        tl.store(out + position, loss, mask=mask)
    if partial is not None:
        tl.store(partial + tl.program_id(0), tl.sum(loss, 0))
    if MODE == "grad":
        scale = scale_of(factor, divisor)
        w = w * up * scale * hot
        limit = tl.where(near, SERIES, -1.0)
        for start in range(0, C, BC):
            c = start + tl.arange(0, BC)
            tile = mask[:, None] & (c < C)[None, :]
            at = base[:, None] + (c * step)[None, :]
            x, y = _cells(x_ptr, y_ptr, at, tile)
            p, q, _ = _shares(x, y, top_x[:, None], top_y[:, None], cold)
            v, share = (_centred(x, y, q, mean[:, None]) - rest[:, None]) * cold - cost[:, None], q * by_q[:, None]
            slope = tl.where(tl.abs(v) <= limit[:, None], share * (v + v * v * _bend(v)), p * by_p[:, None] - share)
            slope = tl.where(scale == 0, 0.0, tl.where(counts[:, None], slope * w[:, None], 0.0))
            tl.store(out + at, slope.to(out.dtype.element_ty), mask=tile)


def refuses(call: Call) -> str | None:
    """Every checked call is taken."""
    return None


def run(
    call: Call, factor: float, divisor: Tensor | None, upstream: Tensor | None, mode: str, total: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Partial sums of the weighted losses (``total``), and the gradient (mode ``"grad"``) or the losses (``"each"``)."""
    layout = class_layout(call.pred)
    planes = layout.inner > 1
    rows, block = softmax.tile_shape(layout.classes, planes)
    pred = in_order(call.pred, layout)
    target = None if call.target is None else in_order(call.target, layout)
    weight, weight_spread = spread(call.weight, call, layout, True)
    above, upstream_spread = spread(upstream, call, layout, True)
    grid = (layout.outer * triton.cdiv(layout.inner, rows) if planes else triton.cdiv(layout.outer, rows),)
    partial, out = fresh_results(call, pred, mode, grid if total else None)
    divergence_positions[grid](
        pred, target, weight, above, divisor, partial, out, layout.outer, layout.inner, factor, call.numbers[0],
        C=layout.classes, W=weight_spread, U=upstream_spread, MODE=mode, PLANES=planes, ROWS=rows, BC=block,
    )  # fmt: skip
    return partial, restored(out, layout) if out is not None and mode == "grad" else out
