"""Softmax cross entropy and focal loss over tiles of positions by classes.

Both are Σ_c k_c T(p_c) with T(p) = (1 − p)^γ (−ln p), γ = 0 for the cross entropy, and k_c = ((1 − ε) y_c + ε/C) · factor_c.
With g_c = k_c dT/d ln p_c and G = Σ g_c, the gradient is g_c − p_c G. Classes are taken a block at a time: once for the
maximum and the sum of the exponentials, once for loss and G, once for the gradient; the second and third read the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from detloss.kernels.triton_backend.maths import capped, log1p_unit, power, power_slope, scale_of

__all__ = ["positions_of", "softmax_positions"]

ONE = tl.constexpr(3)
POSITION = tl.constexpr(1)


@triton.jit
def _term(p: tl.tensor, missing: tl.tensor, cost: tl.tensor, GAMMA: tl.constexpr) -> tl.tensor:
    """T = missing^γ · cost and dT/d ln p, with missing = 1 − p and cost = −ln p."""
    faded = power(missing, GAMMA)
    return faded * cost, -(faded + power_slope(missing, faded, GAMMA) * p * capped(cost))


@triton.jit
def _share(
    target: tl.tensor,
    class_weight: tl.tensor,
    alpha: tl.tensor,
    at: tl.tensor,
    hit: tl.tensor,
    c: tl.tensor,
    tile: tl.tensor,
    C: tl.constexpr,
    SMOOTHING: tl.constexpr,
) -> tl.tensor:
    """k of every cell of a tile."""
    y = tl.where(hit, 1.0, 0.0) if target is None else tl.load(target + at, mask=tile, other=0.0).to(tl.float32)
    k = tl.where(tile, y * (1.0 - SMOOTHING) + SMOOTHING / C, 0.0)
    if class_weight is not None:
        k *= tl.load(class_weight + c, mask=c < C, other=0.0)[None, :]
    if alpha is not None:
        k *= tl.load(alpha + c, mask=c < C, other=0.0)[None, :]
    return k


@triton.jit
def _statistics(
    x_ptr: tl.tensor,
    base: tl.tensor,
    t: tl.tensor,
    mask: tl.tensor,
    step: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BC: tl.constexpr,
) -> tl.tensor:
    """Maximum, sum of e^(x − maximum) and the part of that sum that is not the own class's, of every position."""
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    everything, others = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        tile = mask[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + base[:, None] + (c * step)[None, :], mask=tile, other=float("-inf")).to(tl.float32)
        before, largest = largest, tl.maximum(largest, tl.max(x, 1))
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        e = tl.exp(x - shift[:, None])
        shrink = tl.exp(before - shift)
        everything = everything * shrink + tl.sum(e, 1)
        others = others * shrink + tl.sum(tl.where(c[None, :] == t[:, None], 0.0, e), 1)
    return tl.where(largest == float("-inf"), 0.0, largest), everything, others


@triton.jit
def _own(
    x_ptr: tl.tensor, at: tl.tensor, found: tl.tensor, largest: tl.tensor, everything: tl.tensor, others: tl.tensor
) -> tl.tensor:
    """p, 1 − p and −ln p of the own class, exact also where p is almost 1."""
    x = tl.load(x_ptr + at, mask=found, other=0.0).to(tl.float32) - largest
    e = tl.exp(x)
    sure = 2.0 * e > everything
    cost = tl.where(sure, log1p_unit(others / tl.where(sure, e, 1.0)), tl.log(everything) - x)
    return e / everything, others / everything, cost


