"""Ground-truth masks cropped to boxes and resized: what the mask head of Mask R-CNN is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detloss.checks import check_float, check_positive, check_real, shape_of

__all__ = ["crop_masks", "sampling_weights"]

CROP_BUDGET = 64 * 2**20
# A pixel lies within reach of at most three samples of a bin: they are more than 2/3 of a pixel apart where a bin has three
# or more of them. The fourth makes up for the rounding of the first one's index.
CANDIDATES = 4


def sampling_weights(low: Tensor, high: Tensor, bins: int, length: int, aligned: bool = False) -> Tensor:
    """``[N, bins, length]``: the share of every pixel of an axis in every bin of the interval [low, high].

    The interval is cut into equal bins; a bin of b pixels is the mean of n = ⌈b⌉ samples in the middle of its n equal parts;
    a sample at y takes 1 − |y − p| of pixel p, positions in [−1, 0] and [length − 1, length] count as the first and the last
    pixel, and others outside the image as nothing. This is RoIAlign with an adaptive number of samples.

    Source: Mask R-CNN, He et al. 2017, arXiv:1703.06870, section 3.

    Args:
        low: ``[N]`` lower ends in pixels.
        high: ``[N]`` upper ends.
        bins: number of bins.
        length: number of pixels of the axis.
        aligned: pixel p lies at p + ½, and an interval may have any length; without, at p, and it counts as at least 1 long.
    """
    start, end = ((x - 0.5 if aligned else x)[:, None, None] for x in (low, high))
    extent = end - start
    size = (extent if aligned else extent.clamp(min=1)) / bins
    samples = size.ceil().clamp(min=1)
    pixel = torch.arange(length, device=low.device, dtype=low.dtype)
    edge = start + torch.arange(bins, device=low.device, dtype=low.dtype)[:, None] * size
    step = torch.where(size > 0, size, 1.0) / samples
    first = ((pixel - 1 - edge) / step - 0.5).floor()
    first = torch.minimum(first, samples - CANDIDATES).clamp(min=0)
    total = torch.zeros_like(first)
    for candidate in range(CANDIDATES):
        index = first + candidate
        at = edge + (index + 0.5) * size / samples
        counts = (size > 0) & (index < samples) & (at >= -1) & (at <= length)
        reach = (1 - (at.clamp(0, length - 1) - pixel).abs()).clamp(min=0)
        total = total + torch.where(counts, reach, 0.0)
    return total / samples


@torch.no_grad()
def crop_masks(
    masks: Tensor,
    boxes: Tensor,
    index: Tensor,
    size: int | tuple[int, int],
    *,
    aligned: bool = False,
    memory_budget: int = CROP_BUDGET,
) -> Tensor:
    """``[N, height, width]``: of every box the part of its mask inside, resized; without gradient.

    Bilinear sampling is separable, so a crop is Wy · mask · Wxᵀ with the weights of :func:`sampling_weights`. Equal to
    ``torchvision.ops.roi_align(masks, boxes, size, spatial_scale=1, sampling_ratio=-1, aligned=aligned)``. Boxes are taken
    in chunks whose temporaries fit the budget.

    Args:
        masks: ``[G, H, W]`` of one image: bool, or numbers.
        boxes: ``[N, 4]`` corners in pixels of the image.
        index: ``[N]`` which mask each box takes.
        size: height and width of the result in pixels, one number for both.
        aligned: pixels have their middle at half coordinates (detectron2, mmdet), not at whole ones (torchvision).
        memory_budget: bytes that the temporaries of one chunk may take.

    >>> mask = torch.zeros(1, 4, 4)
    >>> mask[:, :, 2:] = 1
    >>> crop_masks(mask, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([0]), 2)
    tensor([[[0.2500, 1.0000],
             [0.2500, 1.0000]]])
    """
    tall, wide = (size, size) if isinstance(size, int) else size
    _check("crop_masks", masks, boxes, index, tall, wide)
    if not masks.numel() or not len(boxes):
        return boxes.new_zeros(len(boxes), tall, wide)
    height, width = masks.shape[1:]
    # About five temporaries of each matrix of weights are alive at once, the mask as it is and as numbers, and half a crop.
    each = boxes.element_size() * (5 * (tall * height + wide * width) + 2 * height * width + tall * width)
    parts = []
    with _full_precision(boxes):
        for own, which in zip(*(x.split(max(1, memory_budget // each)) for x in (boxes, index)), strict=True):
            rows = sampling_weights(own[:, 1], own[:, 3], tall, height, aligned)
            columns = sampling_weights(own[:, 0], own[:, 2], wide, width, aligned)
            parts.append(rows @ masks[which].to(boxes.dtype) @ columns.transpose(1, 2))
    return torch.cat(parts)


def _full_precision(like: Tensor) -> Any:
    """A context in which autocast does not turn the products into fp16."""
    return torch.autocast(like.device.type, enabled=False)


def _check(where: str, masks: Tensor, boxes: Tensor, index: Tensor, tall: int, wide: int) -> None:
    check_real(where, "masks", masks)
    check_float(where, "boxes", boxes)
    check_positive(where, height=tall, width=wide)
    if masks.ndim != 3:
        raise ValueError(f"{where}: masks must have shape [G, H, W]; got {shape_of(masks)}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes must have shape [N, 4]; got {shape_of(boxes)}")
    if index.shape != boxes.shape[:1]:
        raise ValueError(f"{where}: index must have shape [{len(boxes)}], one mask per box; got {shape_of(index)}")
