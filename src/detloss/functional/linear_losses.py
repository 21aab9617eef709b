"""The loss of one tile of a linear classifier's logits: by a fused kernel where one takes it, else in tensor operations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detloss.functional.classification import binary_cross_entropy
from detloss.functional.focal import power
from detloss.kernels.contract import Call
from detloss.kernels.linear_cells import BUFFERS, TileRows, negatives, own_logits
from detloss.kernels.linear_tiles import TileLoss, sum_dtype, widest
from detloss.kernels.selection import choose, fused_backend

__all__ = ["Options", "Rows", "counted_rows", "tile_loss_of"]

NO_CLASS = -100


class Rows(NamedTuple):
    """The checked targets, flat: what a call is given beside features, weight and bias."""

    label: Tensor
    score: Tensor | None
    sample_weight: Tensor | None
    alpha: Tensor | None
    class_weight: Tensor | None


class Options(NamedTuple):
    """The numbers of a call."""

    loss: str
    gamma: float
    high: float
    low: float
    ignore_index: int


def counted_rows(rows: Rows, ignore_index: int) -> Tensor:
    """Rows that are neither ignored nor of weight 0."""
    valid = rows.label != ignore_index
    return valid if rows.sample_weight is None else valid & (rows.sample_weight != 0)


def _own_terms(own: Tensor, column: Tensor, foreground: Tensor, rows: Rows, options: Options) -> tuple[Tensor, Tensor]:
    """Sum of the losses \\|s − σ(z)\\|^γ · BCE(z, s) in the rows' own columns, s = 1 without scores, and d loss / d z."""
    score = torch.ones_like(own) if rows.score is None else rows.score.to(own.dtype)
    p, q = own.sigmoid(), (-own).sigmoid()
    gap = torch.where(own > 0, (score - 1) + q, score - p)
    entropy, size = binary_cross_entropy(own, score), gap.abs()
    focus = power(size, options.gamma)
    slope = -gap * focus
    if options.gamma != 0:
        size = size.clamp(min=torch.finfo(size.dtype).tiny)
        slope = slope - options.gamma * power(size, options.gamma) / size * gap.sign() * p * q * entropy
    factor = torch.where(foreground, options.high, 0.0).to(own.dtype)
    for per_class in (rows.alpha, rows.class_weight):
        if per_class is not None and len(per_class):
            factor = factor * per_class[column]
    if rows.sample_weight is not None:
        factor = factor * rows.sample_weight
    keep = foreground & (factor != 0)
    total = torch.where(keep, focus * entropy * factor, 0.0).sum(dtype=widest(own))
    return total, torch.where(keep, slope * factor, 0.0)


def tile_loss_of(
    features: Tensor, weight: Tensor, bias: Tensor | None, counted: Tensor, rows: Rows, options: Options
) -> tuple[Tensor, TileLoss, int]:
    """What is known before any tile: a part of the sum, the loss of a tile, and the number of buffers that this takes."""
    foreground = counted & (rows.label >= 0) & (rows.label < len(weight))
    column = torch.where(foreground, rows.label, 0).long()
    dtype = sum_dtype(features)
    example = _call(torch.empty((1, 1), dtype=dtype, device=features.device), column, rows, options, slice(0, 1), slice(0, 1))
    name, problem = choose(example, torch.compiler.is_compiling())
    if problem is None:
        label = torch.where(counted, torch.where(foreground, column, len(weight)), NO_CLASS)
        return torch.zeros((), dtype=dtype, device=features.device), _kernel_loss(name, label, rows, options), 1
    own = own_logits(features, weight, bias, foreground, column)
    own_sum, own_gradient = _own_terms(own, column, foreground, rows, options)
    factor = counted.to(own.dtype) * options.low
    if rows.sample_weight is not None:
        factor = factor * torch.where(counted, rows.sample_weight, 0.0)
    every = TileRows(column, foreground, own_gradient, factor)
    low = None if rows.alpha is None else 1 - rows.alpha

    def tile_loss(buffers: list[Tensor], place: slice, columns: slice, need_grad: bool) -> tuple[Tensor, Tensor | None]:
        of_tile = TileRows(*(values[place] for values in every))
        return negatives(buffers, of_tile, columns.start, None if low is None else low[columns], options.gamma, need_grad)

    return own_sum, tile_loss, BUFFERS


def _call(logits: Tensor, label: Tensor, rows: Rows, options: Options, place: slice, columns: slice) -> Call:
    """A tile as a call of a fused kernel; classes of other tiles are background here."""
    count = columns.stop - columns.start
    label = label[place]
    inside = (label >= columns.start) & (label < columns.stop)
    index = torch.where(inside, label - columns.start, torch.where(label == NO_CLASS, NO_CLASS, count))
    operations = {
        "focal": ("sigmoid_focal", (options.gamma, options.high, options.low, 0.0)),
        "bce": ("binary_cross_entropy", (0.0,)),
        "qfl": ("quality_focal", (options.gamma,)),
    }
    op, numbers = operations[options.loss]
    return Call(
        op,
        logits,
        index=index,
        score=None if rows.score is None else rows.score[place],
        weight=None if rows.sample_weight is None else rows.sample_weight[place],
        class_weight=None if rows.class_weight is None else rows.class_weight[columns],
        alpha=None if rows.alpha is None else rows.alpha[columns],
        ignore_index=NO_CLASS,
        numbers=numbers,
    )


def _kernel_loss(name: str, label: Tensor, rows: Rows, options: Options) -> TileLoss:
    """The loss of a tile by the back-end of that name. ``label``: the class, C for none, ``NO_CLASS`` not to count."""
    backend = fused_backend(name)

    def tile_loss(buffers: list[Tensor], place: slice, columns: slice, need_grad: bool) -> tuple[Tensor, Tensor | None]:
        result = backend.total(_call(buffers[0], label, rows, options, place, columns), 1.0, None, need_grad, False)
        if result is None:
            raise RuntimeError(f"fused_linear_sigmoid_loss: {name} gave no result for a tile")
        return result

    return tile_loss
