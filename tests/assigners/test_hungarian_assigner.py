"""Hungarian matching has the least cost of all one-to-one matches, found by trying them all."""

from __future__ import annotations

import math
import sys
from itertools import permutations
from typing import Any

import pytest
import torch
from fcos_cases import HostReads, Target, no_value_checks, random_targets
from torch import Tensor

import detloss
from detloss.assigners.hungarian import HungarianAssigner, least_cost_match, match_operator, repeat_targets
from detloss.assigners.targets import pad_targets
from detloss.functional import giou_loss
from detloss.geometry import convert_boxes, pairwise_iou
from detloss.types import Assignment

SIZE = (48, 64)  # height, width


def scene(counts: list[int], queries: int = 7, classes: int = 4) -> tuple[list[Target], Tensor, Tensor]:
    """Targets, logits ``[B, Q, C]`` and predicted corners in pixels."""
    corners = torch.rand(len(counts), queries, 2, 2, dtype=torch.float64) * torch.tensor([64.0, 48.0])
    boxes = torch.cat((corners.amin(2), corners.amax(2)), -1)
    return random_targets(counts, num_classes=3), torch.randn(len(counts), queries, classes, dtype=torch.float64) * 2, boxes


def costs(options: dict[str, Any], target: Target, scores: Tensor, boxes: Tensor, size: tuple[int, int] = SIZE) -> Tensor:
    """``[G, Q]`` the formula, pair by pair."""
    table = torch.zeros(len(target["boxes"]), len(boxes), dtype=torch.float64)
    unit = torch.tensor([size[1], size[0]] * 2, dtype=torch.float64)
    for g, (box, label) in enumerate(zip(target["boxes"].double(), target["labels"].tolist(), strict=True)):
        for q in range(len(boxes)):
            if options.get("cls_cost", "softmax") == "softmax":
                cls = -scores[q].softmax(0)[label].item()
            else:
                p, alpha, gamma = scores[q, label].sigmoid().item(), options.get("alpha", 0.25), options.get("gamma", 2.0)
                cls = -alpha * (1 - p) ** gamma * math.log(p) + (1 - alpha) * p**gamma * math.log(1 - p)
            centres = [convert_boxes(b / unit, "xyxy", "cxcywh") for b in (boxes[q], box)]
            overlap = giou_loss(boxes[q : q + 1], box[None]).item()
            l1 = (centres[0] - centres[1]).abs().sum().item()
            table[g, q] = (
                options.get("cls_weight", 1.0) * cls
                + options.get("l1_weight", 5.0) * l1
                + options.get("iou_weight", 2.0) * overlap
            )
    return table


def best_match(table: Tensor) -> list[int]:
    """gt_index by trying all one-to-one matches."""
    objects, queries = table.shape
    index = [-1] * queries
    if objects <= queries:
        chosen = min(permutations(range(queries), objects), key=lambda qs: sum(float(table[g, q]) for g, q in enumerate(qs)))
        pairs = list(enumerate(chosen))
    else:
        chosen = min(permutations(range(objects), queries), key=lambda gs: sum(float(table[g, q]) for q, g in enumerate(gs)))
        pairs = [(g, q) for q, g in enumerate(chosen)]
    for g, q in pairs:
        index[q] = g
    return index


