"""Losses that compare boxes as Gaussians: NWD for axis-aligned boxes, ProbIoU, KLD and GWD for rotated ones.

Rotated boxes are ``[N, 5]`` (or ``[..., 5]``): cx, cy, w, h and the angle in radians, turning x towards y. Arguments shared
by the rotated losses:

* ``eps``: sides below this share of the longest side of the pair count as longer, which bounds gradients and changes
  nothing for boxes that are merely small.
* ``weight``, ``avg_factor``, ``reduction``: see :func:`detloss.reduction.reduce_loss`; ``none`` gives ``[N]``.

Identical boxes cost 0. A turn by π, and a quarter turn with w and h swapped, change nothing. A prediction with a negative
side costs at least 1 and has a gradient that pulls the side back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from detloss.checks import check_boxes, check_option, check_positive
from detloss.functional.iou import overlap_loss
from detloss.functional.iou_costs import length_unit
from detloss.functional.iou_variants import one_where_inverted
from detloss.geometry.iou import Overlap
from detloss.geometry.rotated import RotatedPair, compare_rotated
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.types import BoxFormat, Number, Reduction

__all__ = ["gwd_loss", "kld_loss", "nwd_loss", "probiou_loss"]

ProbIoUMode: TypeAlias = Literal["l1", "l2"]
PROBIOU_MODES = ("l1", "l2")
DistanceFunction: TypeAlias = Literal["log1p", "sqrt", "log1p_sqrt", "none"]
DISTANCE_FUNCTIONS = ("log1p", "sqrt", "log1p_sqrt", "none")


def _root(x: Tensor) -> Tensor:
    """√x of a distance x >= 0, with the gradient of x itself, which is 0, where x is 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), x)


def nwd_loss(
    pred: Tensor,
    target: Tensor,
    *,
    constant: float = 12.8,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Normalised Wasserstein distance loss of axis-aligned boxes ``[N, 4]``: 1 − exp(−W/C), in [0, 1].

    W² = dx² + dy² + (Δw² + Δh²)/4 is the Wasserstein distance of the Gaussians with the boxes' centres and half sides. It
    depends on the scale of the boxes: C is a length, in the paper the average size of the objects of AI-TOD.
    Source: Wang et al. 2021, arXiv:2110.13389.

    Args:
        constant: C, in the unit of the boxes.
        eps: not used by the value; as in :mod:`detloss.functional.iou`.

    >>> nwd_loss(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([[3.0, 4.0, 11.0, 12.0]]), constant=5.0)  # 1 − 1/e
    tensor(0.6321)
    """
    check_positive("nwd_loss", constant=constant)

    def cost(pair: Overlap) -> Tensor:
        unit = length_unit(pair)
        squared = torch.zeros_like(unit)
        for d, p, t in zip(pair.centre_offset, pair.pred_size, pair.target_size, strict=True):
            squared = squared + (d / unit).square() + ((p - t) / unit).square() / 4
        return one_where_inverted(-torch.expm1(-_root(squared) * (unit / constant)), pair.inverted)

    return overlap_loss(
        "nwd_loss", cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip


def _rotated_loss(
    where: str,
    cost: Callable[[RotatedPair], Tensor],
    pred: Tensor,
    target: Tensor,
    *,
    eps: float,
    weight: Tensor | None,
    avg_factor: Number | Tensor | None,
    reduction: Reduction,
    form: float | None = None,
) -> Tensor:
    """Check, compare, add the price of negative sides, reduce: what the rotated losses share.

    ``form`` is the number of the operation ``probiou`` of :mod:`detloss.kernels.contract` that computes the same cost.
    """
    check_boxes(where, pred, target, size=5)
    check_positive(where, eps=eps)

    def formula(pred: Tensor) -> Tensor:
        pair = compare_rotated(pred, target, eps)
        return one_where_inverted(cost(pair), pair.inverted) + pair.inverted

    call = Call("probiou", pred, target=target, weight=weight, numbers=(eps, form or 0.0))
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction, fusible=form is not None)


def probiou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    mode: ProbIoUMode = "l1",
    eps: float = 1e-4,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """ProbIoU loss of rotated boxes: the Hellinger distance √(1 − exp(−B)) (``l1``, in [0, 1]) or B itself (``l2``).

    B = dᵀ(Σ + Σ*)⁻¹d/4 + ½ ln(\\|(Σ + Σ*)/2\\| / √(\\|Σ\\| \\|Σ*\\|)) is the Bhattacharyya distance of the Gaussians with the
    centres and the variances w²/12, h²/12 of uniform boxes. Unchanged by scale.
    Source: Murrugarra-Llerena et al. 2021, arXiv:2106.06072.

    Args:
        mode: ``l1`` saturates with the distance, ``l2`` does not; the paper starts with ``l2`` and ends with ``l1``.

    >>> probiou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.3]]), torch.tensor([[2.0, 0.0, 2.0, 2.0, 0.3]]), mode="l2")
    tensor(1.5000)
    """
    check_option("probiou_loss", "mode", mode, PROBIOU_MODES)

    def cost(pair: RotatedPair) -> Tensor:
        (pw, ph), (tw, th), (pu, pv), (width, height, tu, tv) = pair[:4]
        area, target_area = pw * ph, tw * th
        least = 4 * (area * target_area)
        # |Σ + Σ*| exceeds its least value 4 √(|Σ| |Σ*|) by three squares.
        straight = (1 - pair.sin2) * (pw * th - tw * ph).square()
        excess = (area - target_area).square() + straight + pair.sin2 * (pw * tw - ph * th).square()
        apart = (ph * pu).square() + (pw * pv).square() + (height * tu).square() + (width * tv).square()
        distance = 3 * apart / (least + excess) + torch.log1p(excess / least) / 2
        return distance if mode == "l2" else _root(-torch.expm1(-distance))

    return _rotated_loss(
        "probiou_loss", cost, pred, target,
        eps=eps, weight=weight, avg_factor=avg_factor, reduction=reduction, form=float(mode == "l2"),
    )  # fmt: skip


def check_distance_options(where: str, fun: object, tau: object) -> None:
    """Raise unless ``fun`` is a known function and ``tau`` is ``None`` or at least 1 (``TypeError`` / ``ValueError``)."""
    check_option(where, "fun", fun, DISTANCE_FUNCTIONS)
    if tau is None:
        return
    check_positive(where, tau=tau)
    if tau < 1:  # type: ignore[operator]
        raise ValueError(f"{where}: tau must be at least 1, or None for f(D) itself; got {tau!r}")


def _bounded(distance: Tensor, fun: DistanceFunction, tau: float | None) -> Tensor:
    """1/τ − 1/(τ + f(D)) for a distance D >= 0, or f(D) itself without τ."""
    value = _root(distance) if fun in ("sqrt", "log1p_sqrt") else distance
    if fun in ("log1p", "log1p_sqrt"):
        value = torch.log1p(value)
    return value if tau is None else value / (tau * (tau + value))


def kld_loss(
    pred: Tensor,
    target: Tensor,
    *,
    fun: DistanceFunction = "log1p",
    tau: float | None = 1.0,
    eps: float = 1e-4,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Kullback-Leibler divergence loss of rotated boxes: 1/τ − 1/(τ + f(D)).

    D = KL(target ‖ prediction) = ½ (dᵀΣ⁻¹d + tr(Σ⁻¹Σ*) + ln(\\|Σ\\|/\\|Σ*\\|)) − 1, with the variances w²/4, h²/4. Unchanged by
    scale. The paper writes 1 − 1/(τ + f(D)), which for τ > 1 is a constant more than this and not 0 for identical boxes.
    Source: Yang et al. 2021, arXiv:2106.01883 (mmrotate: ``log1p`` with its ``sqrt=False``, ``log1p_sqrt`` with True).

    Args:
        fun: f(D): ``"log1p"`` ln(1 + D), ``"sqrt"`` √D, ``"log1p_sqrt"`` ln(1 + √D), ``"none"`` D.
        tau: at least 1; ``None`` for f(D) itself.

    >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.3], [2.0, 0.0, 2.0, 2.0, 0.3]])
    >>> kld_loss(boxes[:1], boxes[1:], fun="none", tau=None)  # ½ · 2²/1
    tensor(2.)
    """
    check_distance_options("kld_loss", fun, tau)

    def cost(pair: RotatedPair) -> Tensor:
        (pw, ph), (tw, th), (u, v) = pair[:3]
        turn = pair.sin2 * (tw - th) * (tw + th) * ((pw - ph) * (pw + ph) / (pw * ph).square())
        for p, t in ((pw, tw), (ph, th)):
            ratio = 2 * torch.log(t / p)
            turn = turn + torch.expm1(ratio) - ratio
        return _bounded(2 * ((u / pw).square() + (v / ph).square()) + turn.clamp(min=0) / 2, fun, tau)

    return _rotated_loss("kld_loss", cost, pred, target, eps=eps, weight=weight, avg_factor=avg_factor, reduction=reduction)


