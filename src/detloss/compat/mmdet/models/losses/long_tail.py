"""``SeesawLoss`` and ``EQLV2Loss``: the losses of LVIS, which also tell objects from background."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.compat.mmdet.models.losses.accuracy import accuracy
from detloss.compat.mmdet.models.losses.reduction import PeerLoss, check_override
from detloss.compat.mmdet.registry import MODELS
from detloss.types import Number, Reduction

__all__ = ["EQLV2Loss", "SeesawLoss"]


@MODELS.register_module()
class SeesawLoss(engine.SeesawLoss):
    """Seesaw loss of the objects and cross entropy of objectness; see :func:`detloss.functional.seesaw_loss`.

    The logits have C + 2 columns: the classes, then object and background. Samples are counted in training mode only, over
    all ranks (there per rank, in evaluation too).

    Args:
        use_sigmoid: must be ``False``.
        p: exponent of the mitigation by counts.
        q: exponent of the compensation of wrong predictions.
        num_classes: C.
        eps: lower bound of the own probability.
        reduction: ``"none"`` (of the objects only: ``[objects]``), ``"mean"`` or ``"sum"``.
        loss_weight: factor of both parts.
        return_dict: return ``loss_cls_objectness`` and ``loss_cls_classes``, not one tensor.
    """

    custom_cls_channels = custom_activation = custom_accuracy = True

    def __init__(
        self,
        use_sigmoid: bool = False,
        p: float = 0.8,
        q: float = 2.0,
        num_classes: int = 1203,
        eps: float = 1e-2,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
        return_dict: bool = True,
    ) -> None:
        if use_sigmoid:
            raise AssertionError(f"SeesawLoss: only use_sigmoid=False is supported; got {use_sigmoid!r}")
        super().__init__(num_classes, p, q, eps, reduction=reduction, loss_weight=loss_weight)
        self.use_sigmoid, self.return_dict = use_sigmoid, return_dict

    def get_cls_channels(self, num_classes: int) -> int:
        """C + 2 columns."""
        return num_classes + 2

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Scores ``[N, C + 1]`` of the classes and of the background from logits ``[N, C + 2]``."""
        classes, objectness = self._split(cls_score)
        found, background = objectness.softmax(-1).split(1, dim=-1)
        return torch.cat((classes.softmax(-1) * found, background), dim=-1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Any]:
        """Percent of right objectness and, among the objects, of right classes."""
        classes, objectness = self._split(cls_score)
        own = labels < self.num_classes
        return {
            "acc_objectness": accuracy(objectness, (~own).long()),
            "acc_classes": accuracy(classes[own], labels[own]),
        }

    def forward(  # type: ignore[override]
        self,
        cls_score: Tensor,
        labels: Tensor,
        label_weights: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Compute the loss.

        Args:
            cls_score: logits ``[N, C + 2]``.
            labels: classes ``[N]``, C for background.
            label_weights: one number per row.
            avg_factor: what a mean of either part divides by; ``None``: its own number of rows.
            reduction_override: reduction of this call only.
        """
        check_override("SeesawLoss", reduction_override)
        reduction = self.reduction if reduction_override is None else reduction_override
        logits, objectness = self._split(cls_score)
        background = labels == self.num_classes
        divisor = (~background).sum() if avg_factor is None and reduction == "mean" else avg_factor
        classes = self.compute(
            logits, torch.where(background, self.ignore_index, labels), label_weights,
            avg_factor=divisor, reduction=reduction,
        )  # fmt: skip
        if reduction == "none":
            classes = classes[~background]
        objects = F.cross_entropy_loss(
            objectness, background.long(), weight=label_weights, avg_factor=avg_factor, reduction=reduction
        )
        objects, classes = self.loss_weight * objects, self.loss_weight * classes
        if self.return_dict:
            return {"loss_cls_objectness": objects, "loss_cls_classes": classes}
        return objects + classes

    def _split(self, cls_score: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes ``[N, C]`` and of (object, background) ``[N, 2]``."""
        if cls_score.shape[-1] != self.num_classes + 2:
            raise AssertionError(f"SeesawLoss: expected {self.num_classes + 2} columns, C + 2; got {cls_score.shape[-1]}")
        return cls_score[..., :-2], cls_score[..., -2:]


@MODELS.register_module()
class EQLV2Loss(PeerLoss, engine.EQLv2Loss):
    """Equalization loss v2 with a column for the background; see :func:`detloss.functional.equalization_v2_loss`.

    The logits have C + 1 columns; the last one, the background, has weights of 1. A mean divides by the number of rows, as
    there. ``weight``, ``avg_factor`` and ``reduction_override`` count (there they are ignored). Gradients are summed in
    training mode only, over all ranks.

    Args:
        use_sigmoid: kept; there is no other mode.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_weight: kept; not used, as there.
        loss_weight: factor of the result.
        num_classes: C.
        use_distributed: kept; sums are over all ranks whenever there are several.
        mu: ratio at which negatives weigh one half.
        alpha: how much positives are strengthened.
        gamma: slope of the weights.
        vis_grad: kept; not used, as there.
        test_with_obj: multiply scores by 1 − background in :meth:`get_activation`.
    """

    custom_cls_channels = custom_activation = custom_accuracy = True

    def __init__(
        self,
        use_sigmoid: bool = True,
        reduction: Reduction = "mean",
        class_weight: Tensor | None = None,
        loss_weight: float = 1.0,
        num_classes: int = 1203,
        use_distributed: bool = False,
        mu: float = 0.8,
        alpha: float = 4.0,
        gamma: float = 12,
        vis_grad: bool = False,
        test_with_obj: bool = True,
    ) -> None:
        super().__init__(num_classes, gamma, mu, alpha, reduction=reduction, loss_weight=loss_weight)
        self.use_sigmoid, self.class_weight, self.use_distributed = use_sigmoid, class_weight, use_distributed
        self.vis_grad, self.test_with_obj = vis_grad, test_with_obj

    def get_cls_channels(self, num_classes: int) -> int:
        """C + 1 columns."""
        return num_classes + 1

    def get_activation(self, pred: Tensor) -> Tensor:
        """Scores ``[N, C + 1]``: sigmoids, those of the classes times 1 − background if ``test_with_obj``."""
        scores = pred.sigmoid()
        if not self.test_with_obj:
            return scores
        return torch.cat((scores[..., :-1] * (1 - scores[..., -1:]), scores[..., -1:]), dim=-1)

    def compute(  # type: ignore[override]
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        if pred.ndim != 2 or pred.shape[1] != self.num_classes + 1:
            raise ValueError(f"EQLV2Loss: expected logits [N, {self.num_classes + 1}], C + 1; got {list(pred.shape)}")
        if reduction == "mean" and avg_factor is None:
            avg_factor = max(len(pred), 1)
        shared: dict[str, Any] = {"weight": weight, "avg_factor": avg_factor, "reduction": reduction}
        classes = super().compute(pred[:, :-1], target, **shared)
        background = F.binary_cross_entropy_loss(pred[:, -1:], (target == self.num_classes).to(pred.dtype)[:, None], **shared)
        return torch.cat((classes, background), dim=1) if reduction == "none" else classes + background
