"""``GaussianFocalLoss`` of heat maps, from probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.checks import check_non_negative
from detloss.compat.mmdet.models.losses.reduction import check_override, fitted_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.types import Number, Reduction

__all__ = ["GaussianFocalLoss", "gaussian_focal_loss", "gaussian_focal_loss_with_pos_inds"]


def gaussian_focal_loss(
    pred: Tensor,
    gaussian_target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    alpha: float = 2.0,
    gamma: float = 4.0,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
) -> Tensor:
    """Gaussian focal loss of probabilities: :func:`detloss.functional.gaussian_focal_loss` with ``activated=True``.

    Probabilities are kept off 0 and 1 by the eps of fp32, not by 1e-12, which fp16 does not have.

    Args:
        pred: probabilities of any shape.
        gaussian_target: heat map in [0, 1], 1 at the centres.
        weight: one number per element.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
        alpha: focusing exponent.
        gamma: exponent that spares the surroundings of a centre.
        pos_weight: factor of the centres.
        neg_weight: factor of the rest.
    """
    factor = fitted_weight(weight, pred.shape)
    if pos_weight != 1 or neg_weight != 1:
        kind = torch.where(gaussian_target == 1, pos_weight, neg_weight)
        factor = kind if factor is None else kind * factor.reshape(*factor.shape, *(1,) * (pred.ndim - factor.ndim))
    return F.gaussian_focal_loss(
        pred,
        gaussian_target,
        alpha=alpha,
        gamma=gamma,
        activated=True,
        weight=factor,
        avg_factor=avg_factor,
        reduction=reduction,
    )


def gaussian_focal_loss_with_pos_inds(
    pred: Tensor,
    gaussian_target: Tensor,
    pos_inds: Tensor,
    pos_labels: Tensor,
    alpha: float = 2.0,
    gamma: float = 4.0,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """The loss of given centres and that of the whole map as if it had none, each reduced, then added.

    Args:
        pred: probabilities ``[N, C]``.
        gaussian_target: heat map ``[N, C]`` in [0, 1].
        pos_inds: rows of the centres ``[K]``.
        pos_labels: their classes ``[K]``.
        alpha: focusing exponent.
        gamma: exponent that spares the surroundings of a centre.
        pos_weight: factor of the centres.
        neg_weight: factor of the rest.
        reduction: ``"none"`` adds ``[K, 1]`` to ``[N, C]`` and works where these broadcast, as there; ``"mean"``, ``"sum"``.
        avg_factor: what both means divide by.
    """
    found = pred[pos_inds].gather(1, pos_labels.unsqueeze(1))
    centres = F.gaussian_focal_loss(
        found, found.new_ones(found.shape), alpha=alpha, gamma=gamma, activated=True, avg_factor=avg_factor, reduction=reduction
    )
    spared = (1 - gaussian_target).pow(gamma)
    rest = F.gaussian_focal_loss(
        pred, gaussian_target.new_zeros(gaussian_target.shape), alpha=alpha, gamma=gamma, activated=True,
        weight=spared, avg_factor=avg_factor, reduction=reduction,
    )  # fmt: skip
    return pos_weight * centres + neg_weight * rest


@MODELS.register_module()
class GaussianFocalLoss(engine.GaussianFocalLoss):
    """Gaussian focal loss of probabilities; see :func:`gaussian_focal_loss`.

    Args:
        alpha: focusing exponent.
        gamma: exponent that spares the surroundings of a centre.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
        pos_weight: factor of the centres.
        neg_weight: factor of the rest.

    >>> import torch
    >>> GaussianFocalLoss(reduction="none")(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.5]))
    tensor([0.1733, 0.0108])
    """

    def __init__(
        self,
        alpha: float = 2.0,
        gamma: float = 4.0,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
        pos_weight: float = 1.0,
        neg_weight: float = 1.0,
    ) -> None:
        super().__init__(alpha, gamma, True, reduction, loss_weight)
        check_non_negative("GaussianFocalLoss", pos_weight=pos_weight, neg_weight=neg_weight)
        self.pos_weight, self.neg_weight = pos_weight, neg_weight

    def forward(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        pos_inds: Tensor | None = None,
        pos_labels: Tensor | None = None,
        weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor:
        """Compute the loss of probabilities; with ``pos_inds`` that of :func:`gaussian_focal_loss_with_pos_inds`."""
        check_override("GaussianFocalLoss", reduction_override)
        reduction = self.reduction if reduction_override is None else reduction_override
        shared: dict[str, Any] = {
            "alpha": self.alpha, "gamma": self.gamma, "pos_weight": self.pos_weight, "neg_weight": self.neg_weight,
            "reduction": reduction, "avg_factor": avg_factor,
        }  # fmt: skip
        if pos_inds is not None:
            if pos_labels is None:
                raise AssertionError("GaussianFocalLoss: pos_inds come with pos_labels; got None")
            return self.loss_weight * gaussian_focal_loss_with_pos_inds(pred, target, pos_inds, pos_labels, **shared)
        return self.loss_weight * gaussian_focal_loss(pred, target, weight, **shared)
