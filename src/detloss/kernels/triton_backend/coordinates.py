"""L1, squared, smooth L1 and Huber losses on CUDA."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.layout import element_layout, in_order, restored, spread
from detloss.kernels.triton_backend.maths import scale_of

__all__ = ["OPS", "refuses", "run"]

BLOCK_SIZE = 1024
OPS = frozenset({"l1", "mse", "smooth_l1", "huber"})
POSITION = tl.constexpr(1)
ELEMENT = tl.constexpr(2)
ONE = tl.constexpr(3)


@triton.jit
def coordinate_rows(
    x_ptr: tl.tensor, target: tl.tensor, weight: tl.tensor, upstream: tl.tensor, divisor: tl.tensor, partial: tl.tensor,
    out: tl.tensor, n: tl.tensor, factor: tl.tensor, beta: tl.tensor,
    C: tl.constexpr, OP: tl.constexpr, W: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """x[n / C, C], BLOCK numbers a program; a row shares a weight."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    first = start // C
    row = first + ((start - first * C).to(tl.int32) + tl.arange(0, BLOCK)) // C
    at = start + tl.arange(0, BLOCK)
    mask = at < n
    difference = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) - tl.load(target + at, mask=mask, other=0.0).to(
        tl.float32
    )
    w, up, counts = 1.0, 1.0, mask
    if W != 0:
        w = tl.load(weight + (row if W == POSITION else at), mask=mask, other=0.0)
        counts = counts & (w != 0)
    if U == ONE:
        up = tl.load(upstream)
    elif U != 0:
        up = tl.load(upstream + (row if U == POSITION else at), mask=mask, other=0.0)
    size = tl.abs(difference)
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference))
    if OP == "l1":
        loss, slope = size, sign
    elif OP == "mse":
        loss, slope = difference * difference, 2.0 * difference
    elif OP == "huber":
        near = size < beta
        loss = tl.where(near, 0.5 * difference * difference, beta * (size - 0.5 * beta))
        slope = tl.where(near, difference, beta * sign)
    else:
        near = size < beta
        loss = tl.where(near, 0.5 * difference * (difference / beta), size - 0.5 * beta)
        slope = tl.where(near, difference / beta, sign)
    loss = tl.where(counts, loss * w, 0.0)
    if MODE == "grad":
        scale = scale_of(factor, divisor)
        slope = tl.where(scale == 0, 0.0, tl.where(counts, slope * (w * up * scale), 0.0))
        tl.store(out + at, slope.to(out.dtype.element_ty), mask=mask)
    elif MODE == "each":
        tl.store(out + at, loss, mask=mask)
    if partial is not None:
        tl.store(partial + tl.program_id(0), tl.sum(loss, 0))


def refuses(call: Call) -> str | None:
    """Every checked call is taken."""
    return None


def run(
    call: Call, factor: float, divisor: Tensor | None, upstream: Tensor | None, mode: str, total: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Partial sums of the weighted losses (``total``), and the gradient (mode ``"grad"``) or the losses (``"each"``)."""
    layout = element_layout(call)
    pred, n = in_order(call.pred, layout), call.pred.numel()
    weight, weight_spread = spread(call.weight, call, layout, False)
    above, upstream_spread = spread(upstream, call, layout, False)
    out = None if mode == "none" else torch.empty_like(pred, dtype=pred.dtype if mode == "grad" else torch.float32)
    grid = (triton.cdiv(n, BLOCK_SIZE),)
    partial = torch.empty(grid, dtype=torch.float32, device=pred.device) if total else None
    coordinate_rows[grid](
        pred, in_order(_given(call.target, call), layout), weight, above, divisor, partial, out, n, factor,
        call.numbers[0] if call.numbers else 1.0, C=layout.classes, OP=call.op, W=weight_spread, U=upstream_spread, MODE=mode,
        BLOCK=BLOCK_SIZE,
    )  # fmt: skip
    return partial, None if out is None else restored(out, layout)


def _given(target: Tensor | None, call: Call) -> Tensor:
    if target is None:
        raise TypeError(f"{call.op}: expected a target; got none")
    return target
