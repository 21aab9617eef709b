"""The losses and targets of torchvision's two-stage detectors, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.compat.patches.torchvision_dense import matcher_of, objects_of
from detloss.criteria.levels import matched_rows
from detloss.criteria.roi_head import own_class_rows
from detloss.functional.classification import binary_cross_entropy_loss, cross_entropy_loss
from detloss.functional.mask import mask_bce_loss
from detloss.functional.regression import smooth_l1_loss
from detloss.geometry.anchors import Anchors
from detloss.geometry.mask_crop import crop_masks

__all__ = ["anchor_targets", "box_losses", "keypoint_loss", "mask_loss", "proposal_losses", "proposal_targets"]

Function = Callable[..., Any]
Targets = Sequence[dict[str, Tensor]]
BETA = 1 / 9
MASKS_AT_ONCE = 8
NOT_SAMPLED = -1  # label of anchors and proposals that count neither way


def anchor_targets(original: Function) -> Function:
    """``RegionProposalNetwork.assign_targets_to_anchors``: all images at once, without a matrix of all pairs."""

    def assign_targets_to_anchors(self: Any, anchors: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        assigner = matcher_of(self.proposal_matcher)
        if assigner is None or getattr(self.box_similarity, "__name__", "") != "box_iou":
            found: tuple[list[Tensor], list[Tensor]] = original(self, anchors, targets)
            return found
        truth = _boxes_only(targets, anchors[0])
        assignment = assigner(Anchors.of(anchors[0]), truth)
        labels = assignment.positive.float().masked_fill(assignment.ignore, NOT_SAMPLED)
        return list(labels), list(matched_rows(truth.boxes, assignment))

    return assign_targets_to_anchors


def proposal_losses(original: Function) -> Function:
    """``RegionProposalNetwork.compute_loss``, with the sampler of the model. A batch without samples costs 0, not NaN."""

    def compute_loss(
        self: Any, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        positive, negative = (torch.cat(masks).bool().nonzero().squeeze(1) for masks in self.fg_bg_sampler(labels))
        count = float(len(positive) + len(negative))
        sampled = torch.cat((positive, negative))
        target = torch.cat(regression_targets)[positive]
        loss_box = smooth_l1_loss(pred_bbox_deltas[positive], target, beta=BETA, avg_factor=count)
        logits, target = objectness.flatten()[sampled], torch.cat(labels)[sampled]
        return binary_cross_entropy_loss(logits[:, None], target[:, None], avg_factor=count), loss_box

    return compute_loss


def proposal_targets(original: Function) -> Function:
    """``RoIHeads.assign_targets_to_proposals``: all images at once, without a matrix of all pairs."""

    def assign_targets_to_proposals(
        self: Any, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        assigner = matcher_of(self.proposal_matcher)
        if assigner is None:
            found: tuple[list[Tensor], list[Tensor]] = original(self, proposals, gt_boxes, gt_labels)
            return found
        boxes = pad_sequence(proposals, batch_first=True)
        valid = pad_sequence([own.new_ones(len(own), dtype=torch.bool) for own in proposals], batch_first=True)
        truth = objects_of([{"boxes": b, "labels": y} for b, y in zip(gt_boxes, gt_labels, strict=True)], boxes)
        assignment = assigner(Anchors.of(boxes, valid=valid), truth)
        index = assignment.gt_index.clamp(min=0)
        labels = torch.zeros_like(index) if not truth.labels.shape[1] else truth.labels.gather(1, index)
        labels = torch.where(assignment.positive, labels, 0).masked_fill(assignment.ignore, NOT_SAMPLED)
        counts = [len(own) for own in proposals]
        return [x[:n] for x, n in zip(index, counts, strict=True)], [x[:n] for x, n in zip(labels, counts, strict=True)]

    return assign_targets_to_proposals


def box_losses(original: Function) -> Function:
    """``fastrcnn_loss``. A batch without samples costs 0, not NaN."""

    def fastrcnn_loss(
        class_logits: Tensor, box_regression: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        label, count = torch.cat(labels), float(class_logits.shape[0])
        positive = (label > 0).nonzero().squeeze(1)
        deltas = box_regression.unflatten(1, (-1, 4))[positive, label[positive]]
        target = torch.cat(regression_targets)[positive]
        loss_box = smooth_l1_loss(deltas, target, beta=BETA, avg_factor=count)
        return cross_entropy_loss(class_logits, label, avg_factor=count), loss_box

    return fastrcnn_loss


def mask_loss(original: Function) -> Function:
    """``maskrcnn_loss``: the masks of an image are never turned into numbers all at once."""
    from torchvision.ops import roi_align

    def crops_of(masks: Tensor, boxes: Tensor, index: Tensor, size: int) -> Tensor:
        if boxes.device.type != "cpu":  # where to look for the boxes of a few objects would make the host wait
            return crop_masks(masks, boxes, index, size).clamp(0, 1)
        crops = boxes.new_empty(len(boxes), size, size)
        for start in range(0, len(masks), MASKS_AT_ONCE):
            own = ((index >= start) & (index < start + MASKS_AT_ONCE)).nonzero().squeeze(1)
            regions = torch.cat((index[own, None].to(boxes) - start, boxes[own]), 1)
            crops[own] = roi_align(masks[start : start + MASKS_AT_ONCE, None].to(boxes), regions, (size, size), 1.0)[:, 0]
        return crops.clamp_(0, 1)

    def maskrcnn_loss(
        mask_logits: Tensor,
        proposals: list[Tensor],
        gt_masks: list[Tensor],
        gt_labels: list[Tensor],
        mask_matched_idxs: list[Tensor],
    ) -> Tensor:
        size = mask_logits.shape[-1]
        parts = list(zip(gt_masks, proposals, mask_matched_idxs, strict=True))
        crops = torch.cat([crops_of(masks, boxes, index, size) for masks, boxes, index in parts])
        labels = torch.cat([own[index] for own, index in zip(gt_labels, mask_matched_idxs, strict=True)])
        return mask_bce_loss(own_class_rows(mask_logits, labels - 1, "first"), crops)

    return maskrcnn_loss


def keypoint_loss(original: Function) -> Function:
    """``keypointrcnn_loss``: the mean over the visible keypoints inside their proposals; a connected 0 without any."""
    from torchvision.models.detection.roi_heads import keypoints_to_heatmap

    def keypointrcnn_loss(
        keypoint_logits: Tensor, proposals: list[Tensor], gt_keypoints: list[Tensor], keypoint_matched_idxs: list[Tensor]
    ) -> Tensor:
        count, points, height, width = keypoint_logits.shape
        if height != width:
            raise ValueError(
                f"keypointrcnn_loss: keypoint_logits must be [N, K, M, M], square maps; got {[count, points, height, width]}"
            )
        own = zip(gt_keypoints, keypoint_matched_idxs, proposals, strict=True)
        found = [keypoints_to_heatmap(keypoints[index], boxes, height) for keypoints, index, boxes in own]
        cell, valid = (torch.cat([part[k].flatten() for part in found]) for k in (0, 1))
        rows = valid.nonzero().squeeze(1)
        return cross_entropy_loss(keypoint_logits.flatten(0, 1).flatten(1)[rows], cell[rows])

    return keypointrcnn_loss


def _boxes_only(targets: Targets, like: Tensor) -> PaddedTargets:
    """The boxes of the targets, whose labels play no part."""
    return pad_targets(
        [{"boxes": t["boxes"], "labels": t["boxes"].new_zeros(len(t["boxes"]), dtype=torch.long)} for t in targets], like
    )
