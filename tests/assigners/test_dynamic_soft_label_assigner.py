"""Dynamic soft label assignment is the rule of RTMDet, written as loops over objects and locations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from dynamic_k_cases import STRANGE, ignored, inside, iou_of, match, real_objects, scene, sigma
from fcos_cases import Target, random_boxes
from torch import Tensor

import detloss
from detloss.assigners.dynamic_soft_label import DynamicSoftLabelAssigner
from detloss.assigners.targets import pad_targets
from detloss.geometry import Points, grid_points


def loops(points: Points, target: Target, scores: Tensor, boxes: Tensor, options: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """gt_index and ignore of one image."""
    real = real_objects(target)
    objects, labels = target["boxes"][real].tolist(), target["labels"][real].tolist()
    places, strides = points.xy.tolist(), points.stride.tolist()
    logits, predicted = scores.tolist(), boxes.tolist()

    def cost(g: int, p: int, iou: float) -> float:
        total = 0.0
        for c, logit in enumerate(logits[p]):
            soft, score = (iou if c == labels[g] else 0.0), sigma(logit)
            total -= (soft * math.log(score) + (1 - soft) * math.log(1 - score)) * (soft - score) ** 2
        x1, y1, x2, y2 = objects[g]
        distance = math.dist(places[p], ((x1 + x2) / 2, (y1 + y2) / 2)) / strides[p]
        total -= options.get("iou_weight", 3.0) * math.log(iou + 1e-7)
        power = distance - options.get("soft_center_radius", 3.0)
        return total + (10**power if power <= 38 else math.inf)

    pool = [p for p, (x, y) in enumerate(places) if any(inside(x, y, box) for box in objects)]
    taken = match(len(objects), pool, lambda g, p, _: iou_of(predicted[p], objects[g]), cost, options.get("topk", 13))
    return [real[taken[p]] if p in taken else -1 for p in range(len(places))], ignored(points, target, taken)


@pytest.mark.parametrize("options", [{}, {"topk": 4}, {"soft_center_radius": 1.0, "iou_weight": 1.0}])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_loops_on_random_objects(seed: int, options: dict[str, Any]) -> None:
    torch.manual_seed(seed)
    points, targets, scores, boxes, _ = scene([6, 0, 9, 1])
    targets[0]["ignore_boxes"], targets[2]["iscrowd"] = random_boxes(2), torch.tensor([0, 1] + [0] * 7)
    got = DynamicSoftLabelAssigner(**options)(points, targets, scores, boxes)
    assert got.positive.sum() > 10
    for image, target in enumerate(targets):
        index, ignore = loops(points, target, scores[image], boxes[image], options)
        assert got.gt_index[image].tolist() == index and got.ignore[image].tolist() == ignore


@pytest.mark.parametrize("box", STRANGE)
def test_strange_and_touching_objects_follow_the_rule(box: list[float]) -> None:
    points, targets, scores, boxes, _ = scene([3])
    targets[0]["boxes"] = torch.tensor([[8.0, 8.0, 24.0, 24.0], box, [24.0, 8.0, 40.0, 24.0]])
    got = DynamicSoftLabelAssigner()(points, targets, scores, boxes)
    assert got.gt_index[0].tolist() == loops(points, targets[0], scores[0], boxes[0], {})[0]
    assert got.quality is not None and got.quality.isfinite().all() and got.positive.any()


ROW = grid_points([(1, 5)], [8])  # x = 4, 12, 20, 28, 36, y = 4
OBJECT = torch.tensor([0.0, 0.0, 40.0, 8.0])  # centre (20, 4): at 2, 1, 0, 1, 2 strides


def one(boxes: Tensor, scores: Tensor | None = None, **options: Any) -> list[int]:
    scores = torch.zeros(1, 5, 1) if scores is None else scores
    target = {"boxes": OBJECT[None], "labels": torch.tensor([0])}
    return DynamicSoftLabelAssigner(**options)(ROW, [target], scores, boxes[None]).gt_index[0].tolist()


def test_the_centre_decides_among_equal_predictions() -> None:
    halves = torch.tensor([0.0, 0.0, 20.0, 8.0]).repeat(5, 1)  # five of IoU 0.5: k = ⌊2.5⌋ = 2
    assert one(halves) == [-1, 0, 0, -1, -1]  # at 0 strides and, the first of equals, at 1
    assert one(halves, topk=2) == [-1, -1, 0, -1, -1]


def test_a_soft_centre_yields_to_overlap_where_the_radius_is_large() -> None:
    boxes = torch.zeros(5, 4)
    boxes[0] = torch.tensor([0.0, 0.0, 20.0, 8.0])  # IoU 0.5 at 2 strides, else 0
    assert one(boxes) == [0, -1, -1, -1, -1]  # 10^−1 + 3 ln 2 against 10^−3 + 3 · 16.1
    assert one(boxes, soft_center_radius=0.0) == [-1, -1, 0, -1, -1]  # 10² + 3 ln 2 against 1 + 3 · 16.1


def test_the_soft_label_is_the_overlap_of_the_class() -> None:
    boxes = torch.tensor([0.0, 0.0, 20.0, 8.0]).repeat(5, 1)
    scores = torch.full((1, 5, 1), 6.0)
    scores[0, 3] = 0.0  # σ = IoU = 0.5 costs nothing; σ(6) costs 0.497² · 3.0025 = 0.74, more than 10^−2 − 10^−3
    assert one(boxes, scores, topk=3) == [-1, -1, -1, 0, -1]


def test_an_object_out_of_reach_gets_nothing() -> None:
    far = torch.tensor([[0.0, 0.0, 800.0, 8.0]])  # its centre is 45 strides and more from every location
    target = {"boxes": far, "labels": torch.tensor([0])}
    for dtype in (torch.float32, torch.float64):
        boxes = far.to(dtype).repeat(1, 5, 1)
        scores = torch.zeros(1, 5, 1, dtype=dtype)
        assert DynamicSoftLabelAssigner()(ROW, [target], scores, boxes).num_pos == 0
        assert DynamicSoftLabelAssigner(soft_center_radius=10.0)(ROW, [target], scores, boxes).num_pos == 3  # 400 − x < 48 · 8


def test_reasons_for_objects_without_positives() -> None:
    targets = pad_targets([{"boxes": torch.stack((OBJECT, OBJECT + 100)), "labels": torch.tensor([0, 0])}], ROW.xy)
    boxes = torch.zeros(1, 5, 4)
    boxes[0, 2, 0] = math.nan
    found = DynamicSoftLabelAssigner().conditions(ROW, targets, 0, torch.zeros(1, 5, 1), boxes)
    assert [(name, mask.sum(1).tolist()) for name, mask in found.items()] == [
        ("location inside the box", [5, 0]),
        ("location with finite predictions", [4, 4]),
    ]


def test_it_is_built_from_a_config() -> None:
    made = detloss.build({"type": "dynamic_soft_label", "topk": 5})
    assert repr(made) == "DynamicSoftLabelAssigner(soft_center_radius=3.0, topk=5, iou_weight=3.0, memory_budget=67108864)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soft_center_radius": -1}, "soft_center_radius must be a finite number >= 0; got -1"),
        ({"topk": True}, "topk must be an integer >= 1; got True"),
        ({"iou_weight": float("nan")}, "iou_weight must be a finite number >= 0; got nan"),
    ],
)
def test_bad_options_are_value_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicSoftLabelAssigner(**options)
