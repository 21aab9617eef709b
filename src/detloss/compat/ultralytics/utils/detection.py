"""The criteria of ultralytics' detection models, as :mod:`detloss.compat.ultralytics.utils.loss` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from detloss.compat.patches.ultralytics_yolo import GAINS, detection_loss, padded_targets
from detloss.compat.ultralytics.utils.elementary import BboxLoss
from detloss.compat.ultralytics.utils.tal import TaskAlignedAssigner
from detloss.criteria.distances import expected_distance
from detloss.criteria.levels import map_sizes
from detloss.functional.classification import binary_cross_entropy_loss
from detloss.geometry.boxes import distance_to_box
from detloss.geometry.points import grid_points
from detloss.reduction import reduce_loss

__all__ = ["E2ELoss", "v8DetectionLoss"]

Preds = Mapping[str, Any]
Losses = tuple[Tensor, dict[str, Tensor]]
Assigned = tuple[tuple[Tensor, ...], Tensor, dict[str, Tensor]]


class v8DetectionLoss:
    """The criterion of YOLOv8 and its successors: task-aligned assignment, cross entropy, CIoU and distribution focal loss.

    Equal to :class:`detloss.YOLOv8Loss` with ``preset("ultralytics")`` and ``normalizer="local"``, in their form. What differs:
    no tables of all objects with all locations, and none of all locations with all classes in the loss; an object whose
    coordinates sum up to 0 or less counts (it is dropped there); see also :class:`TaskAlignedAssigner`.

    Args:
        model: has ``args`` (the gains ``box``, ``cls`` and ``dfl``), and ``model[-1]`` with ``stride``, ``nc`` and ``reg_max``;
            may have ``class_weights``, one per class. Its first parameter says on which device.
        tal_topk: locations that an object may choose.
        tal_topk2: locations that it keeps; ``None``: all of them.
    """

    def __init__(self, model: Any, tal_topk: int = 10, tal_topk2: int | None = None) -> None:
        head = model.model[-1]
        parameter = next(iter(model.parameters()), None) if hasattr(model, "parameters") else None
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self.hyp = model.args
        self.stride = torch.as_tensor(head.stride)
        self.nc = head.nc
        self.reg_max = head.reg_max
        self.no = head.nc + head.reg_max * 4
        self.use_dfl = head.reg_max > 1
        self.loss_names: tuple[str, ...] = ("box_loss", "cls_loss", "dfl_loss" if self.use_dfl else "l1_loss")
        weights = getattr(model, "class_weights", None)
        self.class_weights = None if weights is None else weights.to(self.device).view(1, 1, -1)
        self.assigner = TaskAlignedAssigner(
            tal_topk, self.nc, alpha=0.5, beta=6.0, stride=self.stride.tolist(), topk2=tal_topk2
        )  # fmt: skip
        self.bbox_loss = BboxLoss(head.reg_max).to(self.device)

    def bbox_decode(self, anchor_points: Tensor, pred_dist: Tensor) -> Tensor:
        """Corners ``[B, P, 4]`` in strides from points ``[P, 2]`` in strides and bins (or distances) ``[B, P, 4 · reg_max]``."""
        distances = expected_distance(pred_dist) if self.use_dfl else pred_dist
        return distance_to_box(anchor_points.expand(*distances.shape[:2], 2), distances)

    def get_assigned_targets_and_loss(self, preds: Preds, batch: Mapping[str, Any], **assign_kwargs: Any) -> Assigned:
        """Assign the locations, and compute the losses times their gains.

        Args:
            preds: ``scores [B, C, P]``, ``boxes [B, 4 · reg_max, P]`` and ``feats``, the maps, whose sizes count.
            batch: ``batch_idx [N]``, image of each object, in order; ``cls``; ``bboxes`` (cx, cy, w, h) in units of the image.
            assign_kwargs: passed on to the assigner.

        Returns:
            (positives, object indices, boxes in pixels, points in strides, strides), the losses ``[3]``, and their values.
        """
        found: Assigned = _assigned(self, preds, batch, **assign_kwargs)
        return found

    def parse_output(self, preds: Preds | tuple[Any, Preds]) -> Preds:
        """The predictions of a training step, which in evaluation come second."""
        return preds[1] if isinstance(preds, tuple) else preds

    def __call__(self, preds: Preds | tuple[Any, Preds], batch: Mapping[str, Any]) -> Losses:
        """Compute (losses times the number of images ``[3]``, losses by name)."""
        return self.loss(self.parse_output(preds), batch)

    def loss(self, preds: Preds, batch: Mapping[str, Any]) -> Losses:
        """As :meth:`__call__`, of the predictions of a training step."""
        _, loss, items = self.get_assigned_targets_and_loss(preds, batch)
        return loss * preds["boxes"].shape[0], items


class E2ELoss:
    """Two criteria for the two heads of a model that needs no suppression: one to many and one to one.

    Args:
        model: see :class:`v8DetectionLoss`; ``args`` has ``epochs`` too.
        loss_fn: the criterion of both.
    """

    def __init__(self, model: Any, loss_fn: Callable[..., Any] = v8DetectionLoss) -> None:
        self.one2many = loss_fn(model, tal_topk=10)
        self.one2one = loss_fn(model, tal_topk=7, tal_topk2=1)
        self.updates = 0
        self.total = 1.0
        self.o2m = self.o2m_copy = 0.8
        self.o2o = self.total - self.o2m
        self.final_o2m = 0.1

    def __call__(self, preds: Any, batch: Mapping[str, Any]) -> Losses:
        """Compute the weighted losses of both heads ``one2many`` and ``one2one``, and the values of the second."""
        preds = self.one2many.parse_output(preds)
        many, one = self.one2many.loss(preds["one2many"], batch), self.one2one.loss(preds["one2one"], batch)
        return many[0] * self.o2m + one[0] * self.o2o, one[1]

    def update(self) -> None:
        """Go on one epoch: the weight of the first head falls linearly from 0.8 to 0.1."""
        self.updates += 1
        self.o2m = self.decay(self.updates)
        self.o2o = max(self.total - self.o2m, 0)

    def decay(self, x: float) -> float:
        """The weight of the first head after ``x`` epochs."""
        left = max(1 - x / max(self.one2one.hyp.epochs - 1, 1), 0)
        return left * (self.o2m_copy - self.final_o2m) + self.final_o2m


def _by_parts(self: v8DetectionLoss, preds: Preds, batch: Mapping[str, Any], **assign_kwargs: Any) -> Assigned:
    """For class weights, for heads without bins, and for assigners and box losses of the user: each part by itself."""
    scores, bins = preds["scores"].transpose(1, 2), preds["boxes"].transpose(1, 2)
    sizes, strides = map_sizes(preds["feats"]), self.stride.tolist()
    points = grid_points(sizes, strides, device=scores.device, dtype=scores.dtype)
    step = points.stride.unsqueeze(1)
    anchors, side = points.xy / step, [length * strides[0] for length in sizes[0]]
    boxes = self.bbox_decode(anchors, bins)
    truth = padded_targets(batch, len(scores), side, boxes)
    objects = truth.labels.unsqueeze(-1), truth.boxes, truth.valid.unsqueeze(-1)
    _, own, score, positive, index = self.assigner(
        scores.detach().sigmoid(), boxes.detach() * step, points.xy, *objects, **assign_kwargs
    )
    total = score.sum().clamp(min=1)
    entropy = binary_cross_entropy_loss(scores.flatten(0, 1), score.flatten(0, 1), reduction="none")
    if self.class_weights is not None:
        entropy = entropy * self.class_weights.flatten()
    box, dfl = self.bbox_loss(
        bins, boxes, anchors, own / step, score, total, positive, torch.tensor(side, device=scores.device), step
    )
    terms = (box, reduce_loss(entropy, avg_factor=total), dfl)
    loss = torch.stack([term * float(getattr(self.hyp, gain)) for term, gain in zip(terms, GAINS, strict=True)])
    return (positive, index, own, anchors, step), loss, dict(zip(self.loss_names, loss.detach(), strict=False))


_assigned = detection_loss(_by_parts)
