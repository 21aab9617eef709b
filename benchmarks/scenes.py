"""Anchors, locations, objects and predictions for the assigners."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detloss.geometry import Anchors, Points, grid_anchors, grid_points
from detloss.types import Target

__all__ = ["CLASSES", "STRIDES", "Scene", "anchors_of", "objects", "predictions", "pyramid", "scene", "three_levels"]

STRIDES = (8, 16, 32, 64, 128)
CLASSES = 80


class Scene(NamedTuple):
    """A batch: how many images of which size, and how many objects each."""

    images: int
    height: int
    width: int
    count: int


def scene(size: str, height: int = 800, width: int = 1216) -> Scene:
    """The batch of a size, ``"tiny"``, ``"quick"`` or ``"full"``; the last with images of that many pixels."""
    sizes = {"tiny": Scene(2, 128, 160, 5), "quick": Scene(2, 448, 640, 20)}
    return sizes.get(size, Scene(8, height, width, 50))


def pyramid(height: int, width: int, strides: tuple[int, ...] = STRIDES) -> list[tuple[int, int]]:
    """Sizes of the feature maps of an image."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def anchors_of(height: int, width: int) -> Anchors:
    """One square anchor of 8 strides per cell: 20267 for 800 x 1216."""
    return grid_anchors(pyramid(height, width), STRIDES, [[8 * stride] for stride in STRIDES], [1.0])


def objects(images: int, count: int, height: int, width: int) -> list[Target]:
    """Boxes whose sides are log-uniform from 16 to 320 pixels, some over the edge of the image.

    Cut off at the image their centres would be as far from one anchor as from another, and which of two that are equally
    far is a candidate is open in the dense algorithm.
    """
    made: list[Target] = []
    for _ in range(images):
        centre = torch.rand(count, 2) * torch.tensor([width, height])
        half = 8 * 20 ** torch.rand(count, 2)
        boxes = torch.cat((centre - half, centre + half), dim=1)
        made.append({"boxes": boxes, "labels": torch.randint(CLASSES, (count,))})
    return made


def predictions(images: int, points: Points) -> tuple[Tensor, Tensor]:
    """Logits ``[B, P, C]`` and boxes about right for some objects and about nothing for most."""
    logits = torch.randn(images, len(points.xy), CLASSES) * 2 - 3
    sides = torch.rand(images, len(points.xy), 4) * 6 * points.stride[:, None]
    return logits, torch.cat((points.xy - sides[..., :2], points.xy + sides[..., 2:]), dim=-1)


def three_levels(height: int, width: int) -> Points:
    """The locations of YOLO: strides 8, 16, 32."""
    return grid_points(pyramid(height, width, STRIDES[:3]), STRIDES[:3])
