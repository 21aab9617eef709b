"""The gradient harmonised losses ``GHMC`` and ``GHMR``."""

from __future__ import annotations

import torch
from torch import Tensor

from detloss import losses as engine
from detloss.compat.mmdet.models.losses.focal import check_sigmoid
from detloss.compat.mmdet.models.losses.reduction import check_override, fitted_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.types import Number, Reduction

__all__ = ["GHMC", "GHMR"]


def _valid(pred: Tensor, label_weight: Tensor | None) -> Tensor:
    """1 for every element that counts, of the shape of ``pred``."""
    if label_weight is None:
        return torch.ones_like(pred)
    weight = fitted_weight(label_weight, pred.shape)
    positive = (label_weight if weight is None else weight) > 0
    return positive.reshape(*positive.shape, *(1,) * (pred.ndim - positive.ndim)).expand(pred.shape).to(pred.dtype)


@MODELS.register_module()
class GHMC(engine.GHMC):
    """Gradient harmonised classification loss; see :func:`detloss.functional.ghm_classification_loss`.

    A mean divides by the number N of elements that count, whatever ``avg_factor`` says, as there; the moving average of the
    counts changes in training mode only and is kept in the state dict.

    Args:
        bins: number of bins of [0, 1].
        momentum: of the moving average of the counts, in [0, 1).
        use_sigmoid: must be ``True``.
        loss_weight: factor of the result.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
    """

    def __init__(
        self,
        bins: int = 10,
        momentum: float = 0,
        use_sigmoid: bool = True,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        check_sigmoid("GHMC", use_sigmoid)
        super().__init__(bins, momentum, reduction=reduction, loss_weight=loss_weight)

    def forward(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: logits ``[N, C]``.
            target: class indices ``[N]`` (every index that is no class is background), or targets of the logits' shape.
            label_weight: ``[N]`` or ``[N, C]``; what is not above 0 does not count, else the size plays no part.
            avg_factor: not used.
            reduction_override: reduction of this call only.
            weight: ``label_weight`` by the name that it has in other losses.
        """
        check_override("GHMC", reduction_override)
        reduction = self.reduction if reduction_override is None else reduction_override
        valid = _valid(pred, weight if label_weight is None else label_weight)
        if target.ndim != pred.ndim:
            target = torch.where(target < 0, pred.shape[1], target)
        divisor = valid.sum() if reduction == "mean" else None
        return self.loss_weight * self.compute(pred, target, weight=valid, avg_factor=divisor, reduction=reduction)


@MODELS.register_module()
class GHMR(engine.GHMR):
    """Gradient harmonised regression loss; see :func:`detloss.functional.ghm_regression_loss` and :class:`GHMC`.

    Args:
        mu: where the loss turns from a parabola to a line.
        bins: number of bins of [0, 1].
        momentum: of the moving average of the counts, in [0, 1).
        loss_weight: factor of the result.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
    """

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(mu, bins, momentum, reduction, loss_weight)

    def forward(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of ``[N, 4]`` coordinates; ``label_weight`` and ``avg_factor`` as in :class:`GHMC`."""
        check_override("GHMR", reduction_override)
        reduction = self.reduction if reduction_override is None else reduction_override
        valid = _valid(pred, weight if label_weight is None else label_weight)
        divisor = valid.sum() if reduction == "mean" else None
        return self.loss_weight * self.compute(pred, target, weight=valid, avg_factor=divisor, reduction=reduction)
