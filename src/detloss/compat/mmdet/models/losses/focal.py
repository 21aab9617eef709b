"""``FocalLoss`` and its functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.compat.mmdet.models.losses.reduction import PeerLoss, fitted_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.types import Number, Reduction

__all__ = ["FocalLoss", "py_focal_loss_with_prob", "py_sigmoid_focal_loss", "sigmoid_focal_loss"]


def sigmoid_focal_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """Focal loss of every logit: :func:`detloss.functional.sigmoid_focal_loss`; a mean divides by N · C.

    The same on every device: there the CUDA operator caps an element at α · 87.3, is NaN in fp16 for logits beyond 9, and
    takes a label of −1 for a negative, which the CPU refuses. Here it is a ``ValueError``.

    Args:
        pred: logits ``[N, C]``.
        target: class indices ``[N]`` (background C), or targets of the logits' shape.
        weight: one number per row ``[N]``, per logit ``[N, C]``, or those flattened.
        gamma: focusing exponent.
        alpha: weight of the positives.
        reduction: ``"none"`` (``[N, C]``), ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
    """
    return F.sigmoid_focal_loss(
        pred,
        target,
        gamma=gamma,
        alpha=alpha,
        weight=fitted_weight(weight, pred.shape),
        avg_factor=avg_factor,
        reduction=reduction,
    )


py_sigmoid_focal_loss = sigmoid_focal_loss


def py_focal_loss_with_prob(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """:func:`sigmoid_focal_loss` of probabilities in the place of logits; what is wrong and certain still has a gradient."""
    return F.sigmoid_focal_loss(
        pred,
        target,
        gamma=gamma,
        alpha=alpha,
        activated=True,
        weight=fitted_weight(weight, pred.shape),
        avg_factor=avg_factor,
        reduction=reduction,
    )


@MODELS.register_module()
class FocalLoss(PeerLoss, engine.FocalLoss):
    """Focal loss; see :func:`sigmoid_focal_loss`.

    Args:
        use_sigmoid: must be ``True``.
        gamma: focusing exponent.
        alpha: weight of the positives.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
        activated: ``pred`` holds probabilities.

    Raises:
        AssertionError: ``use_sigmoid=False``.

    >>> import torch
    >>> FocalLoss(reduction="none")(torch.zeros(1, 2), torch.tensor([0]))
    tensor([[0.0433, 0.1300]])
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        check_sigmoid("FocalLoss", use_sigmoid)
        super().__init__(True, gamma, alpha, activated=activated, reduction=reduction, loss_weight=loss_weight)

    def compute(  # type: ignore[override]
        self, pred: Tensor, target: Tensor, weight: Tensor | None = None, **arguments: Any
    ) -> Tensor:
        return super().compute(pred, target, weight=fitted_weight(weight, pred.shape), **arguments)


def check_sigmoid(where: str, use_sigmoid: bool) -> None:
    """Raise ``AssertionError``, as mmdet does, for the softmax that a loss does not have."""
    if not use_sigmoid:
        raise AssertionError(f"{where}: only use_sigmoid=True is supported; got {use_sigmoid!r}")
