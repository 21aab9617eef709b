"""Box deltas: how anchor-based detectors predict a box relative to an anchor or a proposal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detloss.checks import check_tensor, shape_of, upcast
from detloss.geometry.boxes import convert_boxes

__all__ = ["MAX_LOG_RATIO", "box_to_delta", "delta_to_box"]

MAX_LOG_RATIO = math.log(1000 / 16)
SMALLEST = 1e-6


def _boxes(where: str, name: str, x: Tensor) -> Tensor:
    check_tensor(where, name, x)
    if x.ndim < 1 or x.shape[-1] != 4:
        raise ValueError(f"{where}: {name} must have shape [..., 4]; got {shape_of(x)}")
    return upcast(x)


def _weights(where: str, weights: Sequence[float], like: Tensor) -> Tensor:
    if len(weights) != 4:
        raise ValueError(f"{where}: expected four weights (wx, wy, ww, wh); got {tuple(weights)}")
    return like.new_tensor([float(w) for w in weights])


def _times(pair: Tensor, factors: Sequence[float]) -> Tensor:
    """``pair [..., 2]`` times two numbers, which stay on the host: a tensor of them would be a copy to the device every time."""
    first, second = factors
    if first == second:
        return pair if first == 1 else pair * first
    return torch.stack((pair[..., 0] * first, pair[..., 1] * second), dim=-1)


def box_to_delta(anchors: Tensor, boxes: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas ``[..., 4]``: (wx (x − xa)/wa, wy (y − ya)/ha, ww ln(w/wa), wh ln(h/ha)), with centres and sizes.

    Sides below 1e-6 pixels count as 1e-6, so that every delta is finite; fp16 and bf16 become fp32. Source: R-CNN, Girshick
    et al. 2014, appendix C.

    Args:
        anchors: ``[..., 4]`` corners.
        boxes: ``[..., 4]`` corners.
        weights: (wx, wy, ww, wh), e.g. (10, 10, 5, 5) for box heads; the reciprocals of mmdet's standard deviations.
    """
    a = convert_boxes(_boxes("box_to_delta", "anchors", anchors), "xyxy", "cxcywh")
    b = convert_boxes(_boxes("box_to_delta", "boxes", boxes), "xyxy", "cxcywh")
    size_a, size_b = a[..., 2:].clamp(min=SMALLEST), b[..., 2:].clamp(min=SMALLEST)
    delta = torch.cat(((b[..., :2] - a[..., :2]) / size_a, (size_b / size_a).log()), dim=-1)
    return delta * _weights("box_to_delta", weights, delta)


def delta_to_box(
    anchors: Tensor,
    deltas: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Tensor:
    """Corners ``[..., 4]`` of the boxes that ``deltas`` describe; the inverse of :func:`box_to_delta`. fp16 and bf16 become fp32.

    Args:
        anchors: ``[..., 4]`` corners.
        deltas: ``[..., 4]``.
        weights: as for :func:`box_to_delta`.
        max_log_ratio: largest ln(w/wa) and ln(h/ha), so that the exponential stays finite; ln(1000/16) everywhere.
    """
    a = convert_boxes(_boxes("delta_to_box", "anchors", anchors), "xyxy", "cxcywh")
    delta = _boxes("delta_to_box", "deltas", deltas)
    delta = delta / _weights("delta_to_box", weights, delta)
    centre = a[..., :2] + delta[..., :2] * a[..., 2:]
    half = a[..., 2:] * delta[..., 2:].clamp(max=max_log_ratio).exp() / 2
    return torch.cat((centre - half, centre + half), dim=-1)
