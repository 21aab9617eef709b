"""The losses of torchvision's dense detectors, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.fcos import FCOSAssigner
from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.assigners.samplers import HardNegativeSampler
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import upcast
from detloss.criteria.levels import matched_labels
from detloss.functional.classification import cross_entropy_loss
from detloss.functional.focal import sigmoid_focal_loss
from detloss.functional.iou import ciou_loss, diou_loss, giou_loss
from detloss.functional.quality import centerness_loss
from detloss.functional.regression import l1_loss, smooth_l1_loss
from detloss.geometry.anchors import Anchors
from detloss.geometry.boxes import box_to_distance, centerness
from detloss.geometry.deltas import box_to_delta, delta_to_box
from detloss.geometry.points import Points
from detloss.types import Assignment

__all__ = ["anchor_points", "anchor_sides", "fcos_loss", "matcher_of", "objects_of", "retinanet_loss", "ssd_loss"]

Function = Callable[..., Any]
Targets = Sequence[dict[str, Tensor]]
COORDINATE_LOSSES = {"l1": l1_loss, "smooth_l1": smooth_l1_loss}
BOX_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def fcos_loss(original: Function) -> Function:
    """``FCOS.compute_loss``: assignment and the three losses."""

    def compute_loss(
        self: Any, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], num_anchors_per_level: list[int]
    ) -> dict[str, Tensor]:
        strides = anchor_sides(self.anchor_generator, len(num_anchors_per_level))
        if strides is None or not _is_stock(self.head, "compute_loss", "FCOSHead"):
            found: dict[str, Tensor] = original(self, targets, head_outputs, anchors, num_anchors_per_level)
            return found
        logits, sides = head_outputs["cls_logits"], upcast(head_outputs["bbox_regression"])
        points = anchor_points(anchors[0], strides, num_anchors_per_level)
        truth = objects_of(targets, sides)
        ranges = [(4.0 * stride, 8.0 * stride) for stride in strides]
        ranges[0], ranges[-1] = (-1.0, ranges[0][1]), (ranges[-1][0] if len(ranges) > 1 else -1.0, float("inf"))
        assignment = FCOSAssigner(ranges, self.center_sampling_radius, range_bounds="open")(points, truth)
        image, prior, objects = _positives(assignment, truth)
        count = float(max(1, len(image)))
        labels = matched_labels(truth, assignment, logits.shape[-1])
        true = box_to_distance(points.xy[prior], objects)
        pred = sides[image, prior] * points.stride[prior, None]
        centers = head_outputs["bbox_ctrness"][image, prior].squeeze(-1)
        return {
            "classification": sigmoid_focal_loss(logits.flatten(0, 1), labels.flatten(), avg_factor=count),
            "bbox_regression": giou_loss(_around_point(pred), _around_point(true), avg_factor=count),
            "bbox_ctrness": centerness_loss(centers, centerness(true), avg_factor=count),
        }

    return compute_loss


def retinanet_loss(original: Function) -> Function:
    """``RetinaNet.compute_loss``: assignment and both losses, each image divided by its own positives."""

    def compute_loss(self: Any, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]) -> dict[str, Tensor]:
        head, assigner = self.head, matcher_of(self.proposal_matcher)
        stock = (
            _is_stock(head, "compute_loss", "RetinaNetHead")
            and _is_stock(head.classification_head, "compute_loss", "RetinaNetClassificationHead")
            and _is_stock(head.regression_head, "compute_loss", "RetinaNetRegressionHead")
        )
        if assigner is None or not stock:
            found: dict[str, Tensor] = original(self, targets, head_outputs, anchors)
            return found
        logits, deltas = head_outputs["cls_logits"], upcast(head_outputs["bbox_regression"])
        truth = objects_of(targets, deltas)
        assignment = assigner(Anchors.of(anchors[0].to(deltas.dtype)), truth)
        image, prior, objects = _positives(assignment, truth)
        share = 1 / (assignment.positive.sum(1).clamp(min=1) * len(targets)).to(deltas.dtype)
        labels = matched_labels(truth, assignment, logits.shape[-1]).flatten()
        weight = torch.where(assignment.ignore, 0.0, share[:, None]).flatten()
        regression = head.regression_head
        return {
            "classification": sigmoid_focal_loss(logits.flatten(0, 1), labels, weight=weight, reduction="sum"),
            "bbox_regression": _box_term(
                regression._loss_type,
                regression.box_coder.weights,
                anchors[0][prior],
                deltas[image, prior],
                objects,
                share[image],
            ),
        }

    return compute_loss


def ssd_loss(original: Function) -> Function:
    """``SSD.compute_loss``: hard negatives of all images at once; only the rows that count keep anything for the gradient."""

    def compute_loss(
        self: Any, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        if self.neg_to_pos_ratio % 1:  # their sampler rounds negatives up, ours down
            found: dict[str, Tensor] = original(self, targets, head_outputs, anchors, matched_idxs)
            return found
        logits, deltas = head_outputs["cls_logits"], upcast(head_outputs["bbox_regression"])
        truth = objects_of(targets, deltas)
        gt_index = torch.stack(matched_idxs).clamp(min=-1)
        assignment = Assignment(gt_index, torch.zeros_like(gt_index, dtype=torch.bool))
        labels = matched_labels(truth, assignment, 0)
        with torch.no_grad():
            hardness = cross_entropy_loss(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        # The background is class 0 there: an object with that label is a negative for the sampler.
        sampled = HardNegativeSampler(self.neg_to_pos_ratio)(
            Assignment(torch.where(labels > 0, gt_index, -1), labels < 0), hardness
        )
        chosen = (~sampled.ignore).nonzero(as_tuple=True)
        image, prior, objects = _positives(assignment, truth)
        count = float(max(1, len(image)))
        own = torch.stack(anchors)[image, prior]
        target = box_to_delta(own, objects, self.box_coder.weights)
        return {
            "bbox_regression": smooth_l1_loss(deltas[image, prior], target, avg_factor=count),
            "classification": cross_entropy_loss(logits[chosen], labels[chosen], avg_factor=count),
        }

    return compute_loss


def matcher_of(matcher: Any) -> MaxIoUAssigner | None:
    """The assigner that is equal to torchvision's ``Matcher``; ``None`` for matchers with rules of their own."""
    if type(matcher).__name__ != "Matcher" or not type(matcher).__module__.startswith("torchvision."):
        return None
    high, low, extra = matcher.high_threshold, matcher.low_threshold, matcher.allow_low_quality_matches
    return MaxIoUAssigner(high, low, match_low_quality=extra, low_quality="anchor", ignore_iof_thr=None)


