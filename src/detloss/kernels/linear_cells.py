"""Sigmoid losses of a tile of logits in tensor operations, in place: the way where no fused kernel takes the tile.

Every sigmoid loss of the library has the same form in the columns that are not a row's own class, w p^γ · (−ln(1 − p)) with
p = σ(z) and w a weight of row and column; the own column of each row comes ready made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detloss.kernels.linear_tiles import ROWS_PER_TILE, row_blocks, row_views, sum_dtype, widest

__all__ = ["BUFFERS", "TileRows", "negatives", "own_logits"]

BUFFERS = 4


class TileRows(NamedTuple):
    """What each row brings.

    Attributes:
        column: int64 ``[N]``, the row's own class; 0 where it has none.
        foreground: bool ``[N]``, whether it has one.
        own_gradient: ``[N]``, d loss / d logit in that column.
        factor: ``[N]``, weight of the other columns; 0 for rows that do not count.
    """

    column: Tensor
    foreground: Tensor
    own_gradient: Tensor
    factor: Tensor


def own_logits(features: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, column: Tensor) -> Tensor:
    """Logit ``[N]`` of every row's own class, x · w_c + b_c; 0 where ``rows`` is false."""
    logits = torch.zeros(column.shape, dtype=sum_dtype(features), device=features.device)
    if not len(weight):
        return logits
    views = row_views(features)
    for view, part, place in row_blocks([len(v) for v in views], ROWS_PER_TILE):
        x = torch.where(rows[place, None], views[view][part].to(logits.dtype), 0.0)
        own = weight.index_select(0, column[place]).to(logits.dtype)
        logits[place] = torch.where(rows[place], (x * own).sum(1), 0.0)
    return logits if bias is None else torch.where(rows, logits + bias[column].to(logits.dtype), 0.0)


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


def negatives(
    buffers: list[Tensor], rows: TileRows, start: int, share: Tensor | None, gamma: float, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of the losses of a tile's other columns, and the gradient of its logits, own columns included.

    Args:
        buffers: ``BUFFERS`` tensors ``[rows, columns]``, the first of them the logits; all are overwritten.
        rows: of this tile.
        start: the class of the first column.
        share: ``[columns]``, a further factor of each column.
        gamma: exponent γ >= 0.
        need_grad: whether to compute the gradient.
    """
    z = buffers[0]
    inside = (rows.foreground & (rows.column >= start) & (rows.column < start + z.shape[1]))[:, None]
    own = (rows.column - start).clamp(0, z.shape[1] - 1)[:, None]
    # A logit of −∞ has neither loss nor gradient as a negative.
    z.scatter_(1, own, torch.where(inside, -torch.inf, z.gather(1, own)))
    p, power, loss = _losses(buffers, gamma)
    per_row = loss.sum(1) if share is None else loss.mv(share)
    total = (per_row * rows.factor).sum(dtype=widest(z))
    if not need_grad:
        return total, None
    gradient = _gradient(p, power, loss, gamma).mul_(rows.factor[:, None])
    if share is not None:
        gradient.mul_(share)
    return total, gradient.scatter_(1, own, torch.where(inside, rows.own_gradient[:, None], gradient.gather(1, own)))
