"""Distribution focal loss on CUDA."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.triton_backend.maths import scale_of
from detloss.kernels.triton_backend.sums import rows_of

__all__ = ["OPS", "refuses", "run"]

CELLS, MOST_BINS = 1024, 1024
OPS = frozenset({"distribution_focal"})
POSITION = tl.constexpr(1)
ONE = tl.constexpr(3)


@triton.jit
def distribution_rows(
    x_ptr: tl.tensor, target: tl.tensor, weight: tl.tensor, upstream: tl.tensor, divisor: tl.tensor, partial: tl.tensor,
    out: tl.tensor, n: tl.tensor, factor: tl.tensor,
    BINS: tl.constexpr, W: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
) -> None:  # fmt: skip
    """x[n, BINS]: −(1 − s) ln p_k − s ln p_(k + 1) with k = min(⌊y⌋, BINS − 2) and s = y − k, of ROWS rows a program."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BC)
    mask = row < n
    tile = mask[:, None] & (c < BINS)[None, :]
    at = row[:, None] * BINS + c[None, :]
    x = tl.load(x_ptr + at, mask=tile, other=float("-inf")).to(tl.float32)
    y = tl.load(target + row, mask=mask, other=0.0).to(tl.float32)
    y = tl.where(y < 0, 0.0, tl.where(y > BINS - 1, BINS - 1.0, y))
    left = tl.minimum(tl.floor(tl.where(y == y, y, 0.0)), BINS - 2.0)
    share, k = y - left, left.to(tl.int32)
    w, up, counts = tl.full([ROWS], 1.0, tl.float32), tl.full([ROWS], 1.0, tl.float32), mask
    if W == POSITION:
        w = tl.load(weight + row, mask=mask, other=0.0)
        counts = counts & (w != 0)
    if U == POSITION:
        up = tl.load(upstream + row, mask=mask, other=0.0)
    elif U == ONE:
        up = up * tl.load(upstream)
    largest = tl.max(x, 1)
    x = x - tl.where(largest == float("-inf"), 0.0, largest)[:, None]
    e = tl.exp(x)
    everything = tl.sum(e, 1)
    near, far = c[None, :] == k[:, None], c[None, :] == k[:, None] + 1
    wanted = tl.where(near, 1.0 - share[:, None], tl.where(far, share[:, None], 0.0))
    cost = tl.log(everything)[:, None] - x
    loss = tl.where(counts, tl.sum(tl.where(near | far, wanted * cost, 0.0), 1) * w, 0.0)
    if MODE == "grad":
        scale = scale_of(factor, divisor)
        slope = (e / everything[:, None] - wanted) * (w * up * scale)[:, None]
        slope = tl.where(scale == 0, 0.0, tl.where(counts[:, None], slope, 0.0))
        tl.store(out + at, slope.to(out.dtype.element_ty), mask=tile)
    elif MODE == "each":
        tl.store(out + row, loss, mask=mask)
    if partial is not None:
        tl.store(partial + tl.program_id(0), tl.sum(loss, 0))


def refuses(call: Call) -> str | None:
    """Why a call is not taken: more bins than fit a tile."""
    bins = call.pred.shape[-1]
    return f"{bins} bins, more than {MOST_BINS}" if bins > MOST_BINS else None


def run(
    call: Call, factor: float, divisor: Tensor | None, upstream: Tensor | None, mode: str, total: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Partial sums of the weighted losses (``total``), and the gradient (mode ``"grad"``) or the losses (``"each"``)."""
    bins = call.pred.shape[-1]
    block = triton.next_power_of_2(bins)
    each = max(CELLS // block, 1)
    rows = rows_of(call, upstream, mode, total, each)
    distribution_rows[rows.grid](
        *rows.tensors, divisor, rows.partial, rows.out, rows.number, factor, BINS=bins, W=rows.spreads[0], U=rows.spreads[1],
        MODE=mode, ROWS=each, BC=block,
    )  # fmt: skip
    return rows.partial, rows.out
