"""What the members of the IoU family charge for a pair of boxes: one expression each over its overlap."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detloss.geometry.iou import SMALLEST_SIDE, Overlap

__all__ = [
    "aspect_cost",
    "aspect_gap",
    "centre_distance",
    "ciou_cost",
    "diou_cost",
    "eiou_cost",
    "giou_cost",
    "length_unit",
    "side_gaps",
    "siou_cost",
]


def giou_cost(pair: Overlap) -> Tensor:
    """1 − IoU + (C − U)/C."""
    return 1 - pair.iou + pair.hollow


def length_unit(pair: Overlap) -> Tensor:
    """The longer side of the enclosing box as a constant: lengths divided by it can be squared without overflow."""
    return torch.maximum(*pair.enclosing_size).detach().clamp(min=SMALLEST_SIDE)


def centre_distance(pair: Overlap) -> Tensor:
    """ρ²/c²: squared distance of the centres over the squared diagonal of the enclosing box."""
    unit = length_unit(pair)
    (dx, dy), (cw, ch) = pair.centre_offset, pair.enclosing_size
    diagonal = (cw / unit).square() + (ch / unit).square()
    return ((dx / unit).square() + (dy / unit).square()) / torch.where(diagonal > 0, diagonal, 1.0)


def aspect_gap(pair: Overlap, eps: float) -> Tensor:
    """v = 4/π² (atan(w*/h*) − atan(w/h))², sides bounded below by eps of the enclosing ones."""
    unit = length_unit(pair)
    cw, ch = pair.enclosing_size

    def angle(size: tuple[Tensor, Tensor]) -> Tensor:
        width = torch.maximum(size[0], eps * cw.detach()).clamp(min=eps * SMALLEST_SIDE)
        height = torch.maximum(size[1], eps * ch.detach()).clamp(min=eps * SMALLEST_SIDE)
        return torch.atan2(width / unit, height / unit)

    return 4 / math.pi**2 * (angle(pair.target_size) - angle(pair.pred_size)).square()


def diou_cost(pair: Overlap) -> Tensor:
    """1 − IoU + ρ²/c²."""
    return 1 - pair.iou + centre_distance(pair)


def aspect_cost(pair: Overlap, eps: float, alpha_threshold: float | None = None) -> Tensor:
    """αv with α = v/((1 − IoU) + v) held constant; see :func:`ciou_loss`."""
    v = aspect_gap(pair, eps)
    with torch.no_grad():
        alpha = torch.where(v > 0, v / (1 - pair.iou + v).clamp(min=torch.finfo(v.dtype).tiny), 0.0)
        if alpha_threshold is not None:
            alpha = torch.where(pair.iou > alpha_threshold, alpha, 0.0)
    return alpha * v


def ciou_cost(pair: Overlap, eps: float, alpha_threshold: float | None = None) -> Tensor:
    """1 − IoU + ρ²/c² + αv."""
    return diou_cost(pair) + aspect_cost(pair, eps, alpha_threshold)


def eiou_cost(pair: Overlap) -> Tensor:
    """1 − IoU + ρ²/c² + (Δw)²/Cw² + (Δh)²/Ch²; see :func:`eiou_loss`."""
    loss = diou_cost(pair)
    for p, t, c in zip(pair.pred_size, pair.target_size, pair.enclosing_size, strict=True):
        # An inverted side must not get cheaper by stretching the enclosing box that it spans.
        unit = torch.where(p < 0, c.detach(), c).clamp(min=SMALLEST_SIDE)
        loss = loss + ((p - t) / unit).square()
    return loss


def side_gaps(pair: Overlap, eps: float) -> tuple[Tensor, Tensor]:
    """\\|s − s*\\| / max(s, s*) of the widths and of the heights; the divisor is at least eps of the enclosing side."""

    def gap(p: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return (p - t).abs() / torch.maximum(torch.maximum(p, t), eps * c.detach()).clamp(min=SMALLEST_SIDE)

    (pw, ph), (tw, th), (cw, ch) = pair.pred_size, pair.target_size, pair.enclosing_size
    return gap(pw, tw, cw), gap(ph, th, ch)


def siou_cost(pair: Overlap, eps: float, theta: float = 4.0) -> Tensor:
    """1 − IoU + (Δ + Ω)/2; see :func:`siou_loss`."""
    unit = length_unit(pair)
    dx, dy = (d / unit for d in pair.centre_offset)
    squared = dx.square() + dy.square()
    angle = 2 * dx.abs() * dy.abs() / torch.where(squared > 0, squared, 1.0)
    distance, shape = torch.zeros_like(dx), torch.zeros_like(dx)
    for d, c, gap in zip((dx, dy), pair.enclosing_size, side_gaps(pair, eps), strict=True):
        rho = (d * unit / c.clamp(min=SMALLEST_SIDE)).square()
        distance = distance + 1 - torch.exp((angle - 2) * rho)
        shape = shape + (1 - torch.exp(-gap)).clamp(min=0).pow(theta)
    return 1 - pair.iou + (distance + shape) / 2
