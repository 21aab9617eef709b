"""Loss and assigner of ultralytics' detection models, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.targets import PaddedTargets
from detloss.assigners.task_aligned import TaskAlignedAssigner
from detloss.checks import upcast
from detloss.criteria.distances import distribution_term, expected_distance
from detloss.criteria.levels import map_sizes, matched_labels, matched_rows
from detloss.criteria.yolov8 import BIN_MARGIN
from detloss.functional.iou import ciou_loss
from detloss.functional.quality import quality_focal_loss
from detloss.geometry.boxes import box_to_distance, distance_to_box
from detloss.geometry.points import Points, grid_points
from detloss.losses.distribution import DistributionFocalLoss
from detloss.types import Assignment

__all__ = ["assigner_of", "detection_loss", "padded_targets", "task_aligned_targets"]

Function = Callable[..., Any]
GAINS = ("box", "cls", "dfl")
SMALLEST_SCORE, LARGEST_SCORE = 1e-30, 1 - 2**-24  # probabilities whose logits are finite in float32


def detection_loss(original: Function) -> Function:
    """``v8DetectionLoss.get_assigned_targets_and_loss``: assignment and the three losses, without tables of all pairs."""

    def get_assigned_targets_and_loss(self: Any, preds: Mapping[str, Any], batch: Mapping[str, Any], **extra: Any) -> Any:
        assigner = assigner_of(self.assigner)
        covered = self.use_dfl and self.class_weights is None and type(self.bbox_loss).__name__ == "BboxLoss" and not extra
        if assigner is None or not covered:
            return original(self, preds, batch, **extra)
        scores, bins = preds["scores"], preds["boxes"]
        points, truth, found = _assign(assigner, preds, batch, self.stride.tolist())
        image, prior = found.positive.nonzero(as_tuple=True)
        quality = torch.zeros_like(points.stride).expand_as(found.gt_index) if found.quality is None else found.quality
        score, total = quality[image, prior], quality.sum().clamp(min=1)
        matched = truth.boxes[image, found.gt_index[image, prior]]
        stride = points.stride[prior, None]
        own = upcast(bins.transpose(1, 2)[image, prior])
        pred, true = expected_distance(own), box_to_distance(points.xy[prior], matched) / stride
        labels = matched_labels(truth, found, self.nc)
        terms = (
            ciou_loss(_around_point(pred), _around_point(true), weight=score, avg_factor=total),
            # With beta = 0 it is the cross entropy with soft labels.
            quality_focal_loss(scores.unsqueeze(2), (labels.unsqueeze(1), quality.unsqueeze(1)), beta=0.0, avg_factor=total),
            distribution_term(DistributionFocalLoss(), own, true, score, total, BIN_MARGIN),
        )
        loss = torch.stack([term * float(getattr(self.hyp, gain)) for term, gain in zip(terms, GAINS, strict=True)])
        steps = points.stride.unsqueeze(1)
        objects = matched.new_zeros(*found.gt_index.shape, 4)
        objects[image, prior] = matched
        assigned = (found.positive, found.gt_index.clamp(min=0), objects, points.xy / steps, steps)
        return assigned, loss, dict(zip(self.loss_names, loss.detach(), strict=False))

    return get_assigned_targets_and_loss


def task_aligned_targets(original: Function) -> Function:
    """``TaskAlignedAssigner.forward``, of probabilities as they are given there."""

    @torch.no_grad()
    def forward(
        self: Any,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        **extra: Any,
    ) -> Any:
        assigner = assigner_of(self)
        if assigner is None or extra or not gt_bboxes.shape[1]:
            return original(self, pd_scores, pd_bboxes, anc_points, gt_labels, gt_bboxes, mask_gt, **extra)
        logits = torch.logit(pd_scores.float().clamp(SMALLEST_SCORE, LARGEST_SCORE))
        strides = tuple(self.stride)
        points = Points(anc_points.float(), anc_points.new_ones(len(anc_points)), (), strides)
        truth = _padded(gt_labels, gt_bboxes, mask_gt)
        found = assigner(points, truth, logits, pd_bboxes)
        labels = matched_labels(truth, found, 0)
        quality = torch.zeros_like(pd_scores[..., 0]) if found.quality is None else found.quality.to(pd_scores.dtype)
        target = torch.zeros_like(pd_scores).scatter_(2, labels.unsqueeze(-1), quality.unsqueeze(-1))
        return labels, matched_rows(truth.boxes, found), target, found.positive, found.gt_index.clamp(min=0)

    return forward


def assigner_of(assigner: Any) -> TaskAlignedAssigner | None:
    """The assigner that is equal to ultralytics' ``TaskAlignedAssigner``; ``None`` for its relatives with rules of their own."""
    if type(assigner).__name__ != "TaskAlignedAssigner" or assigner.topk2 != assigner.topk:
        return None
    return TaskAlignedAssigner(topk=assigner.topk, alpha=assigner.alpha, beta=assigner.beta, eps=assigner.eps)


