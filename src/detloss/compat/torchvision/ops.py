"""``torchvision.ops``: its focal loss and its losses of boxes.

What differs: fp16 and bf16 are computed and returned in fp32; shapes must be equal, nothing is broadcast; a mean of nothing
is 0 (its focal loss gives NaN). ``torch.jit.script`` takes the functions as calls of Python, which run where Python is and cannot
be exported; ``torch.compile`` makes one graph of them.

Losses of boxes: ``eps`` is relative to the enclosing box, so an exact match costs 0 for boxes of every size (there 0.29 for a box
of 0.0005, because 1e-7 is added to its area); a box turned inside out counts as empty and pays for it (there its GIoU loss is
0); boxes without area have a finite loss and gradient (there CIoU gives NaN).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from detloss.compat.arguments import binary_focal_loss, float_boxes, known_reduction, optional_alpha, relative_eps
from detloss.functional.iou import ciou_loss, diou_loss, giou_loss

__all__ = ["complete_box_iou_loss", "distance_box_iou_loss", "generalized_box_iou_loss", "sigmoid_focal_loss"]

Function = TypeVar("Function", bound=Callable[..., Any])
OF_BOXES = {
    "generalized_box_iou_loss": giou_loss,
    "distance_box_iou_loss": diou_loss,
    "complete_box_iou_loss": ciou_loss,
}


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    """Focal loss of independent logits: :func:`detloss.functional.sigmoid_focal_loss` for dense targets.

    Easy examples keep their digits (there 1 − σ(12) has six bits), and γ < 1 has a finite gradient at saturated logits.

    Args:
        inputs: logits of any shape.
        targets: targets in [0, 1] of the same shape; integers and bool are fine too.
        alpha: weight of the positives in [0, 1], or −1 for no weights.
        gamma: focusing exponent, >= 0.
        reduction: ``"none"``, ``"mean"`` over all elements, or ``"sum"``.

    >>> import torch
    >>> sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # 0.25 · ln 2 / 4 and 0.75 · ln 2 / 4
    tensor([[0.0433, 0.1300]])
    """
    return _focal(inputs, targets, alpha, gamma, reduction)


def generalized_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
) -> Tensor:
    """1 − GIoU of paired boxes: :func:`detloss.functional.giou_loss`.

    Args:
        boxes1: ``[N, 4]`` or ``[4]`` corners (x1, y1, x2, y2), the predictions.
        boxes2: likewise, the same shape.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``; the mean of no boxes is 0.
        eps: lower bound of the union relative to the enclosing area.

    >>> import torch
    >>> generalized_box_iou_loss(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 2.0, 2.0]))
    tensor(1.5000)
    """
    return _boxes("generalized_box_iou_loss", boxes1, boxes2, reduction, eps)


def distance_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
) -> Tensor:
    """1 − DIoU of paired boxes: :func:`detloss.functional.diou_loss`. Arguments as in :func:`generalized_box_iou_loss`."""
    return _boxes("distance_box_iou_loss", boxes1, boxes2, reduction, eps)


def complete_box_iou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
) -> Tensor:
    """1 − CIoU of paired boxes: :func:`detloss.functional.ciou_loss`. Arguments as in :func:`generalized_box_iou_loss`.

    ``eps`` reaches every part of it (there only α).
    """
    return _boxes("complete_box_iou_loss", boxes1, boxes2, reduction, eps)


def _left_to_python(function: Function) -> Function:
    """What torch.jit.script calls and does not compile; it wants types, not their names."""
    function.__annotations__ = get_type_hints(function)
    ignored: Function = torch.jit.ignore(function)
    return ignored


@_left_to_python
def _focal(inputs: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
    where = "sigmoid_focal_loss"
    if not 0 <= alpha <= 1 and alpha != -1:
        raise ValueError(f"{where}: Invalid alpha {alpha}; expected a number in [0, 1], or -1 for no weights")
    return binary_focal_loss(where, inputs, targets, optional_alpha(alpha), gamma, known_reduction(where, reduction))


@_left_to_python
def _boxes(where: str, boxes1: Tensor, boxes2: Tensor, reduction: str, eps: float) -> Tensor:
    return box_loss(where, OF_BOXES[where], boxes1, boxes2, reduction, eps)


def box_loss(where: str, loss: Callable[..., Tensor], boxes1: Tensor, boxes2: Tensor, reduction: str, eps: float) -> Tensor:
    """A loss of this engine, called as torchvision, fvcore and detectron2 call theirs."""
    boxes1, boxes2 = float_boxes(where, "boxes1", boxes1), float_boxes(where, "boxes2", boxes2)
    return loss(boxes1, boxes2, eps=relative_eps(eps), reduction=known_reduction(where, reduction))
