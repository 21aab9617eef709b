"""Targets and losses inside autotimm's detectors, and its loss modules, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloss.assigners.fcos import FCOSAssigner
from detloss.assigners.targets import pad_targets
from detloss.checks import upcast
from detloss.compat.arguments import relative_eps
from detloss.criteria.levels import map_sizes, matched_labels, rows
from detloss.functional.focal import sigmoid_focal_loss
from detloss.functional.iou import giou_loss, iou_loss
from detloss.functional.quality import centerness_loss
from detloss.geometry.boxes import box_to_distance, centerness, distance_to_box
from detloss.geometry.points import grid_points

__all__ = ["detection_loss", "module_forward", "yolox_step"]

Function = Callable[..., Any]
Ranges = Sequence[tuple[float, float]]
HOME = "autotimm.losses.detection"
EPS = 1e-7
EVERY_SIZE = (-1.0, float("inf"))


def detection_loss(original: Function) -> Function:
    """``compute_fcos_detection_loss``: all images and levels assigned at once, no dense class targets."""

    def compute_fcos_detection_loss(
        cls_outputs: list[Tensor],
        reg_outputs: list[Tensor],
        centerness_outputs: list[Tensor] | None,
        target_boxes: list[Tensor],
        target_labels: list[Tensor],
        strides: tuple[int, ...],
        regress_ranges: tuple[tuple[float, float], ...],
        focal_loss_fn: Any,
        num_classes: int,
        reg_loss_fn: Any = None,
    ) -> dict[str, Any]:
        if not (_is_summed(focal_loss_fn, "FocalLoss") and (reg_loss_fn is None or _is_summed(reg_loss_fn, "GIoULoss"))):
            found: dict[str, Any] = original(
                cls_outputs, reg_outputs, centerness_outputs, target_boxes, target_labels, strides, regress_ranges,
                focal_loss_fn, num_classes, reg_loss_fn,
            )  # fmt: skip
            return found
        maps = cls_outputs, reg_outputs, centerness_outputs
        return _losses(maps, target_boxes, target_labels, strides, regress_ranges, focal_loss_fn, reg_loss_fn)

    return compute_fcos_detection_loss


def yolox_step(original: Function) -> Function:
    """``YOLOXDetector.training_step``: the same, each location belonging to the smallest box around it on every level."""

    def training_step(self: Any, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        own = all(getattr(type(self), name).__module__ == "autotimm.tasks.yolox_detector" for name in METHODS)
        if not (own and _is_summed(self.focal_loss, "FocalLoss") and _is_summed(self.giou_loss, "GIoULoss")):
            found: Tensor = original(self, batch, batch_idx)
            return found
        cls_outputs, reg_outputs = self(batch["image"])
        maps, ranges = (cls_outputs, reg_outputs, None), [EVERY_SIZE] * len(cls_outputs)
        losses = _losses(maps, batch["boxes"], batch["labels"], self.strides, ranges, self.focal_loss, self.giou_loss)
        cls_loss, reg_loss = self.cls_loss_weight * losses["cls_loss"], self.reg_loss_weight * losses["reg_loss"]
        total: Tensor = cls_loss + reg_loss
        self.log("train/loss", total, prog_bar=True)
        self.log("train/cls_loss", cls_loss)
        self.log("train/reg_loss", reg_loss)
        self.log("train/num_pos", float(losses["num_pos"]))
        if self._logging_config.log_learning_rate:
            groups = getattr(self.optimizers(), "param_groups", None)
            if groups is not None:
                self.log("train/lr", groups[0]["lr"], on_step=True, on_epoch=False)
        return total

    return training_step


METHODS = ("_compute_targets_per_level", "_compute_iou_loss")


def module_forward(ours: type[nn.Module]) -> Callable[[Function], Function]:
    """``forward`` of a loss module whose options have the same names in ``ours``; theirs without reduction.

    Without reduction theirs leaves ignored elements out, and ours has 0 in their place.
    """

    def make(original: Function) -> Function:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (ours.forward if self.reduction in ("mean", "sum") else original)(self, *args, **kwargs)

        return forward

    return make


def _is_summed(loss: Any, name: str) -> bool:
    """Whether ``loss`` is autotimm's own module of that name, with a sum."""
    return type(loss).__name__ == name and type(loss).__module__ == HOME and loss.reduction == "sum"


def _losses(
    maps: tuple[list[Tensor], list[Tensor], list[Tensor] | None],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    strides: Sequence[int],
    ranges: Ranges,
    focal: Any,
    giou: Any,
) -> dict[str, Any]:
    """The three losses over the number of positives, and that number, for which the host waits once."""
    logits = rows(maps[0])
    levels, classes = len(maps[0]), logits.shape[2]
    points = grid_points(map_sizes(maps[0]), strides[:levels], device=logits.device)
    targets = [{"boxes": own, "labels": label} for own, label in zip(boxes, labels, strict=True)]
    truth = pad_targets(targets, points.xy, classes)
    found = FCOSAssigner(ranges[:levels], range_bounds="half_open")(points, truth)
    image, prior = found.positive.nonzero(as_tuple=True)
    count = max(len(image), 1)
    true = box_to_distance(points.xy[prior], truth.boxes[image, found.gt_index[image, prior]])
    distances = upcast(rows(maps[1])[image, prior])
    origin = torch.zeros_like(distances[:, :2])
    pred, target = distance_to_box(origin, distances), distance_to_box(origin, true.to(distances.dtype))
    index = matched_labels(truth, found, classes).flatten()
    if giou is None:
        overlap = iou_loss(pred, target, mode="log", eps=EPS, avg_factor=count)
    else:
        overlap = giou_loss(pred, target, eps=relative_eps(giou.eps), avg_factor=count)
    return {
        "cls_loss": sigmoid_focal_loss(logits.flatten(0, 1), index, alpha=focal.alpha, gamma=focal.gamma, avg_factor=count),
        "reg_loss": overlap,
        "centerness_loss": _centerness(maps[2], image, prior, true, count),
        "num_pos": count,
    }


def _centerness(maps: list[Tensor] | None, image: Tensor, prior: Tensor, true: Tensor, count: int) -> Tensor:
    if maps is None:
        return torch.zeros((), device=image.device)
    return centerness_loss(upcast(rows(maps)[image, prior, 0]), centerness(true), avg_factor=count)