def gwd_loss(
    pred: Tensor,
    target: Tensor,
    *,
    fun: DistanceFunction = "log1p",
    tau: float | None = 1.0,
    normalize: bool = False,
    eps: float = 1e-4,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Gaussian Wasserstein distance loss of rotated boxes: 1/τ − 1/(τ + f(D)).

    D = \\|d\\|² + tr(Σ + Σ* − 2 (Σ^½ Σ* Σ^½)^½), with the variances w²/4, h²/4, in squared pixels: it depends on the scale.
    The paper writes 1 − 1/(τ + f(D)), which for τ > 1 is a constant more than this and not 0 for identical boxes.
    Source: Yang et al. 2021, arXiv:2101.11952 (mmrotate: ``fun="log1p_sqrt", normalize=True``).

    Args:
        fun: f(D): ``"log1p"`` ln(1 + D), ``"sqrt"`` √D, ``"log1p_sqrt"`` ln(1 + √D), ``"none"`` D.
        tau: at least 1; ``None`` for f(D) itself.
        normalize: divide D by √(w h w* h*), the geometric mean of the areas; then scale changes nothing.

    >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0], [3.0, 0.0, 2.0, 2.0, 0.0]])
    >>> gwd_loss(boxes[:1], boxes[1:], fun="none", tau=None)  # 3² + (4 − 2)²/4
    tensor(10.)
    """
    check_distance_options("gwd_loss", fun, tau)

    def cost(pair: RotatedPair) -> Tensor:
        (pw, ph), (tw, th), (u, v) = pair[:3]
        aligned = pw * tw + ph * th
        lost = pair.sin2 * (pw - ph) * (pw + ph) * (tw - th) * (tw + th)
        shape = (pw - tw).square() + (ph - th).square() + 2 * lost / (aligned + (aligned.square() - lost).sqrt())
        distance = u.square() + v.square() + shape.clamp(min=0) / 4
        scaled = distance / (pw * ph * tw * th).sqrt() if normalize else distance * pair.unit.square()
        return _bounded(scaled, fun, tau)

    return _rotated_loss("gwd_loss", cost, pred, target, eps=eps, weight=weight, avg_factor=avg_factor, reduction=reduction)
