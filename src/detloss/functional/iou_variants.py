"""Variants of the IoU family: other bounds, powers, penalties or auxiliary boxes around the same overlap of two boxes.

Arguments shared by every function here are those of :mod:`detloss.functional.iou`, and so are the promises: one value per
box, 0 for identical boxes, at least 1 for a prediction that is turned inside out, unchanged by the scale of the boxes
(MPDIoU: without ``image_size``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_at_least, check_non_negative, check_option, check_positive
from detloss.functional import iou as family
from detloss.functional.iou import centre_distance, length_unit, side_gaps
from detloss.functional.overlap import overlap_loss
from detloss.geometry.iou import SMALLEST_SIDE, Overlap, overlap
from detloss.types import BoxFormat, Number, Reduction

__all__ = [
    "alpha_iou_loss",
    "bounded_iou_loss",
    "inner_iou_loss",
    "mpdiou_loss",
    "shape_iou_loss",
]

AlphaIoUBase: TypeAlias = Literal["iou", "giou", "diou", "ciou"]
ALPHA_IOU_BASES = ("iou", "giou", "diou", "ciou")
InnerIoUBase: TypeAlias = Literal["iou", "giou", "diou", "ciou", "eiou", "siou"]
INNER_IOU_BASES: dict[str, Callable[[Overlap, float], Tensor]] = {
    "iou": lambda pair, eps: 1 - pair.iou,
    "giou": lambda pair, eps: family.giou_cost(pair),
    "diou": lambda pair, eps: family.diou_cost(pair),
    "ciou": family.ciou_cost,
    "eiou": lambda pair, eps: family.eiou_cost(pair),
    "siou": family.siou_cost,
}
LARGEST_RATIO = 1e15


def one_where_inverted(cost: Tensor, inverted: Tensor) -> Tensor:
    """``cost``, but at least 1 where the prediction is turned inside out: there is nothing that it could agree with."""
    return torch.where(inverted > 0, cost.clamp(min=1), cost)


def fixed_diagonal(pair: Overlap, unit: Tensor) -> Tensor:
    """Squared diagonal of the enclosing box in ``unit``, held constant; 1 where the box is a point."""
    cw, ch = pair.enclosing_size
    diagonal = ((cw / unit).square() + (ch / unit).square()).detach()
    return torch.where(diagonal > 0, diagonal, 1.0)


def bounded_iou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    beta: float = 0.2,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Bounded IoU loss: Σ SmoothL1(1 − B, β) over x, y, w, h, each B standing for the IoU that this one error leaves.

    B = max(0, (s* − 2d)/(s* + 2d)) for an offset d of the centres along an axis on which the target has side s*;
    B = min(s/s*, s*/s) for sides s and s*. Offsets of half a side and more all cost the same.
    mmdet keeps the four terms apart: its mean is a quarter of this one, its sum and its mean with ``avg_factor`` are equal.
    Source: Tychsen-Smith & Petersson 2018, arXiv:1711.00164.

    Args:
        beta: where SmoothL1 turns from quadratic to linear.

    >>> bounded_iou_loss(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[0.0, 0.0, 2.0, 4.0]]))  # dx 1, w 4 for 2
    tensor(1.3000)
    """
    check_positive("bounded_iou_loss", beta=beta)

    def cost(pair: Overlap) -> Tensor:
        terms = list(side_gaps(pair, eps))
        for d, t, c in zip(pair.centre_offset, pair.target_size, pair.enclosing_size, strict=True):
            reach = torch.maximum(t + 2 * d.abs(), math.sqrt(eps) * c.detach()).clamp(min=SMALLEST_SIDE)
            terms.append(4 * d.abs() / reach)
        error = torch.stack(terms, dim=-1).clamp(max=1)
        loss = torch_f.smooth_l1_loss(error, torch.zeros_like(error), beta=beta, reduction="none").sum(-1)
        return one_where_inverted(loss, pair.inverted)

    return overlap_loss(
        "bounded_iou_loss", cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip


def alpha_iou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    alpha: float = 3.0,
    base: AlphaIoUBase = "iou",
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Alpha-IoU loss: 1 − IoU^α + P^α, with P the penalty of the ``base``: 0, (C − U)/C, ρ²/c², or ρ²/c² and αv apart.

    Source: He et al. 2021, arXiv:2110.13675.

    Args:
        alpha: exponent; above 1 it favours good boxes, 1 gives the base. Below 1 the slope is that at ``eps`` for IoU or
            penalties under ``eps``, so that it stays bounded.
        base: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``.

    >>> alpha_iou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))  # 1 − 0.5³
    tensor(0.8750)
    """
    check_positive("alpha_iou_loss", alpha=alpha)
    check_option("alpha_iou_loss", "base", base, ALPHA_IOU_BASES)

    def power(x: Tensor) -> Tensor:
        if alpha >= 1:
            return x.pow(alpha)
        return torch.where(x > eps, x.clamp(min=eps).pow(alpha), x * eps ** (alpha - 1))

    def cost(pair: Overlap) -> Tensor:
        loss = 1 - power(pair.iou)
        if base == "giou":
            loss = loss + power(pair.hollow)
        if base in ("diou", "ciou"):
            loss = loss + power(centre_distance(pair))
        if base == "ciou":
            loss = loss + power(family.aspect_cost(pair, eps))
        return loss

    return overlap_loss(
        "alpha_iou_loss", cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip


def check_image_size(where: str, image_size: Sequence[float] | None) -> None:
    """Raise unless ``image_size`` is ``None`` or a (height, width) of positive numbers (``TypeError`` / ``ValueError``)."""
    if image_size is None:
        return
    if isinstance(image_size, (str, bytes)) or not isinstance(image_size, Sequence) or len(image_size) != 2:
        raise TypeError(f"{where}: image_size must be None or (height, width); got {image_size!r}")
    check_positive(where, **dict(zip(("height", "width"), image_size, strict=True)))


def mpdiou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    image_size: Sequence[float] | None = None,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """MPDIoU loss: 1 − IoU + (d₁² + d₂²)/D², d₁ and d₂ the distances of the top left and of the bottom right corners.

    In the paper D is the diagonal of the image, so the loss depends on the scale of the boxes in it. Without an image
    size D is the diagonal of the enclosing box, held constant like that of the image: not the paper's loss, but one that
    needs no image and does not depend on the scale.
    Source: Ma & Xu 2023, arXiv:2307.07662.

    Args:
        image_size: (height, width) of the network's input in the unit of the boxes, or ``None``.

    >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
    >>> mpdiou_loss(boxes[:1], boxes[1:], image_size=(6, 8))  # 1 + (4 + 4)/100
    tensor(1.0800)
    """
    check_image_size("mpdiou_loss", image_size)

    def cost(pair: Overlap) -> Tensor:
        unit = length_unit(pair)
        squared = torch.zeros_like(unit)
        for d, p, t in zip(pair.centre_offset, pair.pred_size, pair.target_size, strict=True):
            # The corners are off by d − Δ/2 and d + Δ/2, Δ the difference of the sides.
            squared = squared + 2 * (d / unit).square() + ((p - t) / unit).square() / 2
        if image_size is None:
            return 1 - pair.iou + squared / fixed_diagonal(pair, unit)
        ratio = (unit / math.hypot(*image_size)).clamp(max=LARGEST_RATIO)
        return 1 - pair.iou + squared * ratio.square()

    return overlap_loss(
        "mpdiou_loss", cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip


def _auxiliary(pair: Overlap, ratio: float, eps: float) -> Overlap:
    """The overlap of both boxes with their sides scaled by ``ratio`` about their centres."""
    (dx, dy), (pw, ph), (tw, th) = pair.centre_offset, pair.pred_size, pair.target_size
    half = ratio / 2
    pred = torch.stack((dx - half * pw, dy - half * ph, dx + half * pw, dy + half * ph), dim=-1)
    target = torch.stack((-half * tw, -half * th, half * tw, half * th), dim=-1)
    return overlap(pred, target, eps=eps)


def inner_iou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    ratio: float = 0.75,
    base: InnerIoUBase = "iou",
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Inner-IoU loss: base + IoU − IoU of auxiliary boxes, whose sides are ``ratio`` of the boxes' about the same centres.

    With ``base="iou"`` that is 1 − IoU of the auxiliary boxes.
    Source: Zhang et al. 2023, arXiv:2311.02877.

    Args:
        ratio: below 1 for steeper gradients of good boxes, above 1 for a wider reach; the paper stays in [0.5, 1.5].
        base: ``"iou"`` (1 − IoU), ``"giou"``, ``"diou"``, ``"ciou"``, ``"eiou"`` or ``"siou"``.

    >>> inner_iou_loss(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[1.0, 0.0, 5.0, 4.0]]), ratio=0.5)  # 1 − 1/3
    tensor(0.6667)
    """
    check_positive("inner_iou_loss", ratio=ratio)
    check_option("inner_iou_loss", "base", base, tuple(INNER_IOU_BASES))
    return overlap_loss(
        "inner_iou_loss", lambda pair: INNER_IOU_BASES[base](pair, eps) + pair.iou - _auxiliary(pair, ratio, eps).iou,
        pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip


def shape_iou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    scale: float = 0.0,
    theta: float = 4.0,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Shape-IoU loss: 1 − IoU + (h̄ dx² + w̄ dy²)/c² + Ω/2, errors weighed by the shape of the target.

    w̄ = 2 w*^s/(w*^s + h*^s), h̄ = 2 h*^s/(w*^s + h*^s); Ω = (1 − exp(−h̄ |w − w*|/max(w, w*)))^θ + the same of h with w̄.
    Source: Zhang & Zhang 2023, arXiv:2312.17663.

    Args:
        scale: s, chosen by the size of the objects of a data set; 0 gives every shape the same weights.
        theta: exponent of the shape cost, at least 1.

    >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0], [0.0, 1.0, 4.0, 3.0]])
    >>> shape_iou_loss(boxes[:1], boxes[1:], scale=1.0)  # 1 − 1/3 + 4/3 · 1/25
    tensor(0.7200)
    """
    check_non_negative("shape_iou_loss", scale=scale)
    check_at_least("shape_iou_loss", 1, theta=theta)

    def cost(pair: Overlap) -> Tensor:
        unit = length_unit(pair)
        tw, th = ((t / unit).detach().clamp(min=eps).pow(scale) for t in pair.target_size)
        # An error along the shorter side of the target weighs more.
        weights = (2 * th / (tw + th), 2 * tw / (tw + th))
        loss = 1 - pair.iou
        (cw, ch) = pair.enclosing_size
        diagonal = (cw / unit).square() + (ch / unit).square()
        for w, d, gap in zip(weights, pair.centre_offset, side_gaps(pair, eps), strict=True):
            loss = loss + w * (d / unit).square() / torch.where(diagonal > 0, diagonal, 1.0)
            loss = loss + (1 - torch.exp(-w * gap)).clamp(min=0).pow(theta) / 2
        return loss

    return overlap_loss(
        "shape_iou_loss", cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip
