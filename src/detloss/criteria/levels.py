"""Predictions of dense heads: maps of every level, checked and laid out as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_float, check_positive, shape_of
from detloss.criteria.base import class_target, kept_rows
from detloss.geometry.points import Points
from detloss.types import Assignment, Number

__all__ = [
    "check_images",
    "check_maps",
    "check_points",
    "check_strides",
    "class_loss",
    "map_sizes",
    "matched_labels",
    "matched_rows",
    "rows",
]


def check_strides(where: str, strides: object) -> tuple[Number, ...]:
    """One positive number per level, as a tuple."""
    if not isinstance(strides, Sequence) or isinstance(strides, str) or not strides:
        raise ValueError(f"{where}: strides must be a sequence with one number per level; got {strides!r}")
    for stride in strides:
        check_positive(where, strides=stride)
    return tuple(strides)


def check_maps(
    where: str, maps: Mapping[str, Sequence[Tensor]], channels: Mapping[str, int], strides: Sequence[Number] | None = None
) -> None:
    """Raise unless every entry of ``maps`` is a list of maps ``[B, channels, H, W]``, alike in B, H, W and number of levels.

    Args:
        where: name of the criterion, for the message.
        maps: the predictions by the name of their argument; the first one sets B, H and W.
        channels: channels of each.
        strides: at most so many levels are allowed.
    """
    first = next(iter(maps))
    for name, levels_of in maps.items():
        if not isinstance(levels_of, (list, tuple)):
            raise TypeError(f"{where}: {name} must be a list of feature maps, one per level; got {type(levels_of).__name__}")
    levels = len(maps[first])
    if strides is not None and not 1 <= levels <= len(strides):
        raise ValueError(f"{where}: expected 1 to {len(strides)} levels, one per stride {tuple(strides)}; got {levels}")
    if not levels:
        raise ValueError(f"{where}: expected at least one level in {first}; got none")
    for name, levels_of in maps.items():
        if len(levels_of) != levels:
            raise ValueError(f"{where}: {name} must have {levels} levels like {first}; got {len(levels_of)}")
        for level, (x, leader) in enumerate(zip(levels_of, maps[first], strict=True)):
            check_float(where, f"{name}[{level}]", x)
            check_float(where, f"{first}[{level}]", leader)
            expected = [*maps[first][0].shape[:1], channels[name], *leader.shape[2:]]
            if x.ndim != 4 or list(x.shape) != expected:
                raise ValueError(
                    f"{where}: {name}[{level}] must have shape [B, {channels[name]}, H, W] = {expected}; got {shape_of(x)}"
                )


def check_images(where: str, truth: PaddedTargets, images: int) -> None:
    """Raise ``ValueError`` unless there is one target per image."""
    if len(truth.boxes) != images:
        raise ValueError(f"{where}: expected one target per image, {images} of them; got {len(truth.boxes)}")


def check_points(where: str, points: Points, maps: Sequence[Tensor]) -> None:
    """Raise ``ValueError`` unless there is one location per cell of every level."""
    expected = [height * width for height, width in map_sizes(maps)]
    if list(points.counts) != expected or points.xy.shape != (sum(expected), 2):
        raise ValueError(
            f"{where}: points must be one per cell, {expected} on the levels, with xy [{sum(expected)}, 2]; "
            f"got {list(points.counts)} with xy {shape_of(points.xy)}"
        )


def map_sizes(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """(height, width) of every level."""
    return [(x.shape[2], x.shape[3]) for x in maps]


def rows(maps: Sequence[Tensor], per_cell: int = 1) -> Tensor:
    """Maps ``[B, A·C, H, W]`` of all levels as ``[B, P, C]``: level by level, cell by cell, then the A anchors of a cell."""
    if per_cell == 1:
        return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    split = (x.unflatten(1, (per_cell, x.shape[1] // per_cell)).permute(0, 3, 4, 1, 2) for x in maps)
    return torch.cat([x.flatten(1, 3) for x in split], dim=1)


def matched_labels(truth: PaddedTargets, assignment: Assignment, num_classes: int) -> Tensor:
    """Class index ``[B, P]`` of the matched object; background C for negatives."""
    if truth.labels.shape[1] == 0:
        return torch.full_like(assignment.gt_index, num_classes)
    labels = truth.labels.gather(1, assignment.gt_index.clamp(min=0))
    return torch.where(assignment.positive, labels, num_classes)


def matched_rows(values: Tensor, assignment: Assignment) -> Tensor:
    """Rows ``[B, P, D]`` of ``values [B, G, D]`` (boxes …) of the matched object; 0 for negatives."""
    images, count = assignment.gt_index.shape
    if values.shape[1] == 0:
        return values.new_zeros(images, count, values.shape[2])
    index = assignment.gt_index.clamp(min=0).unsqueeze(-1).expand(images, count, values.shape[2])
    return torch.where(assignment.positive.unsqueeze(-1), values.gather(1, index), 0)


def class_loss(
    loss: nn.Module, logits: Tensor, truth: PaddedTargets, assignment: Assignment, score: Tensor, avg_factor: Tensor
) -> Tensor:
    """The classification term over all priors that are not ignored: ``logits [B, P, C]`` against the matched class.

    Losses that learn a quality get ``score [B, P]`` with it.
    """
    classes = logits.shape[-1]
    labels = matched_labels(truth, assignment, classes)
    kept = kept_rows(truth, assignment, logits.dtype)
    target = class_target(loss, labels, score)
    term: Tensor = loss(logits.reshape(-1, classes), target, weight=kept, avg_factor=avg_factor)
    return term
