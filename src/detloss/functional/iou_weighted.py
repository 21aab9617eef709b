"""Losses of the IoU family that weigh boxes by how good they are; the weights are constants, not part of what is minimised.

Arguments shared by every function here are those of :mod:`detloss.functional.iou`, and so are the promises: one value per
box, 0 for identical boxes, at least 1 for a prediction that is turned inside out, unchanged by the scale of the boxes.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from detloss.checks import check_non_negative, check_positive
from detloss.functional.iou import eiou_cost, length_unit
from detloss.functional.iou_variants import fixed_diagonal, one_where_inverted
from detloss.functional.overlap import overlap_loss
from detloss.geometry.iou import Overlap
from detloss.types import BoxFormat, Number, Reduction

__all__ = ["focal_eiou_loss", "wiou_loss"]

WIoUVersion: TypeAlias = Literal[1, 2, 3]
WIOU_VERSIONS = (1, 2, 3)


def focal_eiou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    gamma: float = 0.5,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Focal-EIoU loss: IoU^γ · EIoU, the weight IoU^γ held constant.

    The weight makes good boxes count more. It is no part of what is minimised: differentiated, it would push boxes with an
    IoU below about 1/3 away from their target. Boxes that do not overlap cost 0 and get no gradient.
    Source: Zhang et al. 2021, arXiv:2101.08158.

    Args:
        gamma: exponent of the weight; 0 gives :func:`detloss.functional.eiou_loss`.

    >>> focal_eiou_loss(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))  # √0.5 · 0.78125
    tensor(0.5524)
    """
    check_non_negative("focal_eiou_loss", gamma=gamma)

    def cost(pair: Overlap) -> Tensor:
        return one_where_inverted(pair.iou.detach().pow(gamma) * eiou_cost(pair), pair.inverted)

    return overlap_loss(
        "focal_eiou_loss", cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip


def check_wiou(where: str, version: object, alpha: float, delta: float, gamma: float) -> None:
    """Raise unless the options of WIoU are valid (``TypeError`` / ``ValueError``)."""
    if version not in WIOU_VERSIONS:
        raise ValueError(f"{where}: version must be 1, 2 or 3; got {version!r}")
    check_positive(where, delta=delta, alpha=alpha)
    check_non_negative(where, gamma=gamma)
    if alpha <= 1:
        raise ValueError(f"{where}: alpha must be above 1, so that outliers lose weight; got {alpha!r}")


def wiou_loss(
    pred: Tensor,
    target: Tensor,
    *,
    version: WIoUVersion = 1,
    iou_loss_mean: Number | Tensor = 1.0,
    alpha: float = 1.9,
    delta: float = 3.0,
    gamma: float = 0.5,
    eps: float = 1e-6,
    box_format: BoxFormat = "xyxy",
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Wise-IoU loss: r · exp(ρ²/c²) · (1 − IoU), with c² and the gain r held constant.

    ``version`` 1: r = 1; 2: r = β^γ; 3: r = β/(δ α^(β − δ)). The outlier degree β = (1 − IoU)/mean compares a box with the
    running mean of 1 − IoU, which :class:`detloss.WIoULoss` keeps: version 2 favours bad boxes, version 3 ordinary ones.
    Source: Tong et al. 2023, arXiv:2301.10051.

    Args:
        version: 1, 2 or 3.
        iou_loss_mean: running mean of 1 − IoU, a number or a 0-dim tensor; used by versions 2 and 3.
        alpha: base of version 3, above 1.
        delta: outlier degree at which the gain of version 3 is 1.
        gamma: exponent of version 2.

    >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
    >>> wiou_loss(boxes[:1], boxes[1:])  # exp(1/13) · 2/3
    tensor(0.7200)
    """
    check_wiou("wiou_loss", version, alpha, delta, gamma)

    def gain(iou: Tensor) -> Tensor:
        mean = torch.as_tensor(iou_loss_mean, dtype=iou.dtype, device=iou.device).clamp(min=eps)
        degree = (1 - iou) / mean
        return degree.pow(gamma) if version == 2 else degree / delta * torch.pow(alpha, delta - degree)

    def cost(pair: Overlap) -> Tensor:
        unit = length_unit(pair)
        dx, dy = pair.centre_offset
        distance = (dx / unit).square() + (dy / unit).square()
        loss = torch.exp(distance / fixed_diagonal(pair, unit)) * (1 - pair.iou)
        if version == 1:
            return loss
        with torch.no_grad():
            r = gain(pair.iou)
        return one_where_inverted(r * loss, pair.inverted)

    return overlap_loss(
        "wiou_loss", cost, pred, target,
        eps=eps, box_format=box_format, weight=weight, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip
