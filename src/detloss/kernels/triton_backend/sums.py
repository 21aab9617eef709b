"""From partial sums to the total in a fixed order, and the product of a gradient with a number that stays on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.contract import Call, loss_shape
from detloss.kernels.layout import Layout, spread
from detloss.kernels.triton_backend.maths import scale_of

__all__ = ["Rows", "finished", "fresh_results", "rescaled", "rows_of"]

FINISH_BLOCK, RESCALE_BLOCK = 1024, 2048


@triton.jit
def finish(
    partial: tl.tensor, divisor: tl.tensor, total: tl.tensor, count: tl.tensor, factor: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """``total`` = scale · Σ ``partial``, by one program that adds in the same order every time."""
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        sums += tl.load(partial + start + lane, mask=start + lane < count, other=0.0).to(tl.float64)
    scale = scale_of(factor, divisor)
    result = tl.sum(sums, 0).to(tl.float32) * scale
    tl.store(total, tl.where(scale == 0, 0.0, result))


@triton.jit
def rescale(grad: tl.tensor, upstream: tl.tensor, out: tl.tensor, n: tl.tensor, SAME: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """``out`` = ``grad`` · ``upstream``; nothing is read or written where they are the same tensor and upstream is 1."""
    number = tl.load(upstream).to(tl.float32)
    if not SAME or number != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(grad + at, mask=at < n, other=0.0).to(tl.float32) * number
        tl.store(out + at, value.to(out.dtype.element_ty), mask=at < n)


def fresh_results(call: Call, pred: Tensor, mode: str, grid: tuple[int, ...] | None) -> tuple[Tensor | None, Tensor | None]:
    """Memory, not yet written, for a partial sum of each program of ``grid`` and for the gradient or the losses of a row."""
    partial = None if grid is None else torch.empty(grid, dtype=torch.float32, device=pred.device)
    if mode == "grad":
        return partial, torch.empty_like(pred)
    if mode == "each":
        return partial, torch.empty(loss_shape(call), dtype=torch.float32, device=pred.device)
    return partial, None


class Rows(NamedTuple):
    """What the kernels of rows are launched with: contiguous, with weights and upstream gradients of rows or one for all.

    Attributes:
        number: of rows.
        grid: of programs.
        tensors: pred, target, weight and upstream.
        spreads: how the last two are spread; see :mod:`detloss.kernels.layout`.
        partial: memory for a sum of each program, if a total is wanted.
        out: memory for the gradient or the losses.
    """

    number: int
    grid: tuple[int]
    tensors: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
    spreads: tuple[int, int]
    partial: Tensor | None
    out: Tensor | None


def rows_of(call: Call, upstream: Tensor | None, mode: str, total: bool, each: int) -> Rows:
    """The rows along the last dimension of ``pred``, ``each`` of them a program."""
    pred, size = call.pred.contiguous(), call.pred.shape[-1]
    number = pred.numel() // size
    layout = Layout(number, size, 1, tuple(range(pred.ndim)))
    weight, weight_spread = spread(call.weight, call, layout, True)
    above, upstream_spread = spread(upstream, call, layout, True)
    grid = (triton.cdiv(number, each),)
    partial, out = fresh_results(call, pred, mode, grid if total else None)
    target = None if call.target is None else call.target.contiguous()
    return Rows(number, grid, (pred, target, weight, above), (weight_spread, upstream_spread), partial, out)


def finished(partial: Tensor, divisor: Tensor | None, factor: float) -> Tensor:
    """Scaled sum of partial sums, 0-dim fp32 on their device."""
    total = torch.empty((), dtype=torch.float32, device=partial.device)
    finish[(1,)](partial, divisor, total, partial.numel(), factor, BLOCK=FINISH_BLOCK)
    return total


def rescaled(grad: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
    """``grad`` times the 0-dim ``upstream``, which the host does not read."""
    dense = grad if grad.is_contiguous() or in_place else grad.contiguous()
    if not dense.is_contiguous():
        return dense.mul_(upstream)
    out = dense if in_place else torch.empty_like(dense)
    n = dense.numel()
    rescale[(triton.cdiv(n, RESCALE_BLOCK),)](dense, upstream, out, n, SAME=in_place, BLOCK=RESCALE_BLOCK)
    return out
