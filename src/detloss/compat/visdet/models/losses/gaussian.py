"""``GaussianFocalLoss`` of visdet."""

from __future__ import annotations

from torch import Tensor

from detloss.compat.mmdet.models import losses as shared
from detloss.types import Number, Reduction

__all__ = ["GaussianFocalLoss"]


class GaussianFocalLoss(shared.GaussianFocalLoss):
    """Gaussian focal loss of probabilities; see :func:`detloss.compat.mmdet.models.losses.gaussian_focal_loss`.

    Args:
        alpha: focusing exponent.
        gamma: exponent that spares the surroundings of a centre.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
    """

    def __init__(self, alpha: float = 2.0, gamma: float = 4.0, reduction: Reduction = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(alpha, gamma, reduction, loss_weight)

    def forward(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """Compute the loss of probabilities of any shape."""
        return super().forward(pred, target, weight=weight, avg_factor=avg_factor, reduction_override=reduction_override)
