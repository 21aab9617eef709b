"""``EIoULoss`` of mmdet: Extended-IoU, another loss than :class:`detloss.EIoULoss`, which is Efficient-IoU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detloss import losses as engine
from detloss.checks import check_boxes, check_positive, upcast_pair
from detloss.compat.mmdet.models.losses.reduction import PeerLoss, row_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.reduction import mute
from detloss.reduction import reduce_loss as reduce_engine
from detloss.types import Number, Reduction

__all__ = ["EIoULoss", "eiou_loss"]


def eiou_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    smooth_point: float = 0.1,
    eps: float = 1e-7,
) -> Tensor:
    """SmoothL1(1 − EIoU, s), EIoU = I/U with an intersection I that goes on below 0 where the boxes are apart, U = A + A* − I.

    With x1 the smaller left side, x2 the larger one, x3 the smaller right side, x4 = min(x2, x3), x5 = max(x2, x3) and likewise
    for y: I = (x3 − x1)(y3 − y1) + (x4 − x1)(y4 − y1) − (x2 − x1)(y5 − y1) − (x5 − x1)(y2 − y1). The result is x − s/2 above s
    and x²/2s below. Source: Peng & Yu 2021, "A systematic IoU-related method".

    Args:
        pred: ``[N, 4]`` corners.
        target: likewise.
        weight: one number per box, or one per coordinate, of which the mean counts.
        reduction: ``"none"`` (``[N]``), ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
        smooth_point: s > 0.
        eps: lower bound of U in units of A + A*; exact matches cost 0 whatever it is.

    >>> eiou_loss(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[0.0, 0.0, 20.0, 10.0]]))  # 1/2 − 0.05
    tensor(0.4500)
    """
    where = "eiou_loss"
    check_positive(where, smooth_point=smooth_point, eps=eps)
    check_boxes(where, pred, target)
    rows = row_weight(weight)
    pred, target = upcast_pair(mute(where, pred, rows, pred.shape[:-1], reduced_dim=-1), target)
    low, first = torch.minimum(pred[..., :2], target[..., :2]), torch.maximum(pred[..., :2], target[..., :2])
    last = torch.minimum(pred[..., 2:], target[..., 2:])
    near, far = torch.minimum(first, last), torch.maximum(first, last)

    def rectangle(corner: Tensor, other: Tensor) -> Tensor:
        return (corner[..., 0] - low[..., 0]) * (other[..., 1] - low[..., 1])

    common = rectangle(last, last) + rectangle(near, near) - rectangle(first, far) - rectangle(far, first)
    areas = (pred[..., 2:] - pred[..., :2]).prod(-1) + (target[..., 2:] - target[..., :2]).prod(-1)
    union = areas - common
    least = (eps * areas.detach().abs()).clamp(min=torch.finfo(areas.dtype).tiny)
    cost = (union - common) / torch.maximum(union, least)
    loss = torch.where(cost < smooth_point, cost.square() / (2 * smooth_point), cost - smooth_point / 2)
    return reduce_engine(loss, weight=rows, avg_factor=avg_factor, reduction=reduction, where=where)


@MODELS.register_module()
class EIoULoss(PeerLoss, engine.Loss):
    """Extended-IoU loss; see :func:`eiou_loss`.

    Args:
        eps: lower bound of the union in units of both areas.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        loss_weight: factor of the result.
        smooth_point: where the parabola ends.
    """

    def __init__(
        self, eps: float = 1e-6, reduction: Reduction = "mean", loss_weight: float = 1.0, smooth_point: float = 0.1
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_positive("EIoULoss", eps=eps, smooth_point=smooth_point)
        self.eps, self.smooth_point = eps, smooth_point

    def compute(self, pred: Tensor, target: Tensor, **arguments: Any) -> Tensor:
        return eiou_loss(pred, target, smooth_point=self.smooth_point, eps=self.eps, **arguments)
