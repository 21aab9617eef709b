"""Means of bins on CUDA, for decoding what a head predicts: logits are read where they lie."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.means import BinMeans

__all__ = ["OPS", "refuses", "run"]

CELLS, MOST_BINS_AT_ONCE = 2048, 32  # of a tile
OPS = frozenset({BinMeans.op})


@triton.jit
def _bins(x_ptr: tl.tensor, base: tl.tensor, mask: tl.tensor, c: tl.tensor, step: tl.tensor, BINS: tl.constexpr) -> tl.tensor:
    """The logits of bins ``c`` at every position of a tile, −inf where there are none."""
    tile = mask[:, None] & (c < BINS)[None, :]
    at = base[:, None] + (c.to(tl.int64) * step)[None, :]
    return tl.load(x_ptr + at, mask=tile, other=float("-inf")).to(tl.float32)


@triton.jit
def bin_means(
    x_ptr: tl.tensor, out: tl.tensor, images: tl.tensor, groups: tl.tensor, inner: tl.tensor, by_image: tl.tensor,
    by_group: tl.tensor, by_bin: tl.tensor, by_position: tl.tensor,
    BINS: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
) -> None:  # fmt: skip
    """x[images, groups, BINS, inner] → Σ c e^x / Σ e^x: ROWS positions of one group a program, or ROWS groups of one position."""
    if PLANES:
        blocks = tl.cdiv(inner, ROWS)
        plane = tl.program_id(0) // blocks
        i = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
        mask, to = i < inner, plane.to(tl.int64) * inner + i
        base = (plane // groups).to(tl.int64) * by_image + (plane % groups).to(tl.int64) * by_group + i.to(tl.int64) * by_position
    else:
        to = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = to < images.to(tl.int64) * groups
        base = to // groups * by_image + to % groups * by_group
    c = tl.arange(0, BC)
    if BINS <= BC:
        x = _bins(x_ptr, base, mask, c, by_bin, BINS)
        e = tl.exp(x - tl.max(x, 1)[:, None])
        total, weighted = tl.sum(e, 1), tl.sum(e * c.to(tl.float32)[None, :], 1)
    else:
        top = tl.full([ROWS], float("-inf"), tl.float32)
        for start in range(0, BINS, BC):
            top = tl.maximum(top, tl.max(_bins(x_ptr, base, mask, start + c, by_bin, BINS), 1))
        total, weighted = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
        for start in range(0, BINS, BC):
            e = tl.exp(_bins(x_ptr, base, mask, start + c, by_bin, BINS) - top[:, None])
            total += tl.sum(e, 1)
            weighted += tl.sum(e * (start + c).to(tl.float32)[None, :], 1)
    tl.store(out + to, weighted / total, mask=mask)


def refuses(means: BinMeans) -> str | None:
    """Every checked call is taken."""
    return None


def run(means: BinMeans) -> Tensor:
    """``[B, G, I]``; see :class:`detloss.kernels.means.BinMeans`."""
    x = means.logits
    images, groups, bins, inner = x.shape
    planes = inner > 1
    block = min(triton.next_power_of_2(bins), MOST_BINS_AT_ONCE)
    rows = min(CELLS // block, triton.next_power_of_2(inner if planes else images * groups))
    grid = (images * groups * triton.cdiv(inner, rows) if planes else triton.cdiv(images * groups, rows),)
    out = torch.empty((images, groups, inner), dtype=torch.float32, device=x.device)
    bin_means[grid](x, out, images, groups, inner, *x.stride(), BINS=bins, PLANES=planes, ROWS=rows, BC=block)
    return out
