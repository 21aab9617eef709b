"""The IoU family: each loss is one expression over :func:`detloss.geometry.overlap`, one value per box.

Arguments shared by every function here:

* ``pred``, ``target``: boxes ``[N, 4]`` (or ``[..., 4]``), the same shape; ``target`` may be of an integer dtype.
* ``eps``: lower bound of the union relative to the enclosing area; it bounds gradients and changes nothing for tiny boxes.
* ``box_format``: ``"xyxy"``, ``"xywh"`` or ``"cxcywh"``.
* ``weight``, ``avg_factor``, ``reduction``: see :func:`detloss.reduction.reduce_loss`; ``none`` gives ``[N]``.

A prediction that is turned inside out (x2 < x1 or y2 < y1) counts as empty and pays for the depth of the inversion, so
that there is a gradient that pulls it back. Identical boxes cost exactly 0, also when they have no area.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from detloss.checks import check_at_least, check_non_negative, check_option
from detloss.functional.overlap import overlap_loss
from detloss.geometry.iou import SMALLEST_SIDE, Overlap
from detloss.types import BoxFormat, Number, Reduction

__all__ = ["ciou_loss", "diou_loss", "eiou_loss", "giou_loss", "iou_loss", "siou_loss"]

IoUMode: TypeAlias = Literal["linear", "square", "log"]
IOU_MODES = ("linear", "square", "log")


def iou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    mode: IoUMode = "log",
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """IoU loss: 1 − IoU (``linear``), 1 − IoU² (``square``) or −ln max(IoU, eps) (``log``).

    Boxes that do not overlap get the largest value, 1 or −ln eps, and no gradient; see :func:`giou_loss`.
    Source: UnitBox, Yu et al. 2016, arXiv:1608.01471.

    >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    >>> iou_loss(boxes, boxes + torch.tensor([1.0, 0.0, 1.0, 0.0]), mode="linear")
    tensor(0.6667)
    """
    check_option("iou_loss", "mode", mode, IOU_MODES)

    def cost(pair: Overlap) -> Tensor:
        if mode == "log":
            return -pair.iou.clamp(min=eps).log()
        return 1 - (pair.iou if mode == "linear" else pair.iou.square())

    return overlap_loss(
        "iou_loss", cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
        kernel=("iou", float(IOU_MODES.index(mode))),
    )  # fmt: skip


def giou_cost(pair: Overlap) -> Tensor:
    """1 − IoU + (C − U)/C."""
    return 1 - pair.iou + pair.hollow


def giou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Generalized IoU loss: 1 − IoU + (C − U)/C, with C the area of the enclosing box; in [0, 2].

    Source: Rezatofighi et al. 2019, arXiv:1902.09630.

    >>> giou_loss(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
    tensor(1.5000)
    """
    return overlap_loss(
        "giou_loss", giou_cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
        kernel=("giou",),
    )  # fmt: skip


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


def diou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Distance-IoU loss: 1 − IoU + ρ²/c², ρ the distance of the centres, c the diagonal of the enclosing box.

    Source: Zheng et al. 2020, arXiv:1911.08287.

    >>> diou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[2.0, 0.0, 4.0, 2.0]]))
    tensor(1.2000)
    """
    return overlap_loss(
        "diou_loss", diou_cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
        kernel=("diou",),
    )  # fmt: skip


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


def ciou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    alpha_threshold: float | None = None,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Complete-IoU loss: 1 − IoU + ρ²/c² + αv, v = 4/π² (atan(w*/h*) − atan(w/h))², α = v/((1 − IoU) + v) held constant.

    Args:
        alpha_threshold: ``None`` as in the AAAI 2020 paper (also torchvision, ultralytics). 0.5 sets α to 0 where
            IoU <= 0.5, as in the 2021 journal version (mmdet).

    Source: Zheng et al. 2020, arXiv:1911.08287; gated α: Zheng et al. 2021, arXiv:2005.03572.

    >>> ciou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[2.0, 0.0, 4.0, 2.0]]))  # the same shape: v = 0
    tensor(1.2000)
    """
    if alpha_threshold is not None:
        check_non_negative("ciou_loss", alpha_threshold=alpha_threshold)
    return overlap_loss(
        "ciou_loss", lambda pair: ciou_cost(pair, eps, alpha_threshold), pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
        kernel=("ciou", -1.0 if alpha_threshold is None else alpha_threshold),
    )  # fmt: skip


def eiou_cost(pair: Overlap) -> Tensor:
    """1 − IoU + ρ²/c² + (Δw)²/Cw² + (Δh)²/Ch²; see :func:`eiou_loss`."""
    loss = diou_cost(pair)
    for p, t, c in zip(pair.pred_size, pair.target_size, pair.enclosing_size, strict=True):
        # An inverted side must not get cheaper by stretching the enclosing box that it spans.
        unit = torch.where(p < 0, c.detach(), c).clamp(min=SMALLEST_SIDE)
        loss = loss + ((p - t) / unit).square()
    return loss


def eiou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Efficient-IoU loss: 1 − IoU + ρ²/c² + (w − w*)²/Cw² + (h − h*)²/Ch², Cw and Ch the sides of the enclosing box.

    Source: Zhang et al. 2021, arXiv:2101.08158. (The ``EIoULoss`` of mmdet is another loss, Extended-IoU.)

    >>> eiou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))  # 0.5 + 0.25/8 + 0 + 0.25
    tensor(0.7812)
    """
    return overlap_loss(
        "eiou_loss", eiou_cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
        kernel=("eiou",),
    )  # fmt: skip


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


def siou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    theta: float = 4.0,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """SCYLLA-IoU loss: 1 − IoU + (Δ + Ω)/2.

    Angle Λ = 2 |dx| |dy| / (dx² + dy²); distance Δ = Σ over x, y of 1 − exp(−γ ρ) with γ = 2 − Λ and ρ = (d/C)²;
    shape Ω = Σ over w, h of (1 − exp(−|s − s*| / max(s, s*)))^θ. It grows with the distance of the boxes.
    Source: Gevorgyan 2022, arXiv:2205.12740.

    Args:
        theta: exponent of the shape cost, at least 1: below, the gradient has no bound near an exact match.
    """
    check_at_least("siou_loss", 1, theta=theta)
    return overlap_loss(
        "siou_loss", lambda pair: siou_cost(pair, eps, theta), pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
        kernel=("siou", theta),
    )  # fmt: skip
