"""The losses of GFL and VarifocalNet: quality focal, distribution focal and varifocal loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.compat.mmdet.models.losses.focal import check_sigmoid
from detloss.compat.mmdet.models.losses.reduction import PeerLoss, fitted_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.types import Number, Reduction

__all__ = [
    "DistributionFocalLoss",
    "QualityFocalLoss",
    "VarifocalLoss",
    "distribution_focal_loss",
    "quality_focal_loss",
    "varifocal_loss",
]

QualityTarget = Tensor | tuple[Tensor, Tensor]


def _background(pred: Tensor, target: QualityTarget) -> QualityTarget:
    """Negative labels of (label, score) become the background C, which they are there."""
    if isinstance(target, Tensor):
        return target
    label, score = target
    return torch.where(label < 0, pred.shape[1], label), score


def quality_focal_loss(
    pred: Tensor,
    target: QualityTarget,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    beta: float = 2.0,
) -> Tensor:
    """Quality focal loss, one value per row: :func:`detloss.functional.quality_focal_loss`.

    Args:
        pred: logits ``[N, C]``.
        target: (class indices ``[N]``, scores ``[N]``); every index that is no class is background. Or scores ``[N, C]``.
        weight: one number per row.
        reduction: ``"none"`` (``[N]``), ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
        beta: exponent of the modulating factor.
    """
    return F.quality_focal_loss(
        pred, _background(pred, target), beta=beta, weight=weight, avg_factor=avg_factor, reduction=reduction
    )


def distribution_focal_loss(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """Distribution focal loss: :func:`detloss.functional.distribution_focal_loss`.

    A label of R is its last bin (there an index error) and labels beyond [0, R] are clamped.

    Args:
        pred: logits ``[N, R + 1]`` of the bins of one side.
        label: distances ``[N]`` in [0, R].
        weight: one number per side.
        reduction: ``"none"`` (``[N]``), ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
    """
    return F.distribution_focal_loss(pred, label, weight=weight, avg_factor=avg_factor, reduction=reduction)


def varifocal_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """Varifocal loss: :func:`detloss.functional.varifocal_loss`.

    Args:
        pred: logits ``[N, C]``.
        target: qualities ``[N, C]`` in [0, 1].
        weight: one number per row or per logit.
        alpha: weight of the negatives.
        gamma: exponent of the modulating factor of the negatives.
        iou_weighted: weigh the positives by their quality.
        reduction: ``"none"`` (``[N, C]``), ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
    """
    return F.varifocal_loss(
        pred,
        target,
        alpha=alpha,
        gamma=gamma,
        iou_weighted=iou_weighted,
        weight=fitted_weight(weight, pred.shape),
        avg_factor=avg_factor,
        reduction=reduction,
    )


@MODELS.register_module()
class QualityFocalLoss(PeerLoss, engine.QualityFocalLoss):
    """Quality focal loss; see :func:`quality_focal_loss`.

    Args:
        use_sigmoid: must be ``True``.
        beta: exponent of the modulating factor.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
        activated: ``pred`` holds probabilities.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        check_sigmoid("QualityFocalLoss", use_sigmoid)
        super().__init__(True, beta, activated=activated, reduction=reduction, loss_weight=loss_weight)

    def compute(  # type: ignore[override]
        self, pred: Tensor, target: QualityTarget, **arguments: Any
    ) -> Tensor:
        return super().compute(pred, _background(pred, target), **arguments)


@MODELS.register_module()
class DistributionFocalLoss(PeerLoss, engine.DistributionFocalLoss):
    """Distribution focal loss; see :func:`distribution_focal_loss`."""


@MODELS.register_module()
class VarifocalLoss(PeerLoss, engine.VarifocalLoss):
    """Varifocal loss; see :func:`varifocal_loss`.

    Args:
        use_sigmoid: must be ``True``.
        alpha: weight of the negatives.
        gamma: exponent of the modulating factor of the negatives.
        iou_weighted: weigh the positives by their quality.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        check_sigmoid("VarifocalLoss", use_sigmoid)
        super().__init__(alpha, gamma, iou_weighted, reduction=reduction, loss_weight=loss_weight)
        self.use_sigmoid = use_sigmoid

    def compute(  # type: ignore[override]
        self, pred: Tensor, target: QualityTarget, weight: Tensor | None = None, **arguments: Any
    ) -> Tensor:
        return super().compute(pred, target, weight=fitted_weight(weight, pred.shape), **arguments)
