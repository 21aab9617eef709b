"""The products of a linear classifier and its loss, tile by tile: logits and their gradient exist for one tile at a time.

A tile is a block of rows by a block of classes. Its logits come from one matrix product into a buffer, become a sum of
losses and a gradient there, and leave as products with the weight and the features. What the loss is, a function says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "ROWS_PER_TILE",
    "LinearGradients",
    "TileLoss",
    "empty_gradients",
    "linear_tiles",
    "row_blocks",
    "row_views",
    "sum_dtype",
    "widest",
]

ROWS_PER_TILE = 1024

# Buffers [rows, columns], the first of them the logits; rows and columns of the tile; whether the gradient is needed.
TileLoss: TypeAlias = Callable[[list[Tensor], slice, slice, bool], tuple[Tensor, Tensor | None]]


class LinearGradients(NamedTuple):
    """Gradients of the sum of the losses; ``None`` for what was not asked for. In the dtype the sums are taken in."""

    features: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def row_views(features: Tensor) -> list[Tensor]:
    """Features ``[N, D]`` or ``[B, D, H, W]`` as views ``[rows, D]``, one or one per image; nothing is copied."""
    if features.ndim == 2:
        return [features]
    return [image.flatten(1).t() for image in features]


def row_blocks(sizes: list[int], step: int) -> Iterator[tuple[int, slice, slice]]:
    """(view, rows in the view, rows overall) of consecutive blocks of at most ``step`` rows."""
    offset = 0
    for view, size in enumerate(sizes):
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield view, slice(start, stop), slice(offset + start, offset + stop)
        offset += size


def _steps(rows: int, classes: int, cells: int) -> tuple[int, int]:
    """Rows and classes of a tile of at most that many cells, at least one."""
    columns = min(max(cells // min(ROWS_PER_TILE, max(rows, 1)), 1), max(classes, 1))
    return min(max(cells // columns, 1), max(rows, 1)), columns


def sum_dtype(features: Tensor) -> torch.dtype:
    """The dtype of losses and gradients: float64 for float64, else float32."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def widest(like: Tensor) -> torch.dtype:
    """The dtype of the sum over all tiles."""
    return torch.float32 if like.device.type == "mps" else torch.float64


class _Tile:
    """The buffers of one tile, used again for every tile."""

    def __init__(self, count: int, cells: int, like: Tensor, product_dtype: torch.dtype) -> None:
        self.dtype = sum_dtype(like)
        self.product_dtype = product_dtype
        self.memory = torch.empty(count, cells, dtype=self.dtype, device=like.device)

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


def linear_tiles(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    counted: Tensor,
    tile_loss: TileLoss,
    *,
    buffers: int,
    needs: Sequence[bool],
    product_dtype: torch.dtype,
    memory_budget: int,
) -> tuple[Tensor, LinearGradients]:
    """The sum of a loss of x wᵀ + b over all tiles, and the gradients.

    Args:
        features: ``[N, D]`` or ``[B, D, H, W]``.
        weight: ``[C, D]``.
        bias: ``[C]`` or ``None``.
        counted: bool ``[N]`` (or ``[B·H·W]``); the features of a row that does not count are replaced by 0.
        tile_loss: sum of the losses of a tile's logits, and if asked their gradient (which may be one of the buffers).
        buffers: how many buffers that function needs; a gradient that it makes itself counts as one.
        needs: which gradients to compute: features, weight, bias.
        product_dtype: dtype of the factors of the matrix products; their results are summed in float32 (or float64).
        memory_budget: bytes of the buffers of a tile.

    Returns:
        The sum (0-dim float64) and the gradients, in float32 (or float64).
    """
    dtype, classes = sum_dtype(features), len(weight)
    cells = max(memory_budget // (max(buffers, 2) * dtype.itemsize), 1)
    row_step, column_step = _steps(len(counted), classes, cells)
    grads = empty_gradients(features, weight, bias, needs, dtype)
    for empty in grads:
        if empty is not None:
            empty.zero_()
    views = row_views(features)
    grad_views = [] if grads.features is None else row_views(grads.features)
    tile = _Tile(buffers, row_step * column_step, features, product_dtype)
    total = torch.zeros((), dtype=widest(features), device=features.device)
    for view, part, place in row_blocks([len(v) for v in views], row_step):
        x = torch.where(counted[place, None], views[view][part], 0.0).to(product_dtype)
        for start in range(0, classes, column_step):
            columns = slice(start, min(start + column_step, classes))
            w = weight[columns].to(product_dtype)
            logits = tile.logits(x, w, None if bias is None else bias[columns].to(dtype))
            loss, gradient = tile_loss(logits, place, columns, any(needs))
            total += loss
            if gradient is not None:
                out = LinearGradients(
                    grad_views[view][part] if grad_views else None,
                    None if grads.weight is None else grads.weight[columns],
                    None if grads.bias is None else grads.bias[columns],
                )
                _add_products(out, gradient, x, w, dtype)
    return total, grads


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
