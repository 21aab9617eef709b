"""Sigmoid losses of a linear classifier tile by tile: logits, losses and gradients of one tile at a time.

A tile is a block of rows by a block of classes. Its logits come from one matrix product into a buffer, become losses and
gradients there in place, and leave as products with the weight and the features. Every sigmoid loss of the library has
the same form in the columns that are not a row's own class, w p^γ · (−ln(1 − p)) with p = σ(z) and w a weight of row and
column; the own column of each row comes ready made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LinearGradients", "TileRows", "empty_gradients", "linear_tiles", "own_logits", "sum_dtype", "widest"]

BUFFERS = 4
ROWS_PER_TILE = 1024


class LinearGradients(NamedTuple):
    """Gradients of the sum of the losses; ``None`` for what was not asked for. In the dtype the sums are taken in."""

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class TileRows(NamedTuple):
    """What each row brings.

    Attributes:
        column: int64 ``[N]``, the row's own class; 0 where it has none.
        foreground: bool ``[N]``, whether it has one.
        own_gradient: ``[N]``, d loss / d logit in that column.
        factor: ``[N]``, weight of the other columns.
        counted: bool ``[N]``; the features of a row that is not are replaced by 0 and its factor and own gradient are 0.
    """

    column: Tensor
    foreground: Tensor
    own_gradient: Tensor
    factor: Tensor
    counted: Tensor


def row_views(features: Tensor) -> list[Tensor]:
    """Features ``[N, D]`` or ``[B, D, H, W]`` as views ``[rows, D]``, one or one per image; nothing is copied."""
    if features.ndim == 2:
        return [features]
    return [image.flatten(1).t() for image in features]


def _blocks(sizes: list[int], step: int) -> Iterator[tuple[int, slice, slice]]:
    """(view, rows in the view, rows overall) of consecutive blocks of at most ``step`` rows."""
    offset = 0
    for view, size in enumerate(sizes):
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield view, slice(start, stop), slice(offset + start, offset + stop)
        offset += size


def _steps(rows: int, classes: int, itemsize: int, memory_budget: int) -> tuple[int, int]:
    """Rows and classes of a tile whose buffers keep within the budget (at least one cell)."""
    cells = max(memory_budget // (BUFFERS * itemsize), 1)
    columns = min(max(cells // min(ROWS_PER_TILE, max(rows, 1)), 1), max(classes, 1))
    return min(max(cells // columns, 1), max(rows, 1)), columns


def own_logits(features: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, column: Tensor) -> Tensor:
    """Logit ``[N]`` of every row's own class, x · w_c + b_c; 0 where ``rows`` is false."""
    logits = torch.zeros(column.shape, dtype=sum_dtype(features), device=features.device)
    if not len(weight):
        return logits
    views = row_views(features)
    for view, part, place in _blocks([len(v) for v in views], ROWS_PER_TILE):
        x = torch.where(rows[place, None], views[view][part].to(logits.dtype), 0.0)
        own = weight.index_select(0, column[place]).to(logits.dtype)
        logits[place] = torch.where(rows[place], (x * own).sum(1), 0.0)
    return logits if bias is None else torch.where(rows, logits + bias[column].to(logits.dtype), 0.0)


