"""Dense criteria do not care for the order of the levels, nor for where in the image the objects lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from criteria_cases import NUM_CLASSES, fresh, gradients, pixel_targets
from criteria_cases_atss import random_levels
from fcos_cases import STRIDES
from torch import Tensor

from detloss import (
    ATSSLoss,
    CenterNetLoss,
    Criterion,
    FCOSLoss,
    GFLLoss,
    LossDict,
    PseudoSampler,
    RetinaNetLoss,
    RPNLoss,
    YOLOv8Loss,
    YOLOXLoss,
)

BINS = 8
RANGES = {8: (-1.0, 64.0), 16: (64.0, 128.0), 32: (128.0, float("inf"))}
EXTENTS = {8: (0.0, 24.0), 16: (24.0, 48.0), 32: (48.0, float("inf"))}
# An object within several anchors of one size overlaps them alike: which is the best would be left to rounding.
THRESHOLDS = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.4, "neg_iou_thr": 0.3, "match_low_quality": False}
ANCHORS = {"anchor_ratios": (0.5, 2.0), "assigner": THRESHOLDS}


@dataclass(frozen=True)
class Dense:
    """A criterion over levels: ``make(strides)``, and the channels of its maps."""

    name: str
    make: Callable[[Sequence[int]], Criterion]
    channels: tuple[int, ...]
    spread: float = 1.0

    def maps(self, images: int) -> list[list[Tensor]]:
        return [random_levels(images, c, torch.float64, self.spread) for c in self.channels]


def sizes(strides: Sequence[int]) -> list[list[int]]:
    return [[2 * s, 3 * s] for s in strides]


DENSE = [
    Dense(
        "fcos",
        lambda s: FCOSLoss(NUM_CLASSES, strides=s, regress_ranges=[RANGES[x] for x in s], center_sampling_radius=1.5),
        (NUM_CLASSES, 4, 1),
    ),
    Dense("retinanet", lambda s: RetinaNetLoss(NUM_CLASSES, s, anchor_sizes=sizes(s), **ANCHORS), (4 * NUM_CLASSES, 16), 0.3),
    Dense(
        "rpn",
        lambda s: RPNLoss(s, anchor_sizes=sizes(s), **ANCHORS, sampler=PseudoSampler(), num_classes=NUM_CLASSES),
        (4, 16),
        0.3,
    ),
    Dense("atss", lambda s: ATSSLoss(NUM_CLASSES, s), (NUM_CLASSES, 4, 1)),
    Dense("gfl", lambda s: GFLLoss(NUM_CLASSES, s, reg_max=BINS), (NUM_CLASSES, 4 * (BINS + 1))),
    Dense(
        "yolov8",
        lambda s: YOLOv8Loss(
            NUM_CLASSES, strides=s, reg_max=BINS, assigner={"type": "TaskAlignedAssigner", "enlarge_small": False}
        ),
        (NUM_CLASSES, 4 * BINS),
    ),
    Dense("yolox", lambda s: YOLOXLoss(NUM_CLASSES, strides=s), (NUM_CLASSES, 4, 1), 0.5),
    Dense("centernet", lambda s: CenterNetLoss(NUM_CLASSES, s, [EXTENTS[x] for x in s]), (NUM_CLASSES, 2, 2)),
]
every = pytest.mark.parametrize("dense", DENSE, ids=lambda dense: dense.name)


def distinct_targets(counts: Sequence[int]) -> list[dict[str, Any]]:
    """Objects off the grid, so that no distances or overlaps tie."""
    return [{**t, "boxes": t["boxes"].double() + torch.rand(len(t["boxes"]), 4).double() * 0.1} for t in pixel_targets(counts)]


def equal(a: LossDict, b: LossDict) -> None:
    assert a.metrics["num_pos"] > 0
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-11, atol=1e-14)


@every
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_reordering_the_levels_with_their_strides(dense: Dense, order: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    maps, targets = dense.maps(3), distinct_targets([4, 0, 3])
    expected = dense.make(STRIDES)(*maps, targets)
    shuffled = [[kind[i] for i in order] for kind in maps]
    got = dense.make([STRIDES[i] for i in order])(*shuffled, targets)
    equal(got, expected)
    back = [order.index(i) for i in range(len(order))]
    ours, theirs = gradients(got.total_loss, shuffled), gradients(expected.total_loss, maps)
    levels = len(order)
    for kind in range(len(maps)):
        for level in range(levels):
            a, b = ours[kind * levels + back[level]], theirs[kind * levels + level]
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


@every
@pytest.mark.parametrize("steps", [(1, 0), (0, 1), (1, 1)])
def test_moving_image_and_objects_by_a_stride(dense: Dense, steps: tuple[int, int]) -> None:
    """The content of the maps moves by ``steps`` cells of the coarsest level over a constant border."""
    torch.manual_seed(2)
    maps, targets = dense.maps(2), distinct_targets([4, 3])
    right, down = steps
    shift = 32.0 * torch.tensor([right, down, right, down], dtype=torch.float64)

    def place(x: Tensor, dx: int, dy: int) -> Tensor:
        cells = x.shape[-1] // 2  # cells of this level in 32 pixels
        wide = x.new_full((*x.shape[:2], 3 * x.shape[2], 3 * x.shape[3]), -0.5)
        top, left = cells * (dy + 1), cells * (dx + 1)
        wide[..., top : top + x.shape[2], left : left + x.shape[3]] = x
        return wide

    here, there = fresh(maps, lambda x: place(x, 0, 0)), fresh(maps, lambda x: place(x, right, down))
    start = [{**t, "boxes": t["boxes"] + 32} for t in targets]
    moved = [{**t, "boxes": t["boxes"] + shift} for t in start]
    criterion = dense.make(STRIDES)
    equal(criterion(*there, moved), criterion(*here, start))
