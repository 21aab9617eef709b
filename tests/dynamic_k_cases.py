"""Scenes for the dynamic-k assigners, and their rule as loops over the pairs of one image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fcos_cases import SIZES, STRIDES, Target, random_targets
from torch import Tensor

from detloss.geometry import Points, grid_points

Box = Sequence[float]
Cost = Callable[[int, int, float], float]
CLASSES = 3
STRANGE = [
    [-1e6, -1e6, 1e6, 1e6],  # giant
    [19.9995, 19.9995, 20.0005, 20.0005],  # tiny, around a location
    [25.0, 25.0, 25.001, 25.001],  # tiny, between locations
    [20.0, 8.0, 20.0, 40.0],  # no width
    [20.0, 20.0, 20.0, 20.0],  # no extent
    [900.0, 900.0, 990.0, 990.0],  # off the image
    [-60.0, -60.0, 6.0, 6.0],  # mostly off the image
]


def scene(counts: Sequence[int], dtype: torch.dtype = torch.float64) -> tuple[Points, list[Target], Tensor, Tensor, Tensor]:
    """Points, targets, class logits, predicted boxes (half of them near an object) and objectness logits of a batch."""
    points = grid_points(SIZES, STRIDES, dtype=dtype)
    targets = random_targets(counts)
    images, count = len(counts), len(points.xy)
    boxes = points.xy.repeat(1, 2) + torch.cat((-torch.rand(images, count, 2), torch.rand(images, count, 2)), -1) * 30
    for image, target in enumerate(targets):
        if counts[image]:
            near = torch.rand(count) < 0.5
            chosen = target["boxes"][torch.randint(counts[image], (count,))].to(boxes.dtype)
            boxes[image, near] = (chosen + torch.randn(count, 4) * 2)[near].to(boxes.dtype)
    return points, targets, torch.randn(images, count, CLASSES, dtype=dtype) * 3, boxes, torch.randn(images, count, dtype=dtype)


def iou_of(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 for a box turned inside out."""
    if a[2] < a[0] or a[3] < a[1]:
        return 0.0
    common = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else float(list(a) == list(b))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def near_centre(x: float, y: float, box: Box, reach: float) -> bool:
    return abs(x - (box[0] + box[2]) / 2) < reach and abs(y - (box[1] + box[3]) / 2) < reach


def inside(x: float, y: float, box: Box) -> bool:
    return box[0] < x < box[2] and box[1] < y < box[3]


def match(objects: int, pool: Sequence[int], iou: Cost, cost: Cost, most: int) -> dict[int, int]:
    """Prior → object by dynamic k among the priors of the pool."""
    claims: dict[int, list[int]] = {}
    table = {(g, p): cost(g, p, iou(g, p, 0.0)) for g in range(objects) for p in pool}
    for g in range(objects):
        overlaps = sorted((iou(g, p, 0.0) for p in pool), reverse=True)[:most]
        k = max(int(sum(overlaps)), 1)
        for p in sorted(pool, key=lambda p: (table[g, p], p))[:k]:
            if table[g, p] < math.inf:
                claims.setdefault(p, []).append(g)
    every = range(objects)
    return {p: own[0] if len(own) == 1 else min(every, key=lambda g: (table[g, p], g)) for p, own in claims.items()}


def ignored(points: Points, target: Target, taken: dict[int, int]) -> list[bool]:
    """Whether every point lies in an ignore box or a crowd of the image without belonging to an object."""
    regions = target.get("ignore_boxes", torch.zeros(0, 4)).tolist()
    crowd = target.get("iscrowd", torch.zeros(len(target["boxes"]))).tolist()
    regions += [box for box, flag in zip(target["boxes"].tolist(), crowd, strict=True) if flag]
    return [p not in taken and any(inside(x, y, box) for box in regions) for p, (x, y) in enumerate(points.xy.tolist())]


def real_objects(target: Target) -> list[int]:
    """Rows of the target that are no crowds."""
    crowd = target.get("iscrowd", torch.zeros(len(target["boxes"]))).tolist()
    return [i for i, flag in enumerate(crowd) if not flag]
