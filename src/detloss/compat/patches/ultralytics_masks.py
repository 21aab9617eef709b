"""Mask losses of ultralytics' segmentation models, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import upcast
from detloss.functional.mask import mask_bce_loss

__all__ = ["mask_loss", "segmentation_loss"]

Function = Callable[..., Any]


class Crop(NamedTuple):
    """One object, the part of its image that its masks are compared in, and the rows of coefficients that predict it.

    Attributes:
        rows: first row, and the one after the last.
        image: number of the image.
        y: first row of pixels, and the one after the last.
        x: the same of the columns.
        target: mask of the object in the crop ``[h * w]``, in [0, 1].
        weight: of every pixel.
    """

    rows: tuple[int, int]
    image: int
    y: tuple[int, int]
    x: tuple[int, int]
    target: Tensor
    weight: float

    def of(self, prototypes: Tensor) -> Tensor:
        """The part of ``prototypes [B, K, H, W]`` that the crop covers, ``[K, h, w]``."""
        return prototypes[self.image, :, slice(*self.y), slice(*self.x)]


def mask_loss(original: Function) -> Function:
    """``v8SegmentationLoss.single_mask_loss``: cross entropy of the pixels inside the boxes, with its gradient in one pass."""

    def single_mask_loss(gt_mask: Tensor, pred: Tensor, proto: Tensor, xyxy: Tensor, area: Tensor) -> Tensor:
        logits = torch.einsum("in,nhw->ihw", pred, proto)
        count, height, width = logits.shape
        if not count:
            return original(gt_mask, pred, proto, xyxy, area)
        x, y = (torch.arange(length, device=xyxy.device, dtype=xyxy.dtype) for length in (width, height))
        x1, y1, x2, y2 = xyxy.unsqueeze(-1).unbind(1)
        share = torch.where(area > 0, 1 / (height * width * area), 0.0).unsqueeze(-1)
        rows, columns = ((y >= y1) & (y < y2)) * share, (x >= x1) & (x < x2)
        return mask_bce_loss(logits, gt_mask, weight=rows.unsqueeze(2) * columns.unsqueeze(1), reduction="sum")

    return single_mask_loss


def segmentation_loss(original: Function) -> Function:
    """``v8SegmentationLoss.calculate_segmentation_loss`` on the CPU: object by object, only inside its box, nothing kept."""

    def calculate_segmentation_loss(
        self: Any,
        fg_mask: Tensor,
        masks: Tensor,
        target_gt_idx: Tensor,
        target_bboxes: Tensor,
        batch_idx: Tensor,
        proto: Tensor,
        pred_masks: Tensor,
        imgsz: Tensor,
    ) -> Tensor:
        # Elsewhere one launch per image is worth more than fewer pixels.
        if proto.device.type != "cpu" or not fg_mask.any():
            arguments = (fg_mask, masks, target_gt_idx, target_bboxes, batch_idx, proto, pred_masks, imgsz)
            return original(self, *arguments)
        image, prior = fg_mask.nonzero(as_tuple=True)
        number = target_gt_idx[image, prior]
        # Rows of the same object side by side.
        order = (image * (number.max() + 1) + number).argsort(stable=True)
        image, prior, number = image[order], prior[order], number[order]
        objects, counts = torch.stack((image, number), 1).unique_consecutive(dim=0, return_counts=True)
        first = counts.cumsum(0) - counts
        boxes = target_bboxes[image[first], prior[first]] / imgsz[[1, 0, 1, 0]]
        crops = _crops(objects, counts, boxes, masks, batch_idx.view(-1), self.overlap, (proto.shape[2], proto.shape[3]))
        return masks_in_crops(pred_masks[image, prior], proto, crops) / len(image)

    return calculate_segmentation_loss


def _crops(
    objects: Tensor, counts: Tensor, boxes: Tensor, masks: Tensor, batch_idx: Tensor, overlap: bool, size: tuple[int, int]
) -> list[Crop]:
    """The crops of all objects.

    Args:
        objects: (image, number in the image) ``[N, 2]``, in order.
        counts: rows of coefficients of each.
        boxes: corners in units of the image ``[N, 4]``.
        masks: numbers from 1 of the objects of each image ``[B, H, W]`` if they ``overlap``, or one mask for each ``[M, H, W]``.
        batch_idx: image of each of the M masks, in order.
        size: H and W.
    """
    height, width = size
    sides = boxes[:, 2:] - boxes[:, :2]
    # As there: the mean over all pixels by the share of the image that the box covers, which are all pixels of the box.
    pixels = (sides.prod(1) * (height * width)).tolist()
    # A pixel counts if its number is >= the first and < the second edge.
    edges = (boxes * boxes.new_tensor([width, height, width, height])).ceil().clamp(min=0)
    limits = torch.minimum(edges, edges.new_tensor([width, height, width, height])).long().tolist()
    crops, start = [], 0
    for (image, number), count, (x1, y1, x2, y2), area in zip(objects.tolist(), counts.tolist(), limits, pixels, strict=True):
        mask = masks[image] if overlap else masks[batch_idx == image][number]
        part = mask[y1:y2, x1:x2]
        target = part == number + 1 if overlap else part
        if target.numel() and area > 0:
            crops.append(Crop((start, start + count), image, (y1, y2), (x1, x2), target.flatten(), 1 / area))
        start += count
    return crops


def masks_in_crops(coefficients: Tensor, prototypes: Tensor, crops: Sequence[Crop]) -> Tensor:
    """Σ weight · cross entropy over all pixels of all crops, of masks that are linear in prototypes, without holding them.

    Args:
        coefficients: ``[R, K]``.
        prototypes: ``[B, K, H, W]``.
        crops: what is compared where.
    """
    return _MasksInCrops.apply(coefficients, prototypes, crops)


class _MasksInCrops(torch.autograd.Function):
    """Gradients are made in the forward pass, object by object, and scaled by the upstream gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, prototypes: Tensor, crops: Sequence[Crop]) -> Tensor:
        ctx.crops = crops
        rows, maps = upcast(coefficients), upcast(prototypes)
        graph = any(ctx.needs_input_grad[:2])
        slopes = [torch.zeros_like(rows), torch.zeros_like(maps)] if graph else []
        total = rows.new_zeros((), dtype=torch.float64)
        for crop in crops:
            window = crop.of(maps)
            own, flat = rows[slice(*crop.rows)], window.flatten(1)
            logits, target = own @ flat, crop.target.to(rows.dtype).expand(len(own), -1)
            total += crop.weight * torch_f.binary_cross_entropy_with_logits(logits, target, reduction="sum")
            if graph:
                slope = logits.sigmoid_().sub_(target).mul_(crop.weight)
                torch.mm(slope, flat.T, out=slopes[0][slice(*crop.rows)])
                crop.of(slopes[1]).add_((own.T @ slope).view_as(window))
        ctx.save_for_backward(coefficients, prototypes, *slopes)
        return total.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, prototypes, *slopes = ctx.saved_tensors
        if torch.is_grad_enabled() and ctx.crops:
            total = _plain_sum(coefficients, prototypes, ctx.crops)
            slopes = list(torch.autograd.grad(total, (coefficients, prototypes), upstream, create_graph=True))
        else:
            slopes = [slope * upstream for slope in slopes]
        return slopes[0].to(coefficients.dtype), slopes[1].to(prototypes.dtype), None


def _plain_sum(coefficients: Tensor, prototypes: Tensor, crops: Sequence[Crop]) -> Tensor:
    """The same sum, differentiable any number of times."""
    rows, maps = upcast(coefficients), upcast(prototypes)
    total = rows.new_zeros(())
    for crop in crops:
        logits = rows[slice(*crop.rows)] @ crop.of(maps).flatten(1)
        target = crop.target.to(rows.dtype).expand_as(logits)
        total = total + crop.weight * torch_f.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return total
