"""Losses of whole masks on CUDA: Tversky, and Dice, which is one of them."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.triton_backend.maths import TINY, scale_of
from detloss.kernels.triton_backend.sums import rows_of

__all__ = ["OPS", "refuses", "run"]

BLOCK_SIZE = 1024
OPS = frozenset({"tversky"})
POSITION = tl.constexpr(1)
ONE = tl.constexpr(3)


@triton.jit
def sigma(x: tl.tensor) -> tl.tensor:
    """σ(x) and its derivative."""
    e = tl.exp(-tl.abs(x))
    near = 1.0 / (1.0 + e)
    far = e * near
    return tl.where(x < 0, far, near), near * far


@triton.jit
def mask_rows(
    x_ptr: tl.tensor, target: tl.tensor, weight: tl.tensor, upstream: tl.tensor, divisor: tl.tensor, partial: tl.tensor,
    out: tl.tensor, pixels: tl.tensor, factor: tl.tensor, alpha: tl.tensor, beta: tl.tensor, smooth: tl.tensor,
    SQUARED: tl.constexpr, W: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """x[n, pixels]: a program a mask, over its pixels for the sums and, for the gradient, once more."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    first = row * pixels
    common, falsely, missed = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, pixels, BLOCK):
        inside = start + lane < pixels
        x = tl.load(x_ptr + first + start + lane, mask=inside, other=float("-inf")).to(tl.float32)
        t = tl.load(target + first + start + lane, mask=inside, other=0.0).to(tl.float32)
        p, _ = sigma(x)
        both = p * t
        common += both
        falsely += (p * p if SQUARED else p) - both
        missed += (t * t if SQUARED else t) - both
    part = tl.sum(common, 0) + smooth
    missing = alpha * tl.sum(falsely, 0) + beta * tl.sum(missed, 0)
    whole = part + missing
    bounded = whole < TINY  # by the smallest number, which has no slope
    divisor_of_share = tl.where(bounded, TINY, whole)
    loss = missing / divisor_of_share
    w = 1.0
    if W == POSITION:
        w = tl.load(weight + row)
    elif W == ONE:
        w = tl.load(weight)
    counts = w != 0
    total = tl.where(counts, w * loss, 0.0)
    if MODE == "grad":
        given = scale_of(factor, divisor)
        scale = given * w
        if U == POSITION:
            scale = scale * tl.load(upstream + row)
        elif U == ONE:
            scale = scale * tl.load(upstream)
        share, rest = tl.where(bounded, 1.0, part / divisor_of_share), tl.where(bounded, 0.0, loss)
        by_size = scale * alpha * share / divisor_of_share
        by_common = -scale * ((alpha + beta) * share + rest) / divisor_of_share
        for start in range(0, pixels, BLOCK):
            inside = start + lane < pixels
            x = tl.load(x_ptr + first + start + lane, mask=inside, other=0.0).to(tl.float32)
            t = tl.load(target + first + start + lane, mask=inside, other=0.0).to(tl.float32)
            p, slope = sigma(x)
            each = ((2.0 * p if SQUARED else 1.0) * by_size + t * by_common) * slope
            each = tl.where(given == 0, 0.0, tl.where(counts, each, 0.0))
            tl.store(out + first + start + lane, each.to(out.dtype.element_ty), mask=inside)
    elif MODE == "each":
        tl.store(out + row, total)
    if partial is not None:
        tl.store(partial + row, total)


def refuses(call: Call) -> str | None:
    """Every checked call is taken."""
    return None


def run(
    call: Call, factor: float, divisor: Tensor | None, upstream: Tensor | None, mode: str, total: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Partial sums of the weighted losses (``total``), and the gradient (mode ``"grad"``) or the losses (``"each"``)."""
    rows = rows_of(call, upstream, mode, total, 1)
    alpha, beta, smooth, squared = call.numbers
    mask_rows[rows.grid](
        *rows.tensors, divisor, rows.partial, rows.out, call.pred.shape[-1], factor, alpha, beta, smooth,
        SQUARED=squared != 0, W=rows.spreads[0], U=rows.spreads[1], MODE=mode, BLOCK=BLOCK_SIZE,
    )  # fmt: skip
    return rows.partial, rows.out
