"""``DiceLoss`` of mmdet."""

from __future__ import annotations

from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.checks import check_non_negative
from detloss.compat.mmdet.models.losses.reduction import check_override
from detloss.compat.mmdet.registry import MODELS
from detloss.types import Number, Reduction

__all__ = ["DiceLoss", "dice_loss"]


def dice_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    eps: float = 1e-3,
    reduction: Reduction = "mean",
    naive_dice: bool = False,
    avg_factor: Number | Tensor | None = None,
) -> Tensor:
    """Dice loss of probabilities, one value per mask: :func:`detloss.functional.dice_loss` with ``activated=True``.

    1 − (2 Σ p t + s)/(Σ p² + Σ t² + s) with s = 2 ε. There s is missing in the numerator: its value is larger by s/(Σ p² + Σ t²
    + s), which is nothing for masks of many pixels and 1 for two empty ones, which are 0 here. With ``naive_dice`` the sums
    are Σ p + Σ t and s = ε, as there.

    Args:
        pred: probabilities ``[N, ...]``.
        target: masks of the same shape in [0, 1].
        weight: one number per mask.
        eps: ε.
        reduction: ``"none"`` (``[N]``), ``"mean"`` or ``"sum"``.
        naive_dice: sums in the place of sums of squares.
        avg_factor: what a mean divides by.
    """
    if weight is not None and weight.shape != pred.shape[:1]:
        raise AssertionError(f"dice_loss: expected one weight per mask, [{len(pred)}]; got {list(weight.shape)}")
    return F.dice_loss(
        pred,
        target,
        squared=not naive_dice,
        smooth=eps if naive_dice else 2 * eps,
        activated=True,
        weight=weight,
        avg_factor=avg_factor,
        reduction=reduction,
    )


@MODELS.register_module()
class DiceLoss(engine.Loss):
    """Dice loss; see :func:`dice_loss`.

    The call is ``loss(pred, target, weight, reduction_override, avg_factor)``: in this order, unlike all other losses.

    Args:
        use_sigmoid: must be ``True`` where ``activate`` is.
        activate: ``pred`` holds logits; else probabilities.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        naive_dice: sums in the place of sums of squares in the denominator.
        loss_weight: factor of the result.
        eps: ε.

    Raises:
        NotImplementedError: logits with ``use_sigmoid=False``, in the call.

    >>> import torch
    >>> DiceLoss(naive_dice=True, eps=0.0)(torch.full((1, 4), 100.0), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))  # 1 − 4/6
    tensor(0.3333)
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        activate: bool = True,
        reduction: Reduction = "mean",
        naive_dice: bool = False,
        loss_weight: float = 1.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_non_negative("DiceLoss", eps=eps)
        self.use_sigmoid, self.activate, self.naive_dice, self.eps = use_sigmoid, activate, naive_dice, eps

    def forward(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction_override: Reduction | None = None,
        avg_factor: Number | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of ``[N, ...]`` masks; see :func:`dice_loss`."""
        check_override("DiceLoss", reduction_override)
        if self.activate and not self.use_sigmoid:
            raise NotImplementedError("DiceLoss: activate=True needs use_sigmoid=True; there is no softmax of masks")
        probabilities = pred.sigmoid() if self.activate else pred
        reduction = self.reduction if reduction_override is None else reduction_override
        return self.loss_weight * dice_loss(probabilities, target, weight, self.eps, reduction, self.naive_dice, avg_factor)
