"""What every loss on top of :func:`detloss.geometry.overlap` shares; the arguments are those of :mod:`detloss.functional.iou`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from detloss.checks import check_boxes, check_option, check_positive
from detloss.geometry.boxes import BOX_FORMATS
from detloss.geometry.iou import Overlap, overlap
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.types import BoxFormat, Number, Reduction

__all__ = ["overlap_loss"]


def overlap_loss(
    where: str,
    cost: Callable[[Overlap], Tensor],
    pred: Tensor,
    target: Tensor,
    *,
    eps: float,
    box_format: BoxFormat,
    weight: Tensor | None,
    avg_factor: Number | Tensor | None,
    reduction: Reduction,
    kernel: tuple[str, float] | tuple[str] | None = None,
) -> Tensor:
    """Check, compare, add the price of an inverted prediction, reduce: what all members of the family share.

    ``kernel`` names the operation of :mod:`detloss.kernels.contract` that computes the same cost, and its further number.
    """
    check_boxes(where, pred, target)
    check_option(where, "box_format", box_format, BOX_FORMATS)
    check_positive(where, eps=eps)

    def formula(pred: Tensor) -> Tensor:
        pair = overlap(pred, target, box_format, eps)
        return cost(pair) + pair.inverted

    op, *extra = kernel or ("giou",)
    call = Call(op, pred, target=target, weight=weight, numbers=(eps, float(BOX_FORMATS.index(box_format)), *extra))
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction, fusible=kernel is not None)
