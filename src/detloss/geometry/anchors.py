"""Anchor boxes of dense heads, and proposals: the boxes that ground truth is matched with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detloss.checks import check_option, shape_of
from detloss.geometry.points import grid_points
from detloss.types import Number

__all__ = ["Anchors", "base_anchors", "grid_anchors"]

ORDERS = ("ratio", "size")


@dataclass(frozen=True)
class Anchors:
    """Boxes to match with ground truth: anchors shared by all images, or proposals of every image.

    Attributes:
        boxes: ``[P, 4]`` corners in pixels, the same for all images, or ``[B, P, 4]``, padded proposals per image.
        stride: ``[P]`` pixels per cell of the level of each anchor (1 where there are no levels).
        counts: number of anchors of every level.
        strides: stride of every level.
        valid: ``[B, P]`` bool, ``False`` for padding; ``None``: all are valid.
    """

    boxes: Tensor
    stride: Tensor
    counts: tuple[int, ...]
    strides: tuple[Number, ...]
    valid: Tensor | None = None

    @classmethod
    def of(
        cls,
        boxes: Tensor,
        counts: Sequence[int] | None = None,
        strides: Sequence[Number] | None = None,
        valid: Tensor | None = None,
    ) -> Anchors:
        """Anchors from boxes ``[P, 4]`` or ``[B, P, 4]``, the number per level (one level) and strides (1)."""
        if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4:
            raise ValueError(f"Anchors: boxes must have shape [P, 4] or [B, P, 4]; got {shape_of(boxes)}")
        count = boxes.shape[-2]
        per_level = (count,) if counts is None else tuple(int(n) for n in counts)
        if sum(per_level) != count:
            raise ValueError(f"Anchors: counts must sum to the {count} boxes; got {per_level}")
        steps: tuple[Number, ...] = (1,) * len(per_level) if strides is None else tuple(strides)
        if len(steps) != len(per_level):
            raise ValueError(f"Anchors: expected one stride per level, {len(per_level)}; got {len(steps)}")
        made = cls(boxes, boxes.new_zeros(0), per_level, steps, valid)
        return cls(boxes, made.per_level([float(step) for step in steps]), per_level, steps, valid)

    @property
    def xy(self) -> Tensor:
        """``[P, 2]`` (or ``[B, P, 2]``) centres."""
        return (self.boxes[..., :2] + self.boxes[..., 2:]) / 2

    def per_level(self, values: Sequence[float]) -> Tensor:
        """``[P]``: one number per level, repeated for its anchors, in the dtype and on the device of the boxes."""
        parts = [self.boxes.new_full((count,), value) for count, value in zip(self.counts, values, strict=True)]
        return torch.cat(parts) if parts else self.boxes.new_zeros(0)


def base_anchors(
    sizes: Sequence[Number],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    *,
    order: Literal["ratio", "size"] = "ratio",
    rounded: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Corners ``[A, 4]`` of anchors around the origin: w = size/√ratio, h = size·√ratio, so ratio = h/w.

    Args:
        sizes: square roots of the areas in pixels.
        ratios: height / width.
        order: which runs slowest, the ``"ratio"`` (torchvision, mmdet) or the ``"size"`` (detectron2).
        rounded: corners rounded to whole pixels, as torchvision's anchors are.
        device: device of the result.
        dtype: dtype of the result.
    """
    check_option("base_anchors", "order", order, ORDERS)
    side = torch.tensor([float(size) for size in sizes], device=device, dtype=dtype)
    tall = torch.tensor([float(ratio) for ratio in ratios], device=device, dtype=dtype).sqrt()
    width, height = 1 / tall[:, None] * side, tall[:, None] * side
    if order == "size":
        width, height = width.T, height.T
    half = torch.stack((width, height), dim=-1).reshape(-1, 2) / 2
    corners = torch.cat((-half, half), dim=1)
    return corners.round() if rounded else corners


def grid_anchors(
    maps: Sequence[tuple[int, int]],
    strides: Sequence[Number],
    sizes: Sequence[Sequence[Number]],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    *,
    offset: float = 0.0,
    order: Literal["ratio", "size"] = "ratio",
    rounded: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Anchors:
    """Anchors of all cells: level by level, row by row, cell by cell, and within a cell as :func:`base_anchors` lists them.

    Args:
        maps: (height, width) of every feature map.
        strides: pixels per cell of every level.
        sizes: sizes of the anchors of every level, in pixels.
        ratios: height / width, the same on all levels.
        offset: place of the centre in its cell in cells: 0 is the corner (torchvision, mmdet, detectron2), 0.5 the middle.
        order: see :func:`base_anchors`.
        rounded: see :func:`base_anchors`.
        device: device of the result.
        dtype: dtype of the result.

    >>> grid_anchors([(1, 2)], [8], [[16]], [1.0]).boxes
    tensor([[-8., -8.,  8.,  8.],
            [ 0., -8., 16.,  8.]])
    """
    if not len(maps) == len(strides) == len(sizes):
        raise ValueError(
            f"grid_anchors: expected a stride and sizes per level; "
            f"got {len(maps)} maps, {len(strides)} strides and {len(sizes)} sizes"
        )
    levels = []
    for shape, stride, level_sizes in zip(maps, strides, sizes, strict=True):
        base = base_anchors(level_sizes, ratios, order=order, rounded=rounded, device=device, dtype=dtype)
        centre = grid_points([shape], [stride], offset, device=device, dtype=dtype).xy
        levels.append((centre.repeat(1, 2)[:, None] + base).reshape(-1, 4))
    boxes = torch.cat(levels) if levels else torch.zeros(0, 4, device=device, dtype=dtype)
    return Anchors.of(boxes, [len(level) for level in levels], tuple(strides))
