"""Module of the fused classifier and focal loss; the formula is that of :func:`detloss.functional.sigmoid_focal_loss`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from detloss import functional as F
from detloss.checks import check_at_least, check_non_negative
from detloss.losses.base import Loss
from detloss.types import ClassWeights, Number, Reduction

__all__ = ["FusedLinearFocalLoss"]


class FusedLinearFocalLoss(Loss):
    """Focal loss of a linear classifier or 1×1 convolution without its logits, for thousands of classes.

    ``loss(features, weight, bias, target)`` equals ``FocalLoss()(classifier(features), target)``, gradients included. The
    classifier keeps its weight and bias; leave out its call and give them here::

        loss = FusedLinearFocalLoss()(features, head.classifier.weight, head.classifier.bias, labels, avg_factor=num_pos)

    Since its call differs from that of all other losses, it is not in the registry. See
    :func:`detloss.functional.fused_linear_sigmoid_loss`.

    Args:
        gamma: focusing exponent, >= 0.
        alpha: weight of positives in [0, 1], one per class or one for all; ``None`` for no weights.
        class_weight: further factor per class.
        ignore_index: label that counts neither way. A call may give another.
        memory_budget: bytes for one tile of logits and its temporaries; ``None`` chooses by device.
        reduction: ``"mean"`` or ``"sum"``.
    """

    alpha: float | Tensor | None
    class_weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | Tensor | None = 0.25,
        class_weight: ClassWeights | None = None,
        ignore_index: int = -100,
        memory_budget: int | None = None,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        where = "FusedLinearFocalLoss"
        if reduction == "none":
            raise ValueError(f"{where}: reduction must be 'mean' or 'sum'; 'none' would be as large as the logits")
        check_non_negative(where, gamma=gamma)
        if isinstance(alpha, (int, float)) and not 0 <= alpha <= 1:
            raise ValueError(f"{where}: alpha must lie in [0, 1]; got {alpha}")
        if memory_budget is not None:
            check_at_least(where, 1, memory_budget=memory_budget)
        self.gamma, self.ignore_index, self.memory_budget = gamma, ignore_index, memory_budget
        self.keep_per_class("alpha", alpha)
        self.keep_per_class("class_weight", class_weight)

    def forward(  # type: ignore[override]
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        sample_weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
        *,
        ignore_index: int | None = None,
    ) -> Tensor:
        """Compute the loss of the classifier ``weight``, ``bias`` on ``features``.

        Args:
            features: ``[N, D]`` or ``[B, D, H, W]``.
            weight: ``[C, D]`` or ``[C, D, 1, 1]``.
            bias: ``[C]`` or ``None``.
            target: class indices ``[N]`` or ``[B, H, W]``, background C.
            sample_weight: weights of the shape of ``target``.
            avg_factor: what ``mean`` divides by instead of the number of logits.
            reduction_override: reduction of this call only.
            ignore_index: label to ignore in this call.
        """
        loss = F.fused_linear_sigmoid_loss(
            features,
            weight,
            bias,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index if ignore_index is None else ignore_index,
            memory_budget=self.memory_budget,
            sample_weight=sample_weight,
            avg_factor=avg_factor,
            reduction=self.reduction if reduction_override is None else reduction_override,
        )
        return loss if self.loss_weight == 1 else loss * self.loss_weight
