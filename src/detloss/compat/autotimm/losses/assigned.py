"""The parts of ``FCOSLoss`` for locations that are assigned already, and the same parts as autotimm 0.7 computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detloss.checks import check_tensor, shape_of, upcast
from detloss.compat.autotimm.losses.elementary import FocalLoss, channels_last
from detloss.criteria.levels import check_maps
from detloss.functional.focal import sigmoid_focal_loss
from detloss.functional.iou import iou_loss
from detloss.functional.quality import centerness_loss
from detloss.geometry.boxes import distance_to_box
from detloss.reduction import global_count

__all__ = ["Level", "assigned_parts", "check_levels", "strict_parts"]

BACKGROUND, IGNORED = -1, -2
EPS = 1e-7


class Level(NamedTuple):
    """Predictions and targets of R locations of a level.

    Attributes:
        logits: ``[R, C]`` class logits.
        labels: ``[R]`` class indices; −1 and C are background, indices below −1 are ignored.
        distances: ``[R, 4]`` predicted left, top, right, bottom.
        true_distances: ``[R, 4]``; 0 for negatives.
        centers: ``[R]`` centerness logits.
        centerness: ``[R]`` in [0, 1]; 0 for negatives.
        positive: ``[R]`` bool: the location has a class.
    """

    logits: Tensor
    labels: Tensor
    distances: Tensor
    true_distances: Tensor
    centers: Tensor
    centerness: Tensor
    positive: Tensor


def check_levels(
    where: str,
    predictions: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    targets: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    num_classes: int,
) -> list[Level]:
    """Check six lists over levels and lay each level out as rows; targets of negatives, which mean nothing, become 0."""
    cls, reg, centerness = predictions
    channels = {"cls_preds": num_classes, "reg_preds": 4, "centerness_preds": 1, "reg_targets": 4}
    maps = dict(zip(channels, (cls, reg, centerness, targets[1]), strict=True))
    check_maps(where, maps, channels)
    for name, of_levels in (("cls_targets", targets[0]), ("centerness_targets", targets[2])):
        if len(of_levels) != len(cls):
            raise ValueError(f"{where}: {name} must have {len(cls)} levels like cls_preds; got {len(of_levels)}")
        for level, (x, leader) in enumerate(zip(of_levels, cls, strict=True)):
            check_tensor(where, f"{name}[{level}]", x)
            expected = [leader.shape[0], *leader.shape[2:]]
            if list(x.shape) != expected:
                raise ValueError(f"{where}: {name}[{level}] must have shape [B, H, W] = {expected}; got {shape_of(x)}")
    return [_level(*of_level) for of_level in zip(*predictions, *targets, strict=True)]


def _level(cls: Tensor, reg: Tensor, centerness: Tensor, labels: Tensor, true_reg: Tensor, true_centerness: Tensor) -> Level:
    labels = labels.reshape(-1)
    positive = (labels >= 0) & (labels < cls.shape[1])
    distances = upcast(channels_last(reg))
    return Level(
        logits=upcast(channels_last(cls)),
        labels=labels,
        distances=distances,
        true_distances=torch.where(positive.unsqueeze(-1), channels_last(true_reg).to(distances.dtype), 0.0),
        centers=upcast(centerness.reshape(-1)),
        centerness=torch.where(positive, true_centerness.reshape(-1).to(distances.dtype), 0.0),
        positive=positive,
    )


def assigned_parts(levels: Sequence[Level], num_classes: int, alpha: float, gamma: float) -> dict[str, Tensor]:
    """The three parts, each a sum over all levels divided by the number of positives on all ranks, at least 1."""
    whole = Level(*(torch.cat(values) for values in zip(*levels, strict=True)))
    weight = whole.positive.to(whole.distances.dtype)
    count = global_count(weight.sum())
    labels = torch.where(whole.labels == BACKGROUND, num_classes, whole.labels)
    labels = torch.where(labels < 0, IGNORED, labels)
    origin = torch.zeros_like(whole.distances[:, :2])
    boxes, true_boxes = (distance_to_box(origin, d) for d in (whole.distances, whole.true_distances))
    return {
        "cls_loss": sigmoid_focal_loss(whole.logits, labels, alpha=alpha, gamma=gamma, ignore_index=IGNORED, avg_factor=count),
        "reg_loss": iou_loss(boxes, true_boxes, mode="log", eps=EPS, weight=weight, avg_factor=count),
        "centerness_loss": centerness_loss(whole.centers, whole.centerness, weight=weight, avg_factor=count),
    }


def strict_parts(levels: Sequence[Level], num_classes: int, alpha: float, gamma: float) -> dict[str, Tensor]:
    """The three parts with the normalisers, the background and the IoU of autotimm 0.7; see ``FCOSLoss``."""
    focal = FocalLoss(alpha, gamma)
    count = torch.stack([level.positive.sum() for level in levels]).sum().clamp(min=1)
    return {
        "cls_loss": _sum(focal(level.logits, torch.where(level.positive, level.labels, BACKGROUND)) for level in levels),
        "reg_loss": _sum(_product_iou_loss(level) for level in levels) / count,
        "centerness_loss": _sum(_mean_centerness(level) for level in levels) / count,
    }


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def _mean_centerness(level: Level) -> Tensor:
    return centerness_loss(level.centers, level.centerness, weight=level.positive, avg_factor=level.positive.sum())


def _product_iou_loss(level: Level) -> Tensor:
    """Σ −ln IoU over the positives with areas as products of sums of distances, whatever their signs."""
    keep = level.positive.unsqueeze(-1)
    pred, true = (torch.where(keep, d, 1.0) for d in (level.distances, level.true_distances))

    def area(distances: Tensor) -> Tensor:
        return (distances[:, 0] + distances[:, 2]) * (distances[:, 1] + distances[:, 3])

    common = area(torch.minimum(pred, true))
    iou = common / (area(pred) + area(true) - common).clamp(min=EPS)
    return -iou.clamp(min=EPS).log().sum()