def padded_targets(batch: Mapping[str, Any], images: int, side: Sequence[float], like: Tensor) -> PaddedTargets:
    """The objects of a batch of an ultralytics loader, padded. The host waits once for their largest number.

    Args:
        batch: ``batch_idx [N]``, image of each object, in order; ``cls``, and ``bboxes`` (cx, cy, w, h) in units of the image.
        images: number of images.
        side: height and width of the images in pixels.
        like: tensor whose device and dtype the boxes take.
    """
    image = batch["batch_idx"].to(like.device).reshape(-1).long()
    counts = torch.bincount(image, minlength=images)
    most = int(counts.max()) if len(image) else 0
    place = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    height, width = side
    boxes = batch["bboxes"].to(like).reshape(-1, 4) * like.new_tensor([width, height, width, height])
    half = boxes[:, 2:] / 2
    corners = like.new_zeros(images, most, 4)
    corners[image, place] = torch.cat((boxes[:, :2] - half, boxes[:, :2] + half), 1)
    labels = image.new_zeros(images, most)
    labels[image, place] = batch["cls"].to(like.device).reshape(-1).long()
    valid = torch.arange(most, device=image.device) < counts[:, None]
    nothing = like.new_zeros(images, 0, 4)
    return PaddedTargets(corners, labels, valid, nothing, nothing.bool()[..., 0])


def _assign(
    assigner: TaskAlignedAssigner, preds: Mapping[str, Any], batch: Mapping[str, Any], strides: Sequence[float]
) -> tuple[Points, PaddedTargets, Assignment]:
    """The locations, the objects, and which is responsible for which, from scores and bins joined over the levels."""
    bins, sizes = preds["boxes"].detach(), map_sizes(preds["feats"])
    distances = expected_distance(bins, 1).transpose(1, 2)
    points = grid_points(sizes, strides, device=bins.device, dtype=distances.dtype)
    truth = padded_targets(batch, len(bins), [length * strides[0] for length in sizes[0]], distances)
    boxes = distance_to_box(points.xy.expand(*distances.shape[:2], 2), distances * points.stride[:, None])
    return points, truth, assigner(points, truth, preds["scores"].detach().transpose(1, 2), boxes)


def _around_point(distances: Tensor) -> Tensor:
    return torch.cat((-distances[:, :2], distances[:, 2:]), dim=1)


def _padded(labels: Tensor, boxes: Tensor, mask: Tensor) -> PaddedTargets:
    """Objects as ultralytics pads them."""
    nothing = boxes.new_zeros(len(boxes), 0, 4)
    valid = mask.reshape(boxes.shape[:2]).bool()
    return PaddedTargets(boxes, labels.reshape(boxes.shape[:2]).long(), valid, nothing, nothing.bool()[..., 0])
