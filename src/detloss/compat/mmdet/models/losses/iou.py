"""The IoU losses of mmdet, on boxes ``[N, 4]`` of corners (x1, y1, x2, y2).

``weight`` is one number per box, or one per coordinate, of which the mean counts. An ``eps`` is relative to the boxes: an exact
match costs 0 whatever their size (there a box of 5e-4 has an IoU of 0.25 with itself), and one of two boxes turned inside out is
no match (there it is a perfect one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.compat.mmdet.models.losses.reduction import PeerLoss, row_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.functional.iou import IoUMode
from detloss.types import Number, Reduction

__all__ = [
    "BoundedIoULoss",
    "CIoULoss",
    "DIoULoss",
    "GIoULoss",
    "IoULoss",
    "SIoULoss",
    "bounded_iou_loss",
    "ciou_loss",
    "diou_loss",
    "giou_loss",
    "iou_loss",
    "siou_loss",
]

# From this IoU on mmdet's CIoU has its aspect term, as in Zheng et al. 2021, arXiv:2005.03572.
CIOU_THRESHOLD = 0.5


def iou_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    linear: bool = False,
    mode: IoUMode = "log",
    eps: float = 1e-6,
) -> Tensor:
    """IoU loss, one value per box: :func:`detloss.functional.iou_loss`; ``linear=True`` is ``mode="linear"``."""
    return F.iou_loss(
        pred,
        target,
        mode="linear" if linear else mode,
        eps=eps,
        weight=row_weight(weight),
        avg_factor=avg_factor,
        reduction=reduction,
    )


def _per_box(function: Callable[..., Tensor], name: str, text: str, **fixed: Any) -> Callable[..., Tensor]:
    """A function of mmdet's signature that calls ``function``; mmdet's functions have an eps of 1e-7."""

    def loss(
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
        avg_factor: Number | Tensor | None = None,
        eps: float = 1e-7,
    ) -> Tensor:
        return function(pred, target, eps=eps, weight=row_weight(weight), avg_factor=avg_factor, reduction=reduction, **fixed)

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = text
    return loss


giou_loss = _per_box(F.giou_loss, "giou_loss", "1 − GIoU of each box: :func:`detloss.functional.giou_loss`.")
diou_loss = _per_box(F.diou_loss, "diou_loss", "1 − DIoU of each box: :func:`detloss.functional.diou_loss`.")
ciou_loss = _per_box(
    F.ciou_loss,
    "ciou_loss",
    "1 − CIoU of each box, with the aspect term from an IoU of 0.5 on: :func:`detloss.functional.ciou_loss`. 0 for an exact "
    "match (there NaN for boxes of 10 px and more).",
    alpha_threshold=CIOU_THRESHOLD,
)


def siou_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    eps: float = 1e-7,
    neg_gamma: bool = False,
) -> Tensor:
    """SIoU loss of each box: :func:`detloss.functional.siou_loss`.

    It has the sign of the paper whatever ``neg_gamma`` says, which is mmdet's number for ``neg_gamma=True``; with ``False``
    mmdet turns the distance cost round, so that a box far away is perfect.
    """
    return F.siou_loss(pred, target, eps=eps, weight=row_weight(weight), avg_factor=avg_factor, reduction=reduction)


def bounded_iou_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    beta: float = 0.2,
    eps: float = 1e-3,
) -> Tensor:
    """Bounded IoU loss: :func:`detloss.functional.bounded_iou_loss`.

    A mean divides by 4 N, ``avg_factor`` and a sum are as they are; ``none`` gives one value per box, which is the sum of the
    four that mmdet gives.
    """
    if reduction == "mean" and avg_factor is None:
        avg_factor = max(4 * len(pred), 1)
    return F.bounded_iou_loss(
        pred, target, beta=beta, eps=eps, weight=row_weight(weight), avg_factor=avg_factor, reduction=reduction
    )


class _Boxes(PeerLoss):
    def compute(self, pred: Tensor, target: Tensor, weight: Tensor | None = None, **arguments: Any) -> Tensor:
        return super().compute(pred, target, weight=row_weight(weight), **arguments)


@MODELS.register_module()
class IoULoss(_Boxes, engine.IoULoss):
    """IoU loss; see :func:`iou_loss`.

    Args:
        linear: the same as ``mode="linear"``.
        eps: lower bound of the IoU within the logarithm.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
        mode: ``"linear"`` (1 − IoU), ``"square"`` (1 − IoU²) or ``"log"`` (−ln IoU).
    """

    def __init__(
        self,
        linear: bool = False,
        eps: float = 1e-6,
        reduction: Reduction = "mean",
        loss_weight: float = 1.0,
        mode: IoUMode = "log",
    ) -> None:
        super().__init__("linear" if linear else mode, eps, reduction=reduction, loss_weight=loss_weight)
        self.linear = linear


class _WithEps(_Boxes):
    def __init__(self, eps: float = 1e-6, reduction: Reduction = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(eps=eps, reduction=reduction, loss_weight=loss_weight)  # type: ignore[call-arg]


@MODELS.register_module()
class GIoULoss(_WithEps, engine.GIoULoss):
    """Generalized IoU loss; see :func:`giou_loss`."""


@MODELS.register_module()
class DIoULoss(_WithEps, engine.DIoULoss):
    """Distance-IoU loss; see :func:`diou_loss`."""


@MODELS.register_module()
class CIoULoss(_Boxes, engine.CIoULoss):
    """Complete-IoU loss; see :func:`ciou_loss`."""

    def __init__(self, eps: float = 1e-6, reduction: Reduction = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(eps, CIOU_THRESHOLD, reduction=reduction, loss_weight=loss_weight)


@MODELS.register_module()
class SIoULoss(_Boxes, engine.SIoULoss):
    """SCYLLA-IoU loss; see :func:`siou_loss`, also for ``neg_gamma``, which changes nothing."""

    def __init__(
        self, eps: float = 1e-6, reduction: Reduction = "mean", loss_weight: float = 1.0, neg_gamma: bool = False
    ) -> None:
        super().__init__(eps, reduction=reduction, loss_weight=loss_weight)
        self.neg_gamma = neg_gamma


@MODELS.register_module()
class BoundedIoULoss(PeerLoss, engine.BoundedIoULoss):
    """Bounded IoU loss; see :func:`bounded_iou_loss`."""

    def __init__(self, beta: float = 0.2, eps: float = 1e-3, reduction: Reduction = "mean", loss_weight: float = 1.0) -> None:
        super().__init__(beta, eps, reduction=reduction, loss_weight=loss_weight)

    def compute(self, pred: Tensor, target: Tensor, **arguments: Any) -> Tensor:
        return bounded_iou_loss(pred, target, beta=self.beta, eps=self.eps, **arguments)