OPTIONS = [
    {},
    {"cls_cost": "focal", "cls_weight": 2.0},
    {"cls_cost": "focal", "alpha": 0.6, "gamma": 1.5, "l1_weight": 0.0},
    {"cls_weight": 0.0, "iou_weight": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("queries", [3, 6])
def test_the_match_is_the_cheapest_of_all(options: dict[str, Any], queries: int) -> None:
    targets, scores, boxes = scene([4, 0, 1, 5], queries)
    got = HungarianAssigner(**options)(None, targets, scores, boxes, SIZE)
    for image, target in enumerate(targets):
        if len(target["boxes"]):
            assert got.gt_index[image].tolist() == best_match(costs(options, target, scores[image], boxes[image]))
    assert got.num_pos == min(4, queries) + 1 + min(5, queries) and not got.ignore.any()


def test_the_solver_finds_what_scipy_finds_on_costs_made_by_hand() -> None:
    inf = math.inf
    cost = torch.tensor(
        [
            [[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]],  # 1 + 2 + 2 = 5
            [[4.0, inf, 3.0], [2.0, inf, 5.0], [3.0, inf, 2.0]],  # the second query is out: 2 + 2 = 4
            [[1.0, 2.0, 3.0], [inf, inf, inf], [inf, inf, inf]],  # one object
            [[inf, inf, inf], [inf, inf, inf], [inf, inf, inf]],
        ]
    )
    assert least_cost_match(cost).tolist() == [[1, 0, 2], [1, -1, 2], [0, -1, -1], [-1, -1, -1]]
    assert torch.equal(match_operator(cost), least_cost_match(cost))
    torch.library.opcheck(match_operator, (cost,))


def as_pairs(index: Tensor) -> list[tuple[int, int]]:
    return sorted((q, g) for q, g in enumerate(index.tolist()) if g >= 0)


def same(a: Assignment, b: Assignment) -> bool:
    return torch.equal(a.gt_index, b.gt_index) and torch.equal(a.ignore, b.ignore) and torch.equal(a.quality, b.quality)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_query_that_is_not_finite_never_matches_and_the_others_stay_optimal(value: float) -> None:
    targets, scores, boxes = scene([3, 3], 6)
    clean = HungarianAssigner()(None, targets, scores, boxes, SIZE)
    first, second = clean.gt_index[0].argmax(), (clean.gt_index[0] == 0).long().argmax()
    scores[0, first, 3], boxes[0, second, 0] = value, value
    got = HungarianAssigner()(None, targets, scores, boxes, SIZE)
    rest = [q for q in range(6) if q not in (first, second)]
    expected = best_match(costs({}, targets[0], scores[0, rest], boxes[0, rest]))
    assert got.gt_index[0, rest].tolist() == expected and (got.gt_index[0, [first, second]] == -1).all()
    assert torch.equal(got.gt_index[1], clean.gt_index[1]) and got.quality.isfinite().all()
    scores[0, rest[:3]] = value  # one query for three objects
    table = costs({}, targets[0], scores[0, rest[3:]], boxes[0, rest[3:]])
    got = HungarianAssigner()(None, targets, scores, boxes, SIZE)
    assert as_pairs(got.gt_index[0]) == [(rest[3], int(table[:, 0].argmin()))]
    boxes[0] = value
    assert not HungarianAssigner()(None, targets, scores, boxes, SIZE).positive[0].any()


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_every_chunk_size_gives_the_same_bits(options: dict[str, Any]) -> None:
    targets, scores, boxes = scene([9, 0, 40, 1], 23)
    scores, boxes = scores.float(), boxes.float()
    scores[:, 5:9], boxes[:, 5:9] = scores[:, 5:6], boxes[:, 5:6]  # ties
    whole = HungarianAssigner(**options)(None, targets, scores, boxes, SIZE)
    for budget in (1, 23 * 24 * 4, 5 * 23 * 24 * 4, 100 * 23 * 24 * 4):
        assert same(HungarianAssigner(**options, memory_budget=budget)(None, targets, scores, boxes, SIZE), whole)


def test_layers_of_a_decoder_go_through_at_once() -> None:
    targets, _, _ = scene([3, 0, 5])
    layers = [scene([3, 0, 5])[1:] for _ in range(4)]
    padded = repeat_targets(pad_targets(targets, layers[0][1]), 4)
    scores, boxes = (torch.cat(x) for x in zip(*layers, strict=True))
    whole = HungarianAssigner()(None, padded, scores, boxes, SIZE)
    for layer, (logits, predicted) in enumerate(layers):
        one, rows = HungarianAssigner()(None, targets, logits, predicted, SIZE), slice(3 * layer, 3 * layer + 3)
        assert same(one, Assignment(whole.gt_index[rows], whole.ignore[rows], whole.quality[rows]))


def test_image_sizes_are_the_unit_of_the_distance() -> None:
    targets, scores, boxes = scene([4, 4])
    sizes = torch.tensor([[10, 400], [400, 10]])
    got = HungarianAssigner(cls_weight=0.0, iou_weight=0.0)(None, targets, scores, boxes, sizes)
    for image, size in enumerate(sizes.tolist()):
        table = costs({"cls_weight": 0.0, "iou_weight": 0.0}, targets[image], scores[image], boxes[image], tuple(size))
        assert got.gt_index[image].tolist() == best_match(table)
    with pytest.raises(ValueError, match=r"image_sizes must be \(height, width\) or have shape \[2, 2\]; got \[3\]"):
        HungarianAssigner()(None, targets, scores, boxes, (1, 2, 3))


def test_crowds_regions_and_quality() -> None:
    targets, scores, boxes = scene([4])
    targets[0]["iscrowd"] = torch.tensor([0, 1, 0, 0])
    targets[0]["ignore_boxes"] = torch.tensor([[0.0, 0.0, 64.0, 24.0]])
    got = HungarianAssigner()(None, targets, scores, boxes, SIZE)
    table = costs({}, targets[0], scores[0], boxes[0])[[0, 2, 3]]
    assert got.gt_index[0].tolist() == [(0, 2, 3)[g] if g >= 0 else -1 for g in best_match(table)]
    regions = torch.cat((targets[0]["ignore_boxes"], targets[0]["boxes"][1:2])).double()
    low = torch.maximum(boxes[0, :, None, :2], regions[:, :2])
    common = (torch.minimum(boxes[0, :, None, 2:], regions[:, 2:]) - low).clamp(min=0).prod(-1)
    covered = (common > 0.5 * (boxes[0, :, 2:] - boxes[0, :, :2]).prod(-1, keepdim=True)).any(1)
    assert torch.equal(got.ignore[0], covered & (got.gt_index[0] < 0)) and covered.any() and not covered.all()
    iou = pairwise_iou(boxes[0], targets[0]["boxes"].double())
    assert got.quality is not None
    for q, g in enumerate(got.gt_index[0].tolist()):
        assert got.quality[0, q] == (iou[q, g] if g >= 0 else 0)


@pytest.mark.parametrize(
    "box", [[0.0, 0.0, 0.0, 0.0], [-1e6, -1e6, 1e6, 1e6], [9.0, 9.0, 9.001, 9.001], [900.0, 900.0, 950.0, 950.0]]
)
def test_strange_objects_are_matched_like_others(box: list[float]) -> None:
    targets, scores, boxes = scene([3])
    targets[0]["boxes"][1:] = torch.tensor(box)  # and twice the same
    boxes[0, 0] = torch.tensor([30.0, 30.0, 10.0, 10.0])  # a prediction turned inside out
    got = HungarianAssigner()(None, targets, scores.float(), boxes.float(), SIZE)
    table = costs({}, targets[0], scores[0], boxes[0])
    index = got.gt_index[0].tolist()
    total = sum(float(table[g, q]) for q, g in enumerate(index) if g >= 0)
    best = sum(float(table[g, q]) for q, g in enumerate(best_match(table)) if g >= 0)
    assert got.num_pos == 3 and total == pytest.approx(best, rel=1e-5)


def test_a_box_turned_inside_out_costs_more_than_one_far_away() -> None:
    target = {"boxes": torch.tensor([[8.0, 8.0, 32.0, 32.0]]), "labels": torch.tensor([0])}
    boxes = torch.tensor([[[30.0, 30.0, 10.0, 10.0], [40.0, 40.0, 60.0, 60.0]]])  # 1 + 2 · 20/24 against 1 + 1728/2704
    got = HungarianAssigner(l1_weight=0.0)(None, [target], torch.zeros(1, 2, 2), boxes)
    assert got.gt_index.tolist() == [[-1, 0]]


def test_no_images_no_objects_no_queries_and_a_thousand_objects() -> None:
    targets, scores, boxes = scene([0, 0])
    assert HungarianAssigner()(None, targets, scores, boxes).negative.all()
    assert HungarianAssigner()(None, [], scores[:0], boxes[:0]).gt_index.shape == (0, 7)
    assert HungarianAssigner()(None, targets, scores[:, :0], boxes[:, :0]).gt_index.shape == (2, 0)
    many = HungarianAssigner(memory_budget=2**20)(None, random_targets([1000, 0]), scores, boxes, SIZE)
    assert many.positive.tolist() == [[True] * 7, [False] * 7]


def test_low_precision_is_upcast_and_gradients_are_left_alone() -> None:
    targets, scores, boxes = scene([4, 2])
    half, low = scores.half().requires_grad_(), boxes.bfloat16()
    got = HungarianAssigner()(None, targets, half, low, SIZE)
    assert same(got, HungarianAssigner()(None, targets, half.float(), low.float(), SIZE))
    assert got.quality is not None and got.quality.dtype == torch.float32 and not got.quality.requires_grad


def test_the_host_waits_only_for_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores, boxes = scene([4, 0, 2])
    padded = pad_targets(targets, boxes)
    monkeypatch.setattr("detloss.assigners.hungarian.least_cost_match", lambda cost: torch.zeros(3, 7, dtype=torch.long))
    with no_value_checks(monkeypatch), HostReads() as reads:
        HungarianAssigner()(None, padded, scores, boxes, SIZE)
    assert reads.found == []


def test_it_compiles_without_a_graph_break() -> None:
    targets, scores, boxes = scene([4, 0, 2])
    torch.compiler.reset()
    assigner = HungarianAssigner()
    compiled = torch.compile(lambda *given: assigner(None, targets, *given, SIZE), fullgraph=True, backend="eager")
    assert same(compiled(scores, boxes), assigner(None, targets, scores, boxes, SIZE))


def test_scipy_is_asked_for_by_name_and_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    targets, scores, boxes = scene([1])
    with pytest.raises(ImportError, match=r"needs SciPy, which is not installed: pip install scipy.*detloss\[detr\]"):
        HungarianAssigner()(None, targets, scores, boxes)
    assert HungarianAssigner()(None, random_targets([0]), scores, boxes).num_pos == 0


def test_config_and_reasons() -> None:
    made = detloss.build({"type": "HungarianAssigner", "cls_cost": "focal"})
    assert "cls_cost='focal', cls_weight=1.0, l1_weight=5.0, iou_weight=2.0, iou='giou', alpha=0.25, gamma=2.0" in repr(made)
    targets, scores, boxes = scene([2])
    scores[0, 0] = math.nan
    (name, mask), *_ = made.conditions(None, pad_targets(targets, boxes), 0, scores, boxes).items()
    assert name == "query with finite predictions" and mask.tolist() == [[False] + [True] * 6] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cls_cost": "sigmoid"}, "cls_cost must be one of 'softmax', 'focal'; got 'sigmoid'"),
        ({"iou": "gious"}, "iou must be one of 'iou', 'giou', 'diou', 'ciou'; got 'gious'. Did you mean 'giou'"),
        ({"l1_weight": -1}, "l1_weight must be a finite number >= 0; got -1"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\]; got 1.5"),
    ],
)
def test_bad_options_are_value_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HungarianAssigner(**options)


def test_a_label_that_is_the_no_object_column() -> None:
    targets, scores, boxes = scene([1])
    targets[0]["labels"][:] = 3
    with pytest.raises(ValueError, match=r"must be in 0…2 \(num_classes=3\); got 3"):
        HungarianAssigner()(None, targets, scores, boxes)
    assert HungarianAssigner("focal")(None, targets, scores, boxes).num_pos == 1
