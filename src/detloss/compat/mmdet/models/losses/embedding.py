"""The losses with which trackers learn to tell objects apart: of similarities, of pairs, and of triplets of embeddings."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_float, check_non_negative, check_same_shape, shape_of, upcast
from detloss.compat.mmdet.models.losses.reduction import PeerLoss, check_override, fitted_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.losses.base import Loss
from detloss.reduction import check_reduction, mute, reduce_loss
from detloss.types import Number, Reduction

__all__ = ["L2Loss", "MarginL2Loss", "MultiPosCrossEntropyLoss", "TripletLoss"]


@MODELS.register_module()
class L2Loss(PeerLoss):
    """Squared error of similarities ``[N, M]`` in [0, 1] from targets: 1 for the same object, 0 for another one.

    The mean is over the elements that count: weight > 0 and, with ``neg_pos_ub``, not left out. ``avg_factor`` has no effect
    on it. Neither predictions, targets nor weights are written to (there they are).

    Args:
        neg_pos_ub: at most so many negatives per positive count; all of them if <= 0.
        pos_margin: is taken off the predictions of positives if > 0, of which the result is then clamped to [0, 1].
        neg_margin: the same for negatives.
        hard_mining: the negatives that count are those that cost most; else random ones.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` (which always raises there).
        loss_weight: factor of the result.
    """

    def __init__(
        self,
        neg_pos_ub: int = -1,
        pos_margin: float = -1,
        neg_margin: float = -1,
        hard_mining: bool = False,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        self.neg_pos_ub = neg_pos_ub
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.hard_mining = hard_mining

    def compute(  # type: ignore[override]
        self, pred: Tensor, target: Tensor, weight: Tensor | None, avg_factor: Number | Tensor | None, reduction: Reduction
    ) -> Tensor:
        where = type(self).__name__
        check_reduction(where, reduction, avg_factor)
        check_same_shape(where, pred, target)
        given = fitted_weight(weight, pred.shape)
        pred = mute(where, upcast(pred), given, pred.shape)
        target = target.to(pred.dtype)
        weight = torch.ones_like(target) if given is None else given.to(target.dtype)
        positive, negative = ((weight > 0) & (target == kind) for kind in (1, 0))
        margin = max(self.pos_margin, 0) * positive + max(self.neg_margin, 0) * negative
        loss = (torch.clamp(pred - margin, 0, 1) - target).square()
        weight = weight * ~self._left_out(loss.detach(), positive, negative)
        count = (weight > 0).sum() if reduction == "mean" else None
        return reduce_loss(loss, weight=weight, avg_factor=count, reduction=reduction, where=where)

    def _left_out(self, cost: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The negatives that are too many."""
        number, most = int(negative.sum()), self.neg_pos_ub * int(positive.sum())
        if self.neg_pos_ub <= 0 or number <= most:
            return torch.zeros_like(negative)
        value = cost[negative] if self.hard_mining else torch.rand(number, device=cost.device)
        kept = torch.zeros_like(value, dtype=torch.bool)
        kept[value.topk(most).indices] = True
        return negative.masked_scatter(negative, ~kept)


@MODELS.register_module()
class MarginL2Loss(L2Loss):
    """The same as :class:`L2Loss`, under a second name."""


@MODELS.register_module()
class MultiPosCrossEntropyLoss(PeerLoss):
    """Cross entropy of rows with several positives: ln(1 + Σ exp(negative − positive)) over all pairs of a row.

    Computed from the two sums, without the table of pairs. Rows without positives or without negatives cost 0. Source:
    QDTrack, Pang et al. 2021, arXiv:2006.06664.

    Args:
        reduction: ``"none"`` (``[N]``), ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
    """

    def forward(  # type: ignore[override]
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute the loss.

        Args:
            cls_score: similarities ``[N, M]``.
            label: >= 1 for positives, 0 for negatives, ``[N, M]``; others do not count (there they are pairs with 0).
            weight: one number per row.
            avg_factor: what a mean divides by.
            reduction_override: reduction of this call only.
            **kwargs: ignored.
        """
        where = type(self).__name__
        check_override(where, reduction_override)
        reduction = reduction_override or self.reduction
        check_reduction(where, reduction, avg_factor)
        if cls_score.ndim != 2 or cls_score.shape != label.shape:
            raise AssertionError(
                f"{where}: expected cls_score and label of the same shape [N, M]; got {shape_of(cls_score)} and {shape_of(label)}"
            )
        score = upcast(cls_score) if cls_score.is_floating_point() else cls_score.float()
        lowest = torch.finfo(score.dtype).min / 4
        negative, positive = torch.where(label == 0, score, lowest), torch.where(label >= 1, -score, lowest)
        loss = torch_f.softplus(negative.logsumexp(1) + positive.logsumexp(1)) if score.shape[1] else score.sum(1)
        return self.loss_weight * reduce_loss(loss, weight=weight, avg_factor=avg_factor, reduction=reduction, where=where)


@MODELS.register_module()
class TripletLoss(Loss):
    """Triplet loss with hard mining: the mean of max(0, farthest of the same label − nearest of another one + margin).

    A row whose label all rows have costs 0 (there an error). Source: Hermans et al. 2017, arXiv:1703.07737.

    Args:
        margin: by how much another object must be farther than the same one, >= 0.
        loss_weight: factor of the result.
        hard_mining: must be ``True``; else the call is a ``NotImplementedError``, as there.
    """

    def __init__(self, margin: float = 0.3, loss_weight: float = 1.0, hard_mining: bool = True) -> None:
        super().__init__("mean", loss_weight)
        check_non_negative("TripletLoss", margin=margin)
        self.margin = margin
        self.hard_mining = hard_mining

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the loss.

        Args:
            inputs: embeddings ``[N, D]``.
            targets: labels ``[N]``.
        """
        where = "TripletLoss"
        check_float(where, "inputs", inputs)
        if not self.hard_mining:
            raise NotImplementedError(f"{where}: hard_mining must be True")
        if inputs.ndim != 2 or targets.shape != inputs.shape[:1]:
            raise ValueError(f"{where}: expected inputs [N, D] and targets [N]; got {shape_of(inputs)} and {shape_of(targets)}")
        if not len(inputs):
            return upcast(inputs).sum()
        x = upcast(inputs)
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        same = targets.unsqueeze(1) == targets
        farthest = distance.masked_fill(~same, 0.0).amax(1)
        nearest = torch.where(same, torch.inf, distance).amin(1)
        loss = torch.where(same.all(1), 0.0, (farthest - nearest + self.margin).clamp(min=0))
        return self.loss_weight * loss.mean()
