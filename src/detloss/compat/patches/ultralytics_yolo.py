"""Loss and assigner of ultralytics' detection models, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.targets import PaddedTargets
from detloss.assigners.task_aligned import TaskAlignedAssigner
from detloss.criteria.levels import map_sizes, matched_labels, matched_rows
from detloss.criteria.yolov8 import YOLOv8Loss, YOLOv8Matched
from detloss.geometry.points import Points
from detloss.types import Target

__all__ = ["assigner_of", "detection_loss", "targets_of", "task_aligned_targets"]

Function = Callable[..., Any]
GAINS = {"loss_box": "box", "loss_cls": "cls", "loss_dfl": "dfl"}  # in ultralytics' order
SMALLEST_SCORE, LARGEST_SCORE = 1e-30, 1 - 2**-24  # probabilities whose logits are finite in float32


def detection_loss(original: Function) -> Function:
    """``v8DetectionLoss.get_assigned_targets_and_loss``: assignment and the three losses, without tables of all pairs."""

    def get_assigned_targets_and_loss(self: Any, preds: Mapping[str, Any], batch: Mapping[str, Any], **extra: Any) -> Any:
        assigner = assigner_of(self.assigner)
        covered = self.use_dfl and self.class_weights is None and type(self.bbox_loss).__name__ == "BboxLoss" and not extra
        if assigner is None or not covered:
            return original(self, preds, batch, **extra)
        weights = {term: float(getattr(self.hyp, gain)) for term, gain in GAINS.items()}
        criterion = YOLOv8Loss(
            self.nc, strides=self.stride.tolist(), reg_max=self.reg_max, assigner=assigner, normalizer="local", weights=weights
        )
        matched = _match(criterion, preds, batch)
        losses = criterion.finish(matched)
        loss = torch.stack([losses[name] for name in GAINS])
        return _assigned(matched), loss, dict(zip(self.loss_names, loss.detach(), strict=False))

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


def targets_of(batch: Mapping[str, Any], images: int, side: Tensor) -> list[Target]:
    """The objects of a batch by image, from ``batch_idx``, ``cls`` and ``bboxes`` (cx, cy, w, h in units of the image).

    Args:
        batch: the batch of an ultralytics loader; its rows are in the order of the images.
        images: number of images.
        side: ``[2]`` height and width of the images in pixels.
    """
    index = batch["batch_idx"].to(side.device).reshape(-1).long()
    boxes, labels = batch["bboxes"].to(side), batch["cls"].to(side.device).reshape(-1).long()
    boxes = boxes.reshape(-1, 4) * side.flip(0).repeat(2)
    half = boxes[:, 2:] / 2
    corners = torch.cat((boxes[:, :2] - half, boxes[:, :2] + half), 1)
    counts = torch.bincount(index, minlength=images).tolist()
    parts = zip(corners.split(counts), labels.split(counts), strict=True)
    return [{"boxes": own, "labels": label} for own, label in parts]


def _match(criterion: YOLOv8Loss, preds: Mapping[str, Any], batch: Mapping[str, Any]) -> YOLOv8Matched:
    """The matched batch, with scores and bins as one map each, as the head joined them: so they are never taken apart."""
    joined = {"scores": preds["scores"], "boxes": preds["boxes"]}
    detached = {"feats": preds["feats"], **{name: x.detach() for name, x in joined.items()}}
    height, width = map_sizes(preds["feats"])[0]
    stride = criterion.strides[0]
    side = torch.tensor([height * stride, width * stride], device=joined["scores"].device, dtype=torch.float32)
    matched = criterion.match(*criterion.split_outputs(detached), targets_of(batch, len(joined["scores"]), side))
    scores, boxes = (x.unsqueeze(2) for x in joined.values())
    return replace(matched, cls_scores=(scores,), bbox_preds=(boxes,))


def _assigned(matched: YOLOv8Matched) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Foreground, object of every location, its corners in pixels, locations in cells and strides, as ultralytics has them."""
    assignment, points = matched.assignment, matched.priors
    stride = points.stride.unsqueeze(1)
    boxes = matched_rows(matched.truth.boxes, assignment)
    return assignment.positive, assignment.gt_index.clamp(min=0), boxes, points.xy / stride, stride


def _padded(labels: Tensor, boxes: Tensor, mask: Tensor) -> PaddedTargets:
    """Objects as ultralytics pads them."""
    nothing = boxes.new_zeros(len(boxes), 0, 4)
    valid = mask.reshape(boxes.shape[:2]).bool()
    return PaddedTargets(boxes, labels.reshape(boxes.shape[:2]).long(), valid, nothing, nothing.bool()[..., 0])
