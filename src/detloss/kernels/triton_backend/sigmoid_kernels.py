"""Sigmoid losses over rows and over planes: where each number lies, and what goes in and out."""

from __future__ import annotations

import triton
import triton.language as tl

from detloss.kernels.triton_backend.maths import scale_of
from detloss.kernels.triton_backend.sigmoid_cells import focal_index_cell, soft_cell

__all__ = ["sigmoid_planes", "sigmoid_rows"]

POSITION = tl.constexpr(1)
ELEMENT = tl.constexpr(2)
ONE = tl.constexpr(3)


@triton.jit
def _position(
    index: tl.tensor,
    score: tl.tensor,
    weight: tl.tensor,
    upstream: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    ignore: tl.tensor,
    C: tl.tensor,
    W: tl.constexpr,
    U: tl.constexpr,
) -> tl.tensor:
    """Class (−1: none), score, weight, upstream gradient and whether it counts, of positions."""
    t = tl.full(at.shape, -1, tl.int32)
    s = tl.full(at.shape, 1.0, tl.float32)
    w = tl.full(at.shape, 1.0, tl.float32)
    up = tl.full(at.shape, 1.0, tl.float32)
    counts = mask
    if index is not None:
        given = tl.load(index + at, mask=mask, other=-1).to(tl.int64)
        counts = counts & (given != ignore)
        t = tl.where((given >= 0) & (given < C) & (given != ignore), given, -1).to(tl.int32)
    if score is not None:
        s = tl.load(score + at, mask=mask, other=0.0).to(tl.float32)
    if W == POSITION:
        w = tl.load(weight + at, mask=mask, other=0.0)
        counts = counts & (w != 0)
    if U == POSITION:
        up = tl.load(upstream + at, mask=mask, other=0.0)
    elif U == ONE:
        up = up * tl.load(upstream)
    return t, s, w, up, counts


@triton.jit
def _numbers(
    x_ptr: tl.tensor, target: tl.tensor, weight: tl.tensor, upstream: tl.tensor, class_weight: tl.tensor, alpha: tl.tensor,
    out: tl.tensor, at: tl.tensor, mask: tl.tensor, c: tl.tensor, t: tl.tensor, s: tl.tensor, w: tl.tensor, up: tl.tensor,
    counts: tl.tensor,
    scale: tl.tensor, positive: tl.tensor, negative: tl.tensor,
    OP: tl.constexpr, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr, BY_QUALITY: tl.constexpr,
    INDEX: tl.constexpr, SCORE: tl.constexpr, W: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Weighted losses of the numbers at ``at``; writes gradients (MODE "grad") or losses ("each")."""
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    own = 1.0
    if class_weight is not None:
        own = tl.load(class_weight + c, mask=mask, other=0.0)
    if alpha is not None:
        positive = tl.load(alpha + c, mask=mask, other=0.0)
        negative = 1.0 - positive
    counts = counts & mask
    if W == ELEMENT:
        given = tl.load(weight + at, mask=mask, other=0.0)
        counts, w = counts & (given != 0), w * given
    if U == ELEMENT:
        up = up * tl.load(upstream + at, mask=mask, other=0.0)
    hit = c == t
    if OP == "focal" and INDEX and SMOOTHING == 0.0:
        loss, slope = focal_index_cell(x, hit, positive * own, negative, GAMMA)
    else:
        y = tl.where(hit, s if SCORE else 1.0, 0.0) if INDEX else tl.load(target + at, mask=mask, other=0.0).to(tl.float32)
        loss, slope = soft_cell(x, y, own, positive, negative, OP, GAMMA, SMOOTHING, BY_QUALITY)
    loss = tl.where(counts, loss * w, 0.0)
    if MODE == "grad":
        slope = tl.where(scale == 0, 0.0, tl.where(counts, slope * (w * up * scale), 0.0))
        tl.store(out + at, slope.to(out.dtype.element_ty), mask=mask)
    elif MODE == "each":
        tl.store(out + at, loss, mask=mask)
    return loss


@triton.jit
def sigmoid_rows(
    x_ptr: tl.tensor, index: tl.tensor, target: tl.tensor, score: tl.tensor, weight: tl.tensor, upstream: tl.tensor,
    class_weight: tl.tensor, alpha: tl.tensor,
    divisor: tl.tensor, partial: tl.tensor, out: tl.tensor, outer: tl.tensor, inner: tl.tensor, factor: tl.tensor,
    positive: tl.tensor, negative: tl.tensor, ignore: tl.tensor,
    C: tl.constexpr, OP: tl.constexpr, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr, BY_QUALITY: tl.constexpr,
    W: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr, CLASS_BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """x[outer, C], BLOCK numbers a program, however many rows they belong to."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    first = start // C
    lane = (start - first * C).to(tl.int32) + tl.arange(0, BLOCK)
    row, c = first + lane // C, lane % C
    at, mask = start + tl.arange(0, BLOCK), row < outer
    t, s, w, up, counts = _position(index, score, weight, upstream, row, mask, ignore, C, W, U)
    loss = _numbers(
        x_ptr, target, weight, upstream, class_weight, alpha, out, at, mask, c, t, s, w, up, counts,
        scale_of(factor, divisor), positive, negative, OP, GAMMA, SMOOTHING, BY_QUALITY,
        index is not None, score is not None, W, U, MODE,
    )  # fmt: skip
    if partial is not None:
        tl.store(partial + tl.program_id(0), tl.sum(loss, 0))


@triton.jit
def sigmoid_planes(
    x_ptr: tl.tensor, index: tl.tensor, target: tl.tensor, score: tl.tensor, weight: tl.tensor, upstream: tl.tensor,
    class_weight: tl.tensor, alpha: tl.tensor,
    divisor: tl.tensor, partial: tl.tensor, out: tl.tensor, outer: tl.tensor, inner: tl.tensor, factor: tl.tensor,
    positive: tl.tensor, negative: tl.tensor, ignore: tl.tensor,
    C: tl.constexpr, OP: tl.constexpr, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr, BY_QUALITY: tl.constexpr,
    W: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr, CLASS_BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """x[outer, C, inner], CLASS_BLOCK planes of BLOCK numbers a program, which reads the targets of their positions once."""
    blocks = tl.cdiv(inner, BLOCK)
    o, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    i = block * BLOCK + tl.arange(0, BLOCK)
    mask = i < inner
    t, s, w, up, counts = _position(index, score, weight, upstream, o * inner + i, mask, ignore, C, W, U)
    scale = scale_of(factor, divisor)
    sums = tl.zeros([BLOCK], tl.float32)
    for k in range(CLASS_BLOCK):
        c = tl.program_id(1) * CLASS_BLOCK + k
        if c < C:
            sums += _numbers(
                x_ptr, target, weight, upstream, class_weight, alpha, out, (o * C + c) * inner + i, mask, c + i * 0,
                t, s, w, up, counts, scale, positive, negative, OP, GAMMA, SMOOTHING, BY_QUALITY,
                index is not None, score is not None, W, U, MODE,
            )  # fmt: skip
    if partial is not None:
        tl.store(partial + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), tl.sum(sums, 0))
