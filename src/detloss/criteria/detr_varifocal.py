"""Varifocal loss as RT-DETR has it: the class column of a matched query is a positive even where its box misses the object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.checks import check_non_negative, check_same_device, upcast
from detloss.functional.classification import binary_cross_entropy
from detloss.functional.focal import power
from detloss.functional.quality import foreground_score, label_with_score
from detloss.functional.targets import ClassIndex, class_index, of_own_class, put_positive
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.losses.base import Loss
from detloss.reduction import check_reduction, check_weight
from detloss.registry import check_arguments
from detloss.types import Reduction

__all__ = ["MatchedVarifocalLoss", "matched_varifocal"]


class MatchedVarifocalLoss(Loss):
    """q · BCE(x, q) in the column of a query's class, α σ(x)^γ · BCE(x, 0) in all others.

    :class:`detloss.VarifocalLoss` with two differences: the column of the class is a positive by its label, so a match of
    quality 0 costs nothing there, while VarifocalLoss makes it a negative; and the factor σ(x)^γ may be a constant.
    Source: RT-DETR, Zhao et al. 2024, arXiv:2304.08069.

    Args:
        alpha: weight of the negatives.
        gamma: exponent of their modulating factor.
        constant_factor: no gradient through σ(x)^γ.
    """

    target_kind: ClassVar[Literal["index", "index_score"]] = "index_score"

    def __init__(
        self,
        alpha: float = 0.75,
        gamma: float = 2.0,
        constant_factor: bool = True,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_non_negative("MatchedVarifocalLoss", alpha=alpha, gamma=gamma)
        self.alpha, self.gamma, self.constant_factor = alpha, gamma, constant_factor

    def compute(self, pred: Tensor, target: tuple[Tensor, Tensor], weight: Tensor | None = None, **arguments: Any) -> Tensor:
        """Loss of logits ``[N, C]`` against (classes ``[N]`` with C for no object, qualities ``[N]`` in [0, 1])."""
        where = "MatchedVarifocalLoss"
        check_reduction(where, arguments["reduction"], arguments["avg_factor"])
        label, score = label_with_score(where, pred, target)
        found = class_index(where, pred, label, -100, background=True)
        quality = foreground_score(where, score, upcast(pred), found)
        # What is held constant goes into weights, and VarifocalLoss without weights of its own does the rest.
        alpha, gamma = (1.0, 0.0) if self.constant_factor else (self.alpha, self.gamma)
        weights = self._weights(where, upcast(pred.detach()), quality, found, weight)

        def formula(pred: Tensor) -> Tensor:
            negative = alpha * power(pred.sigmoid(), gamma) * binary_cross_entropy(pred, 0.0)
            own = binary_cross_entropy(of_own_class(pred, found), quality)
            return torch.where(found.valid, put_positive(negative, own, found), 0.0)

        call = Call("varifocal", pred, index=label, score=score, weight=weights, numbers=(alpha, gamma, 0.0))
        return fused_loss(formula, call, where=where, **arguments)

    def _weights(self, where: str, pred: Tensor, quality: Tensor, found: ClassIndex, weight: Tensor | None) -> Tensor:
        """Per logit: q in the column of the class, α σ(x)^γ (or 1 where it is differentiated) elsewhere, times ``weight``."""
        factor = self.alpha * power(pred.sigmoid(), self.gamma) if self.constant_factor else torch.ones_like(pred)
        # A weight of 0 would hide that the logit of a match of quality 0 is NaN, or infinitely wrong.
        own = torch.where(quality == 0, 0 * of_own_class(pred, found).clamp(min=0), quality)
        weights = put_positive(factor, own, found)
        if weight is None:
            return torch.where(found.valid, weights, 0.0)
        check_weight(where, weight, pred.shape)
        check_same_device(where, pred, "weight", weight)
        aligned = weight.reshape(*weight.shape, *(1,) * (pred.ndim - weight.ndim))
        return torch.where(found.valid & (aligned != 0), weights, 0.0) * aligned.to(weights.dtype)


def matched_varifocal(config: Any) -> Any:
    """The loss of the name or configuration ``"MatchedVarifocalLoss"``, which no registry has; others as they are."""
    if config == MatchedVarifocalLoss.__name__:
        return MatchedVarifocalLoss()
    if not isinstance(config, Mapping) or config.get("type") != MatchedVarifocalLoss.__name__:
        return config
    arguments = {str(name): value for name, value in config.items() if name != "type"}
    check_arguments(MatchedVarifocalLoss.__name__, MatchedVarifocalLoss, arguments)
    return MatchedVarifocalLoss(**arguments)
