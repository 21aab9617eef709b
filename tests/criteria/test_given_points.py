"""Criteria of single locations take the points of a model, in the place of those that their options describe."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from detloss import ATSSLoss, FCOSLoss, GFLLoss
from detloss.geometry import Points, grid_points

STRIDES, SIZES, CLASSES = (8, 16), ((6, 5), (3, 3)), 3
CRITERIA: list[tuple[Any, tuple[int, ...]]] = [
    (lambda offset: FCOSLoss(CLASSES, strides=STRIDES, point_offset=offset, distance_unit="stride"), (4, 1)),
    (lambda offset: ATSSLoss(CLASSES, STRIDES, anchor_offset=offset, anchor_scale=4, box_coding="distance"), (4, 1)),
    (lambda offset: GFLLoss(CLASSES, STRIDES, reg_max=4, anchor_offset=offset, anchor_scale=4), (20,)),
]


def outputs(channels: tuple[int, ...]) -> list[list[torch.Tensor]]:
    return [[torch.rand(2, count, *size) for size in SIZES] for count in (CLASSES, *channels)]


def targets() -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[4.0, 3.0, 30.0, 33.0], [12.0, 20.0, 39.0, 41.0]])
    return [{"boxes": boxes, "labels": torch.tensor([2, 0])}, {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.long)}]


@pytest.mark.parametrize(("make", "channels"), CRITERIA)
def test_given_points_replace_those_of_the_options(make: Any, channels: tuple[int, ...]) -> None:
    maps, objects = outputs(channels), targets()
    expected = make(0.25)(*maps, objects)
    given = make(0.5)(*maps, objects, grid_points(SIZES, STRIDES, 0.25))
    assert float(expected.metrics["num_pos"]) > 0
    for name, value in expected.items():
        torch.testing.assert_close(given[name], value, rtol=1e-6, atol=0)
    assert not torch.equal(make(0.5)(*maps, objects).total_loss, expected.total_loss)


@pytest.mark.parametrize(("make", "channels"), CRITERIA)
def test_points_that_are_not_one_per_cell_are_an_error(make: Any, channels: tuple[int, ...]) -> None:
    maps, points = outputs(channels), grid_points(SIZES, STRIDES)
    with pytest.raises(ValueError, match=r"points must be one per cell, \[30, 9\] on the levels.*got \[30\]"):
        make(0.5)(*maps, targets(), grid_points(SIZES[:1], STRIDES[:1]))
    with pytest.raises(ValueError, match=r"with xy \[39, 2\]; got \[30, 9\] with xy \[38, 2\]"):
        make(0.5)(*maps, targets(), Points(points.xy[1:], points.stride, points.sizes, points.strides))
