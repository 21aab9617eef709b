"""``KnowledgeDistillationKLDivLoss`` of mmdet."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.compat.mmdet.models.losses.reduction import PeerLoss
from detloss.compat.mmdet.registry import MODELS
from detloss.types import Number, Reduction

__all__ = ["KnowledgeDistillationKLDivLoss", "knowledge_distillation_kl_div_loss"]


def knowledge_distillation_kl_div_loss(
    pred: Tensor,
    soft_label: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    T: float = 10,
    detach_target: bool = True,
) -> Tensor:
    """T² times the *mean* over C classes of q ln(q/p), one value per row: :func:`detloss.functional.kl_distillation_loss` / C.

    Args:
        pred: logits ``[N, C]`` of the student.
        soft_label: logits ``[N, C]`` of the teacher.
        weight: one number per row.
        reduction: ``"none"`` (``[N]``), ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
        T: temperature, at least 1.
        detach_target: must be ``True``: no gradient flows to the teacher.

    Raises:
        ValueError: ``detach_target=False``.
    """
    if not detach_target:
        raise ValueError("knowledge_distillation_kl_div_loss: no gradient flows to the teacher; got detach_target=False")
    loss = F.kl_distillation_loss(pred, soft_label, temperature=T, weight=weight, avg_factor=avg_factor, reduction=reduction)
    return loss / max(pred.shape[1], 1)


@MODELS.register_module()
class KnowledgeDistillationKLDivLoss(PeerLoss, engine.KnowledgeDistillationKLDivLoss):
    """Distillation of class logits; see :func:`knowledge_distillation_kl_div_loss`.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
        T: temperature, at least 1.
    """

    def __init__(self, reduction: Reduction = "mean", loss_weight: float = 1.0, T: float = 10) -> None:
        if T < 1:
            raise AssertionError(f"KnowledgeDistillationKLDivLoss: T must be at least 1; got {T!r}")
        super().__init__(T, reduction, loss_weight)

    def compute(self, pred: Tensor, target: Tensor, **arguments: Any) -> Tensor:
        return knowledge_distillation_kl_div_loss(pred, target, T=self.T, **arguments)
