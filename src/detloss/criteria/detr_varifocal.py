"""Varifocal loss as RT-DETR has it: the class column of a matched query is a positive even where its box misses the object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.checks import check_non_negative, upcast
from detloss.functional.classification import binary_cross_entropy
from detloss.functional.focal import power
from detloss.functional.quality import label_and_score
from detloss.functional.targets import class_index, of_own_class, put_positive
from detloss.losses.base import Loss
from detloss.reduction import check_reduction, mute, reduce_loss
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
        label, score = label_and_score(where, pred, target)
        pred = mute(where, upcast(pred), weight, pred.shape)
        found = class_index(where, pred, label, -100, background=True)
        own, score = of_own_class(pred, found), torch.where(found.foreground, score, 0.0).to(pred.dtype)
        factor = self.alpha * power((pred.detach() if self.constant_factor else pred).sigmoid(), self.gamma)
        loss = put_positive(factor * binary_cross_entropy(pred, 0.0), score * binary_cross_entropy(own, score), found)
        return reduce_loss(torch.where(found.valid, loss, 0.0), weight=weight, where=where, **arguments)


def matched_varifocal(config: Any) -> Any:
    """The loss of the name or configuration ``"MatchedVarifocalLoss"``, which no registry has; others as they are."""
    if config == MatchedVarifocalLoss.__name__:
        return MatchedVarifocalLoss()
    if not isinstance(config, Mapping) or config.get("type") != MatchedVarifocalLoss.__name__:
        return config
    arguments = {str(name): value for name, value in config.items() if name != "type"}
    check_arguments(MatchedVarifocalLoss.__name__, MatchedVarifocalLoss, arguments)
    return MatchedVarifocalLoss(**arguments)
