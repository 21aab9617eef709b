"""``detectron2.layers``: DIoU and CIoU, the two losses that it does not have from fvcore.

What differs: a prediction turned inside out or NaN does not end the run with an assertion; zero-area boxes have a finite loss and
gradient (there the aspect ratio of CIoU is 0/0); ``eps`` is relative to the enclosing box; fp16 is computed in fp32.
"""

from __future__ import annotations

from torch import Tensor

from detloss.compat.torchvision.ops import box_loss
from detloss.functional import iou

__all__ = ["ciou_loss", "diou_loss"]


def diou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
) -> Tensor:
    """1 − DIoU of paired boxes: :func:`detloss.functional.diou_loss`.

    Args:
        boxes1: ``[N, 4]`` or ``[4]`` corners (x1, y1, x2, y2), the predictions.
        boxes2: likewise, the same shape.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``; the mean of no boxes is 0.
        eps: lower bound of the union relative to the enclosing area.
    """
    return box_loss("diou_loss", iou.diou_loss, boxes1, boxes2, reduction, eps)


def ciou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
) -> Tensor:
    """1 − CIoU of paired boxes: :func:`detloss.functional.ciou_loss`. Arguments as in :func:`diou_loss`."""
    return box_loss("ciou_loss", iou.ciou_loss, boxes1, boxes2, reduction, eps)
