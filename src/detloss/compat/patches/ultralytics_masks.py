"""Mask losses of ultralytics' segmentation models, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detloss.functional.mask import mask_bce_loss
from detloss.functional.prototype_masks import prototype_mask_sum
from detloss.kernels.prototypes import PrototypeMasks

__all__ = ["mask_loss", "segmentation_loss"]

Function = Callable[..., Any]


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
        rows = pred_masks[image, prior]
        batch = _masks_of_batch(rows, proto, objects, counts, boxes, masks, batch_idx.view(-1), self.overlap)
        return prototype_mask_sum(batch) / len(image)

    return calculate_segmentation_loss


def _masks_of_batch(
    rows: Tensor,
    prototypes: Tensor,
    objects: Tensor,
    counts: Tensor,
    boxes: Tensor,
    masks: Tensor,
    batch_idx: Tensor,
    overlap: bool,
) -> PrototypeMasks:
    """The masks of all objects inside their boxes, for :func:`prototype_mask_sum`.

    Args:
        rows: coefficients ``[R, K]``, those of an object side by side.
        prototypes: ``[B, K, H, W]``.
        objects: (image, number in the image) ``[N, 2]``, in order.
        counts: rows of each.
        boxes: corners in units of the image ``[N, 4]``.
        masks: numbers from 1 of the objects of each image ``[B, H, W]`` if they ``overlap``, or one mask for each ``[M, H, W]``.
        batch_idx: image of each of the M masks.
        overlap: which of the two.
    """
    height, width = prototypes.shape[2:]
    image, number = objects.t().contiguous()
    size = boxes.new_tensor([width, height, width, height])
    # A pixel counts if its number is >= the first and < the second edge.
    x1, y1, x2, y2 = torch.minimum((boxes * size).ceil().clamp(min=0), size).long().unbind(1)
    # As there: the mean over all pixels by the share of the image that the box covers, which are all pixels of the box.
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1) * (height * width)
    if overlap:
        mask = image
    else:
        own, by_image = batch_idx.to(image).sort(stable=True)
        mask = by_image[torch.searchsorted(own, image) + number]
    name = number + 1 if overlap else torch.zeros_like(number)
    last = counts.cumsum(0)
    crops = torch.stack((image, last - counts, last, y1, y2, x1, x2, mask, name), 1)
    kept = (area > 0) & (y2 > y1) & (x2 > x1)
    return PrototypeMasks(rows, prototypes, masks, crops[kept], (1 / area)[kept])
