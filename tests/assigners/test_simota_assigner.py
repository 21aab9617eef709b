"""SimOTA is the rule of YOLOX, written as loops over objects and locations, and mmdet's by its options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_f
from dynamic_k_cases import STRANGE, ignored, inside, iou_of, match, near_centre, real_objects, scene, sigma
from fcos_cases import Target, random_boxes
from torch import Tensor

import detloss
from detloss.assigners.simota import SimOTAAssigner
from detloss.assigners.targets import pad_targets
from detloss.geometry import Points, grid_points, pairwise_iou

MMDET = {"center_radius": 2.5, "candidates": "box_or_centre", "confidence": "product", "eps": 1e-7}


def loops(
    points: Points, target: Target, scores: Tensor, boxes: Tensor, objectness: Tensor | None, options: dict[str, Any]
) -> tuple[list[int], list[bool]]:
    """gt_index and ignore of one image."""
    radius, mmdet = options.get("center_radius", 1.5), options.get("candidates") == "box_or_centre"
    real = real_objects(target)
    objects, labels = target["boxes"][real].tolist(), target["labels"][real].tolist()
    places = [(x, y, radius * s) for (x, y), s in zip(points.xy.tolist(), points.stride.tolist(), strict=True)]
    logits, predicted = scores.tolist(), boxes.tolist()

    def region(g: int, p: int, both: bool) -> bool:
        x, y, reach = places[p]
        near = near_centre(x, y, objects[g], reach)
        if not mmdet:
            return near
        return near and inside(x, y, objects[g]) if both else near or inside(x, y, objects[g])

    def cost(g: int, p: int, iou: float) -> float:
        total = 0.0
        for c, logit in enumerate(logits[p]):
            score = sigma(logit)
            if objectness is not None:
                score *= sigma(float(objectness[p]))
                score = score if options.get("confidence") == "product" else math.sqrt(score)
            total -= math.log(score if c == labels[g] else 1 - score)
        total -= 3 * math.log(iou + options.get("eps", 1e-8))
        return total + (0 if region(g, p, True) else 1e6)

    pool = [p for p in range(len(places)) if any(region(g, p, False) for g in range(len(objects)))]
    most = options.get("candidate_topk", 10)
    taken = match(len(objects), pool, lambda g, p, _: iou_of(predicted[p], objects[g]), cost, most)
    return [real[taken[p]] if p in taken else -1 for p in range(len(places))], ignored(points, target, taken)


@pytest.mark.parametrize("options", [{}, MMDET, {"candidate_topk": 3}, {"candidates": "box_or_centre"}])
@pytest.mark.parametrize("with_objectness", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loops_on_random_objects(seed: int, with_objectness: bool, options: dict[str, Any]) -> None:
    torch.manual_seed(seed)
    points, targets, scores, boxes, objectness = scene([6, 0, 9, 1])
    targets[0]["ignore_boxes"], targets[2]["iscrowd"] = random_boxes(2), torch.tensor([0, 1] + [0] * 7)
    seen = objectness if with_objectness else None
    got = SimOTAAssigner(**options)(points, targets, scores, boxes, seen)
    assert got.positive.sum() > 10
    for image, target in enumerate(targets):
        index, ignore = loops(points, target, scores[image], boxes[image], None if seen is None else seen[image], options)
        assert got.gt_index[image].tolist() == index and got.ignore[image].tolist() == ignore


@pytest.mark.parametrize("options", [{}, MMDET])
@pytest.mark.parametrize("box", STRANGE)
def test_strange_and_touching_objects_follow_the_rule(box: list[float], options: dict[str, Any]) -> None:
    points, targets, scores, boxes, objectness = scene([3])
    targets[0]["boxes"] = torch.tensor([[8.0, 8.0, 24.0, 24.0], box, [24.0, 8.0, 40.0, 24.0]])
    got = SimOTAAssigner(**options)(points, targets, scores, boxes, objectness)
    assert got.gt_index[0].tolist() == loops(points, targets[0], scores[0], boxes[0], objectness[0], options)[0]
    assert got.quality is not None and got.quality.isfinite().all() and got.positive.any()


def yolox(points: Points, target: Target, scores: Tensor, boxes: Tensor, objectness: Tensor) -> Tensor:
    """``[P]`` the published rule for one image, with its dense costs and penalty."""
    objects, labels = target["boxes"], target["labels"]
    centre = (objects[:, :2] + objects[:, 2:]) / 2
    near = ((points.xy - centre[:, None]).abs() < 1.5 * points.stride[:, None]).all(-1)
    pool = near.any(0)
    probability = (scores[pool].sigmoid() * objectness[pool, None].sigmoid()).sqrt().expand(len(objects), -1, -1)
    one_hot = torch_f.one_hot(labels, scores.shape[1]).to(probability.dtype)[:, None].expand_as(probability)
    iou = pairwise_iou(objects, boxes[pool])
    cost = torch_f.binary_cross_entropy(probability, one_hot, reduction="none").sum(-1)
    cost = cost - 3 * (iou + 1e-8).log() + 1e6 * ~near[:, pool]
    taken = torch.zeros_like(cost)
    for g, k in enumerate(iou.topk(min(10, iou.shape[1])).values.sum(1).int().clamp(min=1).tolist()):
        taken[g, cost[g].topk(k, largest=False).indices] = 1
    several = taken.sum(0) > 1
    if several.any():
        best = cost[:, several].argmin(0)
        taken[:, several] = 0
        taken[best, several] = 1
    index = torch.full((len(pool),), -1)
    index[pool] = torch.where(taken.sum(0) > 0, taken.argmax(0), -1)
    return index


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_published_rule_image_by_image_in_float32(seed: int) -> None:
    torch.manual_seed(seed)
    points = grid_points([(32, 32), (16, 16), (8, 8)], [8, 16, 32])
    targets = [{"boxes": random_boxes(n, extent=256.0), "labels": torch.randint(20, (n,))} for n in (25, 3)]
    count = len(points.xy)
    scores, objectness = torch.randn(2, count, 20) - 2, torch.randn(2, count)
    boxes = points.xy.repeat(1, 2) + torch.cat((-torch.rand(2, count, 2), torch.rand(2, count, 2)), -1) * 60
    got = SimOTAAssigner()(points, targets, scores, boxes, objectness)
    for image, target in enumerate(targets):
        expected = yolox(points, target, scores[image], boxes[image], objectness[image])
        assert torch.equal(got.gt_index[image], expected) and (expected >= 0).sum() > 2


ROW = grid_points([(1, 5)], [8])  # x = 4, 12, 20, 28, 36, y = 4
OBJECT = torch.tensor([8.0, 0.0, 32.0, 8.0])  # centre (20, 4): with 1.5 strides 8 < x < 32


def one(boxes: Tensor, scores: Tensor | None = None, **options: Any) -> list[int]:
    scores = torch.zeros(1, len(ROW.xy), 1) if scores is None else scores
    target = {"boxes": OBJECT[None], "labels": torch.tensor([0])}
    return SimOTAAssigner(**options)(ROW, [target], scores, boxes[None]).gt_index[0].tolist()


def test_k_is_the_whole_part_of_the_summed_overlaps() -> None:
    boxes = OBJECT.repeat(5, 1)
    assert one(boxes) == [-1, 0, 0, 0, -1]  # three candidates with IoU 1: k = 3
    boxes[1, 0] = 20.0  # IoU 0.5: k = ⌊2.5⌋ = 2, the cheapest are the exact ones
    assert one(boxes) == [-1, -1, 0, 0, -1]
    assert one(torch.zeros(5, 4)) == [-1, 0, -1, -1, -1]  # k = max(0, 1), and the first of equals
    assert one(OBJECT.repeat(5, 1), candidate_topk=2) == [-1, 0, 0, -1, -1]


def test_costs_are_those_of_the_formula() -> None:
    boxes, scores = OBJECT.repeat(5, 1), torch.zeros(1, 5, 1)
    boxes[1:4, 0] = torch.tensor([26.0, 20.0, 8.0])  # IoU 0.25, 0.5, 1: k = 1
    assert one(boxes) == [-1, -1, -1, 0, -1]
    scores[0, 3, 0] = -2.1  # −ln σ(−2.1) = 2.216 > ln 2 + 3 ln 2 − … : 2.216 against 0.693 + 2.079 = 2.772
    assert one(boxes, scores) == [-1, -1, -1, 0, -1]
    scores[0, 3, 0] = -2.8  # −ln σ(−2.8) = 2.859 > 2.772
    assert one(boxes, scores) == [-1, -1, 0, -1, -1]
    assert one(boxes, scores, cls_weight=0.5) == [-1, -1, -1, 0, -1]


def test_a_location_outside_the_region_is_taken_only_when_none_inside_is_left() -> None:
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [28.0, 0.0, 36.0, 8.0]])  # centres at x = 4 and 32
    target = {"boxes": boxes, "labels": torch.tensor([0, 0])}
    predicted = boxes[1].repeat(1, 5, 1)
    got = SimOTAAssigner(center_radius=0.75)(ROW, [target], torch.zeros(1, 5, 1), predicted)
    assert got.gt_index.tolist() == [[0, -1, -1, 1, 1]]  # the first keeps x = 4, k = 3 of the second stays within its reach
    assert got.quality is not None and got.quality.tolist() == [[0, 0, 0, 1, 1]]


@pytest.mark.parametrize("with_objectness", [True, False])
@pytest.mark.parametrize("size", [1.0, 50.0, 1e4])
def test_saturated_scores_keep_their_digits(size: float, with_objectness: bool) -> None:
    logits = torch.tensor([size, -size, 0.0], dtype=torch.float64)
    seen = torch.tensor([[size], [-size], [0.5]], dtype=torch.float64) if with_objectness else None
    positive, negative = SimOTAAssigner()._entropies(logits, seen)
    low_positive, low_negative = SimOTAAssigner()._entropies(logits.float(), None if seen is None else seen.float())
    for values, low in ((positive, low_positive), (negative, low_negative)):
        assert values.isfinite().all() and (values >= 0).all() and values.max() <= 100
        torch.testing.assert_close(low.double(), values, rtol=1e-6, atol=1e-7)


def test_probabilities_are_the_root_or_the_product() -> None:
    logits, seen = torch.zeros(1, dtype=torch.float64), torch.full((1,), math.log(0.32 / 0.68), dtype=torch.float64)
    for confidence, p in (("root", 0.4), ("product", 0.16)):  # σ(0) σ(seen) = 0.5 · 0.32 = 0.16
        positive, negative = SimOTAAssigner(confidence=confidence)._entropies(logits, seen)
        assert positive.item() == pytest.approx(-math.log(p)) and negative.item() == pytest.approx(-math.log(1 - p))


def test_reasons_for_objects_without_positives() -> None:
    points = grid_points([(4, 4)], [8])
    targets = pad_targets(
        [{"boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0], [90.0, 90.0, 99.0, 99.0]]), "labels": torch.tensor([0, 0])}], points.xy
    )
    scores, boxes = torch.zeros(1, 16, 1), torch.zeros(1, 16, 4)
    scores[0, 0] = math.nan
    found = SimOTAAssigner().conditions(points, targets, 0, scores, boxes)
    assert [(name, mask.sum(1).tolist()) for name, mask in found.items()] == [
        ("location within 1.5 strides of the centre", [4, 0]),
        ("location with finite predictions", [15, 15]),
    ]
    (name, mask), *_ = SimOTAAssigner(**MMDET).conditions(points, targets, 0).items()
    assert name == "location inside the box or within 2.5 strides of the centre" and mask.sum(1).tolist() == [9, 0]


def test_it_is_built_from_a_config() -> None:
    made = detloss.build({"type": "SimOTAAssigner", **MMDET})
    assert repr(made) == (
        "SimOTAAssigner(center_radius=2.5, candidate_topk=10, cls_weight=1.0, iou_weight=3.0, candidates='box_or_centre', "
        "confidence='product', eps=1e-07, memory_budget=67108864)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center_radius": 0}, "center_radius must be a finite number > 0; got 0"),
        ({"candidate_topk": 0}, "candidate_topk must be an integer >= 1; got 0"),
        ({"candidate_topk": 1.5}, "candidate_topk must be an integer >= 1; got 1.5"),
        ({"iou_weight": -1.0}, "iou_weight must be a finite number >= 0; got -1"),
        ({"candidates": "center"}, "candidates must be one of 'centre', 'box_or_centre'; got 'center'. Did you mean 'centre'"),
        ({"confidence": "sqrt"}, "confidence must be one of 'root', 'product'"),
    ],
)
def test_bad_options_are_value_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimOTAAssigner(**options)


def test_objectness_of_another_shape() -> None:
    points, targets, scores, boxes, objectness = scene([1])
    with pytest.raises(ValueError, match=r"objectness must have shape \[1, 84\]; got \[1, 84, 1\]"):
        SimOTAAssigner()(points, targets, scores, boxes, objectness[..., None])