@triton.jit
def _cells(
    x_ptr: tl.tensor, target: tl.tensor, class_weight: tl.tensor, alpha: tl.tensor, at: tl.tensor, t: tl.tensor, c: tl.tensor,
    tile: tl.tensor, largest: tl.tensor, everything: tl.tensor,
    own_missing: tl.tensor, own_cost: tl.tensor, C: tl.constexpr, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Loss, g and p of every cell of a tile."""
    x = tl.load(x_ptr + at, mask=tile, other=float("-inf")).to(tl.float32) - largest[:, None]
    p = tl.exp(x) / everything[:, None]
    hit = (c[None, :] == t[:, None]) & tile
    missing = tl.where(hit, own_missing[:, None], 1.0 - p)
    cost = tl.where(hit, own_cost[:, None], tl.log(everything)[:, None] - x)
    value, slope = _term(p, missing, cost, GAMMA)
    k = _share(target, class_weight, alpha, at, hit, c, tile, C, SMOOTHING)
    return tl.where(k == 0, 0.0, k * value), tl.where(k == 0, 0.0, k * slope), p


@triton.jit
def positions_of(
    outer: tl.tensor, inner: tl.tensor, C: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """The positions of a program, where their first class lies, which are there, and the step to the next class."""
    if PLANES:
        blocks = tl.cdiv(inner, ROWS)
        o, i = (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
        position, base, mask, step = o * inner + i, o * C * inner + i, i < inner, inner
    else:
        position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        base, mask, step = position * C, position < outer, 1
    return position, base, mask, step


@triton.jit
def softmax_positions(
    x_ptr: tl.tensor, index: tl.tensor, target: tl.tensor, weight: tl.tensor, upstream: tl.tensor, class_weight: tl.tensor,
    alpha: tl.tensor,
    divisor: tl.tensor, partial: tl.tensor, out: tl.tensor, outer: tl.tensor, inner: tl.tensor, factor: tl.tensor,
    ignore: tl.tensor, C: tl.constexpr, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr, W: tl.constexpr, U: tl.constexpr,
    MODE: tl.constexpr,
    PLANES: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
) -> None:  # fmt: skip
    """x[outer, C, inner]: ROWS positions a program, rows or pixels of a plane; writes gradients or losses as MODE says."""
    position, base, mask, step = positions_of(outer, inner, C, PLANES, ROWS)
    counts = mask
    t = tl.full([ROWS], -1, tl.int32)
    w, up = tl.full([ROWS], 1.0, tl.float32), tl.full([ROWS], 1.0, tl.float32)
    if index is not None:
        given = tl.load(index + position, mask=mask, other=-1).to(tl.int64)
        counts = counts & (given >= 0) & (given < C) & (given != ignore)
        t = tl.where(counts, given, 0).to(tl.int32)
    if W == POSITION:
        w = tl.load(weight + position, mask=mask, other=0.0)
        counts = counts & (w != 0)
    if U == POSITION:
        up = tl.load(upstream + position, mask=mask, other=0.0)
    elif U == ONE:
        up = up * tl.load(upstream)
    scale = scale_of(factor, divisor)

    largest, everything, others = _statistics(x_ptr, base, t, mask, step, C, ROWS, BC)
    own_p, own_missing, own_cost = _own(x_ptr, base + t * step, counts & (t >= 0), largest, everything, others)
    if SMOOTHING == 0.0 and index is not None:
        loss, total = _term(own_p, own_missing, own_cost, GAMMA)
        k = tl.full([ROWS], 1.0, tl.float32)
        if class_weight is not None:
            k *= tl.load(class_weight + t, mask=counts, other=0.0)
        if alpha is not None:
            k *= tl.load(alpha + t, mask=counts, other=0.0)
        loss, total = tl.where(k == 0, 0.0, k * loss), tl.where(k == 0, 0.0, k * total)
    else:
        loss, total = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
        for start in range(0, C, BC):
            c = start + tl.arange(0, BC)
            tile = mask[:, None] & (c < C)[None, :]
            at = base[:, None] + (c * step)[None, :]
            cell, g, _ = _cells(
                x_ptr,
                target,
                class_weight,
                alpha,
                at,
                t,
                c,
                tile,
                largest,
                everything,
                own_missing,
                own_cost,
                C,
                GAMMA,
                SMOOTHING,
            )
            loss += tl.sum(cell, 1)
            total += tl.sum(g, 1)
    loss = tl.where(counts, loss * w, 0.0)
    if MODE == "each":
        tl.store(out + position, loss, mask=mask)
    if partial is not None:
        tl.store(partial + tl.program_id(0), tl.sum(loss, 0))
    if MODE == "grad":
        w = w * up * scale
        for start in range(0, C, BC):
            c = start + tl.arange(0, BC)
            tile = mask[:, None] & (c < C)[None, :]
            at = base[:, None] + (c * step)[None, :]
            if SMOOTHING == 0.0 and index is not None:
                x = tl.load(x_ptr + at, mask=tile, other=float("-inf")).to(tl.float32)
                p = tl.exp(x - largest[:, None]) / everything[:, None]
                slope = total[:, None] * tl.where(c[None, :] == t[:, None], own_missing[:, None], -p)
            else:
                _, g, p = _cells(
                    x_ptr, target, class_weight, alpha, at, t, c, tile, largest, everything, own_missing, own_cost, C, GAMMA,
                    SMOOTHING,
                )  # fmt: skip
                slope = g - p * total[:, None]
            slope = tl.where(scale == 0, 0.0, tl.where(counts[:, None], slope * w[:, None], 0.0))
            tl.store(out + at, slope.to(out.dtype.element_ty), mask=tile)