def sum_dtype(features: Tensor) -> torch.dtype:
    """The dtype of losses and gradients: float64 for float64, else float32."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def widest(like: Tensor) -> torch.dtype:
    """The dtype of the sum over all tiles."""
    return torch.float32 if like.device.type == "mps" else torch.float64


class _Tile:
    """The buffers of one tile, used again for every tile."""

    def __init__(self, cells: int, like: Tensor, product_dtype: torch.dtype) -> None:
        self.dtype = sum_dtype(like)
        self.product_dtype = product_dtype
        self.memory = torch.empty(BUFFERS, cells, dtype=self.dtype, device=like.device)

    def logits(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        """All buffers shaped ``[rows, columns]``, the first of them filled with x wᵀ + b."""
        shape = (len(x), len(weight))
        buffers = [memory[: shape[0] * shape[1]].view(shape) for memory in self.memory]
        if self.product_dtype != self.dtype:
            buffers[0].copy_(torch.mm(x, weight.t()))
        else:
            torch.mm(x, weight.t(), out=buffers[0])
        if bias is not None:
            buffers[0].add_(bias)
        return buffers


def _softplus(buffers: list[Tensor]) -> None:
    """c = ln(1 + e^z) of the logits z, buffers (z, a, b, c); a and b are overwritten.

    With e = e^−|z| it is max(z, 0) + ln(1 + e), and ln(1 + e) = ln u + (e − (u − 1))/u with u the rounded 1 + e: as exact
    as log1p and, in vectorised operations, half its price.
    """
    z, a, b, c = buffers
    torch.abs(z, out=c)
    c.neg_().exp_()
    torch.add(c, 1, out=a)
    torch.sub(a, 1, out=b)
    c.sub_(b).div_(a)
    c.add_(a.log_())
    c.add_(torch.clamp(z, min=0, out=a))


def _losses(buffers: list[Tensor], gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """p, p^γ and p^γ · (−ln(1 − p)) of the logits, in place of the buffers b, a and c."""
    z, a, b, c = buffers
    _softplus(buffers)
    torch.sigmoid(z, out=b)
    if gamma == 0:
        return b, a.fill_(1.0), c
    if gamma == 2:
        torch.mul(b, b, out=a)
    else:
        torch.pow(b, gamma, out=a)
    return b, a, c.mul_(a)


def _gradient(p: Tensor, power: Tensor, loss: Tensor, gamma: float) -> Tensor:
    """d/dz p^γ · (−ln(1 − p)) = p^γ · p + γ (1 − p) p^γ (−ln(1 − p)), in place of ``power``."""
    power.mul_(p)
    return power if gamma == 0 else power.addcmul_(p.sub_(1), loss, value=-gamma)


def linear_tiles(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: TileRows,
    column_factor: Tensor | None,
    *,
    gamma: float,
    needs: Sequence[bool],
    product_dtype: torch.dtype,
    memory_budget: int,
) -> tuple[Tensor, LinearGradients]:
    """Sum over rows and their other columns of factor · p^γ · (−ln(1 − p)), and the gradients, own columns included.

    Args:
        features: ``[N, D]`` or ``[B, D, H, W]``.
        weight: ``[C, D]``.
        bias: ``[C]`` or ``None``.
        rows: what each of the N (or B·H·W) rows brings.
        column_factor: ``[C]``, a further factor per column of the negatives.
        gamma: exponent γ >= 0.
        needs: which gradients to compute: features, weight, bias.
        product_dtype: dtype of the factors of the matrix products; their results are summed in float32 (or float64).
        memory_budget: bytes of the buffers of a tile.

    Returns:
        The sum (0-dim float64) and the gradients, in float32 (or float64).
    """
    dtype, classes = sum_dtype(features), len(weight)
    row_step, column_step = _steps(len(rows.column), classes, dtype.itemsize, memory_budget)
    grads = empty_gradients(features, weight, bias, needs, dtype)
    for empty in grads:
        if empty is not None:
            empty.zero_()
    views = row_views(features)
    grad_views = [] if grads.features is None else row_views(grads.features)
    tile = _Tile(row_step * column_step, features, product_dtype)
    total = torch.zeros((), dtype=widest(features), device=features.device)
    for view, part, place in _blocks([len(v) for v in views], row_step):
        block = TileRows(*(values[place] for values in rows))
        x = torch.where(block.counted[:, None], views[view][part], 0.0).to(product_dtype)
        for start in range(0, classes, column_step):
            columns = slice(start, min(start + column_step, classes))
            w = weight[columns].to(product_dtype)
            buffers = tile.logits(x, w, None if bias is None else bias[columns].to(dtype))
            share = None if column_factor is None else column_factor[columns]
            loss, gradient = _one_tile(buffers, block, start, share, gamma, any(needs))
            total += loss
            if gradient is not None:
                out = LinearGradients(
                    grad_views[view][part] if grad_views else None,
                    None if grads.weight is None else grads.weight[columns],
                    None if grads.bias is None else grads.bias[columns],
                )
                _add_products(out, gradient, x, w, dtype)
    return total, grads


def _one_tile(
    buffers: list[Tensor], rows: TileRows, start: int, share: Tensor | None, gamma: float, need: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses of a tile's negatives and the gradient of its logits, own columns included."""
    z = buffers[0]
    inside = (rows.foreground & (rows.column >= start) & (rows.column < start + z.shape[1]))[:, None]
    own = (rows.column - start).clamp(0, z.shape[1] - 1)[:, None]
    # A logit of −∞ has neither loss nor gradient as a negative.
    z.scatter_(1, own, torch.where(inside, -torch.inf, z.gather(1, own)))
    p, power, loss = _losses(buffers, gamma)
    per_row = loss.sum(1) if share is None else loss.mv(share)
    total = (per_row * rows.factor).sum(dtype=widest(z))
    if not need:
        return total, None
    gradient = _gradient(p, power, loss, gamma).mul_(rows.factor[:, None])
    if share is not None:
        gradient.mul_(share)
    return total, gradient.scatter_(1, own, torch.where(inside, rows.own_gradient[:, None], gradient.gather(1, own)))


def empty_gradients(
    features: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool], dtype: torch.dtype
) -> LinearGradients:
    """Memory for the gradients asked for; that of features is dense, so that its rows are views."""
    last = features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return LinearGradients(
        torch.empty_like(features, dtype=dtype, memory_format=layout) if needs[0] else None,
        torch.empty_like(weight, dtype=dtype, memory_format=torch.contiguous_format) if needs[1] else None,
        torch.empty_like(bias, dtype=dtype) if needs[2] and bias is not None else None,
    )


def _add_products(out: LinearGradients, gradient: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    """Add what one tile gives to the gradients of its rows, of its classes and of their biases."""
    if out.bias is not None:
        out.bias.add_(gradient.sum(0))
    low = gradient.to(x.dtype)
    for into, left, right in ((out.features, low, weight), (out.weight, low.t(), x)):
        if into is None:
            continue
        if x.dtype == dtype:
            into.addmm_(left, right)
        else:
            into.add_(torch.mm(left, right))
