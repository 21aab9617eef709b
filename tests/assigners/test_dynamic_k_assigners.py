"""What SimOTA and dynamic soft label assignment share: chunks, bad predictions, strange objects, ties, ignored regions."""

from __future__ import annotations

import math

import pytest
import torch
from dynamic_k_cases import CLASSES, match, scene
from fcos_cases import HostReads, Target, no_value_checks, random_boxes, random_targets
from live_bytes import LiveBytes
from torch import Tensor

from detloss.assigners.dynamic_k import DynamicKAssigner, cheapest
from detloss.assigners.dynamic_soft_label import DynamicSoftLabelAssigner
from detloss.assigners.predictions import fold_sum
from detloss.assigners.simota import SimOTAAssigner
from detloss.assigners.targets import pad_targets
from detloss.geometry import Anchors, grid_points
from detloss.types import Assignment

KINDS = [SimOTAAssigner, DynamicSoftLabelAssigner]
Kind = type[DynamicKAssigner]


def same(a: Assignment, b: Assignment) -> bool:
    return torch.equal(a.gt_index, b.gt_index) and torch.equal(a.ignore, b.ignore) and torch.equal(a.quality, b.quality)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_chunk_size_gives_the_same_bits(kind: Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    points, targets, scores, boxes, _ = scene([7, 3, 0, 12], torch.float32)
    scores, boxes = scores.to(dtype), boxes.to(dtype)
    whole = kind(memory_budget=2**30)(points, targets, scores, boxes)
    assert whole.positive.sum() > 10
    per_object = len(points.xy) * 24 * 4
    for budget in (1, 1000, per_object, 3 * per_object, 5 * per_object, 17 * per_object, 30 * per_object):
        assert same(kind(memory_budget=budget)(points, targets, scores, boxes), whole), budget
        with no_value_checks(monkeypatch):  # nothing is left out beforehand, as on an accelerator
            assert same(kind(memory_budget=budget)(points, targets, scores, boxes), whole), budget


@pytest.mark.parametrize("kind", KINDS)
def test_equal_predictions_tie_wherever_they_stand(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    points = grid_points([(9, 9)], [8])
    centre = (torch.rand(37, 2) * 10).floor() * 8  # on corners of cells: four locations are as near as can be
    objects = torch.cat((centre - 12, centre + 12), 1)
    target = {"boxes": objects, "labels": torch.zeros(37, dtype=torch.long)}
    scores = torch.linspace(-6, 6, 40)[:, None, None].expand(-1, 81, 5)
    boxes = torch.tensor([-1e4, -1e4, 1e4, 1e4]).expand(40, 81, -1)  # the same overlap with all, next to none
    squared = (points.xy - centre[:, None]).square().sum(-1).tolist()
    near = ((points.xy - centre[:, None]).abs() < 12).all(-1)
    pool = near.any(0).nonzero()[:, 0].tolist()

    def cost(g: int, p: int, iou: float) -> float:
        return squared[g][p] if kind is DynamicSoftLabelAssigner else float(not near[g, p])

    taken = match(37, pool, lambda g, p, iou: 0.0, cost, 10)
    for step in (1, 2, 3, 5, 36, 37):
        with no_value_checks(monkeypatch):
            got = kind(iou_weight=0.0, memory_budget=40 * step * 81 * 24 * 4)(points, [target] * 40, scores, boxes)
        assert got.gt_index.tolist() == [[taken.get(p, -1) for p in range(81)]] * 40


@pytest.mark.parametrize("kind", KINDS)
def test_temporaries_stay_within_the_memory_budget(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    points, budget = grid_points([(32, 32)], [8]), 2**19
    targets = pad_targets(random_targets([200, 200], extent=256.0), points.xy)
    boxes = points.xy.repeat(1, 2) + torch.tensor([-20.0, -20.0, 20.0, 20.0])
    scores = torch.randn(2, 1024, CLASSES)
    with no_value_checks(monkeypatch), LiveBytes() as measured:
        kind(memory_budget=budget)(points, targets, scores, boxes.expand(2, -1, -1))
    per_prior = 2 * 1024 * 8 * 8
    assert measured.peak <= budget + per_prior
    with no_value_checks(monkeypatch), LiveBytes() as unlimited:
        kind(memory_budget=2**40)(points, targets, scores, boxes.expand(2, -1, -1))
    assert unlimited.peak > 30 * budget


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_prediction_that_is_not_finite_never_matches_and_disturbs_no_other(kind: Kind, value: float) -> None:
    points, targets, scores, boxes, objectness = scene([5, 5])
    clean = kind()(points, targets, scores, boxes)
    taken = clean.positive[0].nonzero()[:, 0]
    scores[0, taken[0], 1], boxes[0, taken[1], 2] = value, value
    got = kind()(points, targets, scores, boxes)
    assert (got.gt_index[0, taken[:2]] == -1).all() and got.positive[0].any() and got.quality.isfinite().all()
    assert torch.equal(got.gt_index[1], clean.gt_index[1]) and torch.equal(got.quality[1], clean.quality[1])
    keep = torch.ones(len(points.xy), dtype=torch.bool)
    keep[taken[:2]] = False  # the same as if these locations were not there
    rest = Anchors.of(points.xy.repeat(1, 2)[keep])
    rest = Anchors(rest.boxes, points.stride[keep], (int(keep.sum()),), (1,))
    assert torch.equal(kind()(rest, targets, scores[:, keep], boxes[:, keep]).gt_index[0], got.gt_index[0, keep])
    boxes[0] = value
    assert kind()(points, targets, scores, boxes).num_pos == clean.positive[1].sum()
    if kind is SimOTAAssigner:
        objectness[1] = value
        assert SimOTAAssigner()(points, targets, scores, boxes, objectness).num_pos == 0


@pytest.mark.parametrize("kind", KINDS)
def test_logits_at_the_end_of_float32_are_no_nan(kind: Kind) -> None:
    points, targets, scores, boxes, _ = scene([4], torch.float32)
    got = kind()(points, targets, scores.sign() * 3e38, boxes)
    assert got.quality.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_objects_does_not_matter(kind: Kind) -> None:
    points, targets, scores, boxes, _ = scene([9, 4])
    order = [torch.randperm(9), torch.randperm(4)]
    moved = [{key: value[o] for key, value in t.items()} for t, o in zip(targets, order, strict=True)]
    got, other = kind()(points, targets, scores, boxes), kind()(points, moved, scores, boxes)
    for image in (0, 1):
        back = torch.cat((order[image], torch.tensor([-1])))[other.gt_index[image]]
        assert torch.equal(back, got.gt_index[image])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_objects_and_equal_predictions(kind: Kind) -> None:
    points = grid_points([(4, 4)], [8])
    target = {"boxes": torch.tensor([[0.0, 0.0, 32.0, 32.0]] * 3), "labels": torch.zeros(3, dtype=torch.long)}
    boxes = torch.tensor([0.0, 0.0, 32.0, 32.0]).repeat(1, 16, 1)
    got = kind()(points, [target], torch.zeros(1, 16, 1), boxes)
    assert set(got.gt_index.unique().tolist()) == {-1, 0}  # the first object gets what all three claim
    lone = {key: value[:1] for key, value in target.items()}
    assert same(got, kind()(points, [lone], torch.zeros(1, 16, 1), boxes))
    middle = [p for p in range(16) if p in (5, 6, 9, 10)]
    assert (got.gt_index[0, middle] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extent", [64.0, 4.0])
def test_a_thousand_objects_in_one_image_and_none_in_the_other(kind: Kind, extent: float) -> None:
    points, _, scores, boxes, _ = scene([1, 1], torch.float32)
    targets = random_targets([1000, 0], extent=extent)
    got = kind(memory_budget=2**20)(points, targets, scores, boxes)
    assert got.positive[0].any() and not got.positive[1].any()
    assert same(got, kind()(points, targets, scores, boxes))


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_no_objects_and_no_locations(kind: Kind) -> None:
    points, targets, scores, boxes, _ = scene([0, 0])
    got = kind()(points, targets, scores, boxes)
    assert got.negative.all() and got.quality.sum() == 0
    assert kind()(points, [], scores[:0], boxes[:0]).gt_index.shape == (0, 84)
    assert kind()(grid_points([(0, 3)], [8]), random_targets([2]), scores[:1, :0], boxes[:1, :0]).gt_index.shape == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_regions_crowds_and_padding(kind: Kind) -> None:
    points, targets, scores, boxes, _ = scene([4, 2])
    plain = kind()(points, targets, scores, boxes)
    regions: list[Target] = [{**targets[0], "ignore_boxes": torch.tensor([[0.0, 0.0, 40.0, 40.0]])}, targets[1]]
    got = kind()(points, regions, scores, boxes)
    covered = ((points.xy > 0) & (points.xy < 40)).all(1)
    assert torch.equal(got.gt_index, plain.gt_index)
    assert torch.equal(got.ignore[0], covered & ~plain.positive[0]) and not got.ignore[1].any()
    crowd: list[Target] = [{**targets[0], "iscrowd": torch.tensor([0, 1, 1, 0])}, targets[1]]
    without = [{key: value[[0, 3]] for key, value in targets[0].items()}, targets[1]]
    kept, expected = kind()(points, crowd, scores, boxes), kind()(points, without, scores, boxes)
    assert torch.equal(kept.gt_index[0], torch.tensor([0, 3, -1])[expected.gt_index[0]])
    proposals = Anchors.of(points.xy.repeat(2, 1, 2), points.counts, points.strides, torch.rand(2, 84) < 0.7)
    some = kind()(proposals, targets, scores, boxes)
    assert not (some.positive & ~proposals.valid).any() and torch.equal(some.ignore, ~proposals.valid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_predictions_are_upcast(kind: Kind, dtype: torch.dtype) -> None:
    points, targets, scores, boxes, _ = scene([5, 2], torch.float32)
    scores, boxes = scores.to(dtype), boxes.to(dtype)
    got = kind()(points, targets, scores, boxes)
    assert got.quality.dtype == torch.float32 and same(got, kind()(points, targets, scores.float(), boxes.float()))


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_in_any_layout_and_with_gradient(kind: Kind) -> None:
    points, targets, scores, boxes, _ = scene([5, 2])
    expected = kind()(points, targets, scores, boxes)
    strided = scores.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    got = kind()(points, targets, strided, boxes.requires_grad_())
    assert same(got, expected) and not got.quality.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_never_waits_for_a_value(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    points, targets, scores, boxes, _ = scene([5, 0, 3])
    targets[0]["iscrowd"], targets[2]["ignore_boxes"] = torch.tensor([0, 1, 0, 0, 0]), random_boxes(2)
    with no_value_checks(monkeypatch), HostReads() as reads:
        kind(memory_budget=100_000)(points, targets, scores, boxes)
    assert reads.found == []


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_without_a_graph_break(kind: Kind) -> None:
    points, targets, scores, boxes, objectness = scene([5, 0, 3])
    more = (objectness,) if kind is SimOTAAssigner else ()
    torch.compiler.reset()
    assigner = kind(memory_budget=200_000)
    compiled = torch.compile(lambda *given: assigner(points, targets, *given), fullgraph=True, backend="eager")
    assert same(compiled(scores, boxes, *more), assigner(points, targets, scores, boxes, *more))


def test_the_cheapest_are_the_first_among_equals_and_never_infinite() -> None:
    cost = torch.tensor([[2.0, 1.0, 2.0, 1.0, 2.0], [math.inf, 5.0, math.inf, math.inf, math.inf]])
    for k, expected in ((1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])):
        got = cheapest(cost, torch.tensor([k, k]), 4)
        assert got[0].nonzero()[:, 0].tolist() == expected and got[1].nonzero()[:, 0].tolist() == [1]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 80, 81])
def test_a_sum_by_halves_is_a_sum(count: int) -> None:
    x = torch.rand(4, count, dtype=torch.float64)
    torch.testing.assert_close(fold_sum(x), x.sum(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s, b: (None, b), TypeError, "scores .* and boxes .* are required"),
        (lambda s, b: (s, None), TypeError, "are required"),
        (lambda s, b: (s.long(), b), TypeError, "scores must have a floating-point dtype; got torch.int64"),
        (lambda s, b: (s[0], b), ValueError, r"scores must have shape \[B, P, C\] with P = 84 priors; got \[84, 3\]"),
        (lambda s, b: (s, b[:, :5]), ValueError, r"boxes must have shape \[1, 84, 4\]; got \[1, 5, 4\]"),
        (lambda s, b: (s.repeat(2, 1, 1), b.repeat(2, 1, 1)), ValueError, "expected one target per image, 2; got 1"),
        (lambda s, b: (s[..., :1], b), ValueError, r"\['labels'\]\[0\] must be in 0…0 \(num_classes=1\); got 2"),
    ],
)
def test_bad_predictions_are_named(kind: Kind, change, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    points, targets, scores, boxes, _ = scene([1])
    targets[0]["labels"] = torch.tensor([2])
    given: tuple[Tensor | None, Tensor | None] = change(scores, boxes)
    with pytest.raises(error, match=message):
        kind()(points, targets, *given)
