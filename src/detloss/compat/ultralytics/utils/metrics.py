"""``ultralytics.utils.metrics``: its overlaps of boxes, upright and rotated.

What differs: ``eps`` is relative to the enclosing box (there 1e-7 is added to areas and heights, so that an exact match of a box
of 0.001 has a CIoU of 0.91); fp16 and bf16 are computed and returned in fp32 (areas above 256 px overflow fp16 there).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detloss.compat.arguments import relative_eps
from detloss.functional.gaussian_boxes import probiou_loss
from detloss.functional.iou_costs import ciou_cost, diou_cost, giou_cost
from detloss.geometry.iou import overlap

__all__ = ["bbox_iou", "probiou"]

VARIANCE = 12.0  # the variance of a uniform distribution of width w is w²/12


def bbox_iou(
    box1: Tensor,
    box2: Tensor,
    xywh: bool = True,
    GIoU: bool = False,
    DIoU: bool = False,
    CIoU: bool = False,
    eps: float = 1e-7,
) -> Tensor:
    """IoU, GIoU, DIoU or CIoU of boxes that broadcast against each other; see :func:`detloss.geometry.overlap`.

    A first box that is turned inside out has an IoU of 0, and pays for its depth with GIoU, DIoU and CIoU (there such a box
    can have a GIoU of 1).

    Args:
        box1: ``[..., 4]``.
        box2: likewise.
        xywh: boxes are (cx, cy, w, h), not corners.
        GIoU: generalised IoU.
        DIoU: distance IoU; goes before GIoU.
        CIoU: complete IoU; goes before the two.
        eps: lower bound of the union relative to the enclosing area.

    Returns:
        ``[..., 1]``.

    >>> bbox_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]]), xywh=False)
    tensor([[0.3333]])
    """
    eps = relative_eps(eps)
    pair = overlap(box1, box2, "cxcywh" if xywh else "xyxy", eps)
    if not (CIoU or DIoU or GIoU):
        return pair.iou.unsqueeze(-1)
    cost = ciou_cost(pair, eps) if CIoU else diou_cost(pair) if DIoU else giou_cost(pair)
    return (1 - cost - pair.inverted).unsqueeze(-1)


def probiou(obb1: Tensor, obb2: Tensor, CIoU: bool = False, eps: float = 1e-7, floor: float = 0.0) -> Tensor:
    """Probabilistic IoU of paired rotated boxes: 1 − :func:`detloss.functional.probiou_loss`.

    An exact match is 1 (there 0.9995), and boxes in units of the image are told apart (there 0.9995 for any two of 0.02).

    Args:
        obb1: ``[N, 5]`` (cx, cy, w, h, angle in radians).
        obb2: likewise; the prediction.
        CIoU: subtract the term of CIoU for the ratio of width to height.
        eps: without effect.
        floor: added to the variances w²/12 and h²/12.

    Returns:
        ``[N, 1]``.

    >>> probiou(torch.tensor([[50.0, 50.0, 40.0, 20.0, 0.3]]), torch.tensor([[50.0, 50.0, 40.0, 20.0, 0.3]]))
    tensor([[1.]])
    """
    iou = 1 - probiou_loss(_with_floor(obb2, floor), _with_floor(obb1, floor), reduction="none").unsqueeze(-1)
    if not CIoU:
        return iou
    (w1, h1), (w2, h2) = (box[..., 2:4].to(iou.dtype).split(1, dim=-1) for box in (obb1, obb2))
    v = 4 / math.pi**2 * (torch.atan2(w2, h2) - torch.atan2(w1, h1)).square()
    with torch.no_grad():
        alpha = torch.where(v > 0, v / (1 - iou + v).clamp(min=torch.finfo(v.dtype).tiny), 0.0)
    return iou - alpha * v


def _with_floor(boxes: Tensor, floor: float) -> Tensor:
    """Boxes whose variances are larger by ``floor``."""
    if not floor:
        return boxes
    sides = (boxes[..., 2:4].square() + VARIANCE * floor).sqrt()
    return torch.cat((boxes[..., :2], sides, boxes[..., 4:]), dim=-1)