def objects_of(targets: Targets, like: Tensor) -> PaddedTargets:
    """Boxes and labels of the targets; torchvision does not look at ``iscrowd``."""
    return pad_targets([{"boxes": target["boxes"], "labels": target["labels"]} for target in targets], like)


def _is_stock(module: Any, name: str, kind: str) -> bool:
    """Whether a method is torchvision's own one of the class ``kind``, not one of a user's class."""
    method = getattr(getattr(module, name), "__func__", None)
    return method is not None and method.__qualname__ == f"{kind}.{name}" and method.__module__.startswith("torchvision.")


def anchor_sides(generator: Any, levels: int) -> list[int] | None:
    """The sides of the anchors, which are the strides of FCOS; ``None`` unless there is one square of even side per level."""
    sizes, ratios = generator.sizes, generator.aspect_ratios
    single = len(sizes) == levels and all(len(own) == 1 and own[0] % 2 == 0 for own in sizes)
    return [int(own[0]) for own in sizes] if single and all(tuple(own) == (1.0,) for own in ratios) else None


def anchor_points(anchors: Tensor, strides: list[int], counts: list[int]) -> Points:
    """The centres of anchors; the same for all images, which are padded to one size."""
    xy = (anchors[:, :2] + anchors[:, 2:]) / 2
    points = Points(xy, xy.new_zeros(0), tuple((1, int(count)) for count in counts), tuple(strides))
    return Points(xy, points.per_level([float(stride) for stride in strides]), points.sizes, points.strides)


def _positives(assignment: Assignment, truth: PaddedTargets) -> tuple[Tensor, Tensor, Tensor]:
    """Image and prior of every positive, and the corners ``[N, 4]`` of its object. The host waits once for their number."""
    image, prior = assignment.positive.nonzero(as_tuple=True)
    return image, prior, truth.boxes[image, assignment.gt_index[image, prior]]


def _around_point(distances: Tensor) -> Tensor:
    return torch.cat((-distances[:, :2], distances[:, 2:]), dim=1)


def _box_term(kind: str, weights: Sequence[float], anchors: Tensor, deltas: Tensor, objects: Tensor, weight: Tensor) -> Tensor:
    """Σ weight · loss of the boxes, by torchvision's name of the loss."""
    anchors = anchors.to(deltas.dtype)
    if kind in COORDINATE_LOSSES:
        loss: Tensor = COORDINATE_LOSSES[kind](deltas, box_to_delta(anchors, objects, weights), weight=weight, reduction="sum")
        return loss
    return BOX_LOSSES[kind](delta_to_box(anchors, deltas, weights), objects, weight=weight, reduction="sum")
