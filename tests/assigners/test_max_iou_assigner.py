"""MaxIoU is the rule of the frameworks, written as loops in exact fractions, and torchvision's Matcher by an option."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from fcos_cases import HostReads, Target, no_value_checks
from live_bytes import LiveBytes
from torch import Tensor

import detloss
from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.assigners.targets import pad_targets
from detloss.geometry import Anchors, grid_anchors, pairwise_iou
from detloss.types import Assignment

ANCHORS = grid_anchors([(6, 6), (3, 3)], (4, 8), [[6], [12]], [1.0])
TINY_BUDGET, DEFAULT_BUDGET = 1, 64 * 2**20
OPTIONS: list[dict[str, Any]] = [
    {},
    {"low_quality": "anchor"},
    {"match_low_quality": False},
    {"min_pos_iou": 0.3},
    {"min_pos_iou": 0.3, "low_quality": "anchor", "pos_iou_thr": 0.75},
    {"neg_iou_thr": (0.125, 0.4), "match_low_quality": False},
    {"neg_iou_thr": (0.125, 0.4), "ignore_iof_thr": 0.25},
    {"neg_iou_thr": 0.5},
    {"ignore_iof_thr": None},
    {"ignore_iof_thr": 0},
]


def shared(a: list[float], b: list[float]) -> Fraction:
    """Common area of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return Fraction(max(width, 0)) * Fraction(max(height, 0))


def area(a: list[float]) -> Fraction:
    return Fraction(a[2] - a[0]) * Fraction(a[3] - a[1])


def exact_iou(a: list[float], b: list[float]) -> Fraction:
    common = shared(a, b)
    return common / (area(a) + area(b) - common) if common else Fraction(0)


def loops(anchors: Tensor, target: Target, options: dict[str, Any]) -> tuple[list[int], list[bool], list[Fraction]]:
    """gt_index, ignore and quality of one image."""
    crowd = target.get("iscrowd", torch.zeros(len(target["boxes"]))).tolist()
    all_boxes = target["boxes"].tolist()
    real = [g for g, flag in enumerate(crowd) if not flag]
    regions = target.get("ignore_boxes", torch.zeros(0, 4)).tolist() + [
        b for b, flag in zip(all_boxes, crowd, strict=True) if flag
    ]
    ious = [[exact_iou(a, all_boxes[g]) for g in real] for a in anchors.tolist()]

    def number(name: str, default: float) -> Fraction:
        return Fraction(str(options.get(name, default)))

    negative = options.get("neg_iou_thr", 0.4)
    low, high = (Fraction(str(bound)) for bound in (negative if isinstance(negative, tuple) else (0, negative)))
    index, ignore, quality = [], [], []
    for row in ious:
        most = max(row, default=Fraction(0))
        quality.append(most)
        index.append(row.index(most) if row and most >= number("pos_iou_thr", 0.5) else -1)
        ignore.append(not (low <= most < high or (not real and most < high)))
    if options.get("match_low_quality", True):
        for g in range(len(real)):
            best = max(row[g] for row in ious)
            for p, row in enumerate(ious):
                if row[g] == best > 0 and best >= number("min_pos_iou", 0):
                    index[p] = row.index(max(row)) if options.get("low_quality") == "anchor" else g
    if options.get("ignore_iof_thr", 0.5) is not None:
        share = number("ignore_iof_thr", 0.5)
        ignore = [
            out or any(shared(a, r) > share * area(a) for r in regions) for a, out in zip(anchors.tolist(), ignore, strict=True)
        ]
    return [real[g] if g >= 0 else -1 for g in index], [i and g < 0 for i, g in zip(ignore, index, strict=True)], quality


def whole_boxes(count: int, extent: int = 28) -> Tensor:
    """``[count, 4]`` float32 boxes with whole corners, some without area and some over the edge."""
    corners = torch.randint(-4, extent, (count, 2, 2)).float()
    return torch.cat((corners.amin(1), corners.amax(1)), dim=1)


def of(boxes: Tensor, **extras: Tensor) -> Target:
    """A target with these boxes."""
    return {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long), **extras}


def row(*boxes: list[float]) -> Anchors:
    return Anchors.of(torch.tensor(boxes))


def check(targets: list[Target], anchors: Anchors = ANCHORS, **options: Any) -> Assignment:
    """Compare with the loops for chunks of any size."""
    for budget in (TINY_BUDGET, 9000, DEFAULT_BUDGET):
        got = MaxIoUAssigner(**options, memory_budget=budget)(anchors, targets)
        for image, target in enumerate(targets):
            index, ignore, quality = loops(anchors.boxes, target, options)
            assert got.gt_index[image].tolist() == index, f"gt_index of image {image}, memory_budget={budget}"
            assert got.ignore[image].tolist() == ignore, f"ignore of image {image}, memory_budget={budget}"
            assert got.quality is not None
            assert torch.equal(got.quality[image], torch.tensor([float(q) for q in quality], dtype=torch.float32))
    return got


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loops_on_random_objects(seed: int, options: dict[str, Any]) -> None:
    torch.manual_seed(seed)
    targets = [of(whole_boxes(n), ignore_boxes=whole_boxes(n // 3)) for n in (7, 0, 3, 1)]
    targets[0]["iscrowd"] = torch.rand(7) < 0.3
    check(targets, **options)


def test_of_ties_the_claiming_object_or_the_best_of_the_anchor_wins() -> None:
    # Object 0 overlaps the anchor by 1/2, object 1 by 1/4, and neither has a better anchor.
    anchors, boxes = row([0.0, 0, 4, 4]), torch.tensor([[0.0, 0, 4, 2], [0.0, 0, 2, 2]])
    assert check([of(boxes)], anchors).gt_index.tolist() == [[1]]
    assert check([of(boxes)], anchors, low_quality="anchor").gt_index.tolist() == [[0]]
    assert check([of(boxes)], anchors, min_pos_iou=0.25).gt_index.tolist() == [[1]]
    assert check([of(boxes)], anchors, min_pos_iou=0.3).gt_index.tolist() == [[0]]
    assert check([of(boxes)], anchors, match_low_quality=False).gt_index.tolist() == [[0]]


def test_all_anchors_that_tie_are_claimed() -> None:
    anchors = row([0.0, 0, 4, 4], [4.0, 0, 8, 4], [0.0, 0, 3, 3])
    assert check([of(torch.tensor([[2.0, 0, 6, 4]]))], anchors).gt_index.tolist() == [[0, 0, -1]]


def test_thresholds_include_what_they_should() -> None:
    anchors = row([0.0, 0, 10, 1], [0.0, 0, 10, 2])
    boxes = torch.tensor([[0.0, 0, 4, 1]])  # IoU 0.4 with the first anchor, 0.2 with the second
    options = {"match_low_quality": False, "pos_iou_thr": 0.8}
    assert check([of(boxes)], anchors, **options, neg_iou_thr=0.4).ignore.tolist() == [[True, False]]
    assert check([of(boxes)], anchors, **options, neg_iou_thr=(0.2, 0.5)).ignore.tolist() == [[False, False]]
    assert check([of(boxes)], anchors, **options, neg_iou_thr=(0.25, 0.5)).ignore.tolist() == [[False, True]]
    assert check([of(boxes)], anchors, match_low_quality=False, pos_iou_thr=0.4, neg_iou_thr=0.4).num_pos == 1


def test_an_anchor_in_an_ignore_box_counts_neither_way_unless_it_is_positive() -> None:
    anchors = row([0.0, 0, 8, 8], [0.0, 0, 8, 6], [20.0, 0, 28, 8], [22.0, 0, 30, 8], [40.0, 0, 48, 8])
    target = of(torch.tensor([[0.0, 0, 8, 8]]), ignore_boxes=torch.tensor([[0.0, 0, 24, 8]]))
    got = check([target], anchors)
    assert got.gt_index.tolist() == [[0, 0, -1, -1, -1]]
    assert got.ignore.tolist() == [[False, False, False, False, False]]  # half of the third is not more than half
    assert check([target], anchors, ignore_iof_thr=0.4).ignore.tolist() == [[False, False, True, False, False]]


def test_without_objects_everything_is_negative() -> None:
    for options in OPTIONS:
        got = check([of(torch.zeros(0, 4)), of(torch.zeros(0, 4))], **options)
        assert bool(got.negative.all()) and not bool(got.quality.any())
    assert MaxIoUAssigner()(ANCHORS, []).gt_index.shape == (0, 45)
    assert MaxIoUAssigner()(Anchors.of(torch.zeros(0, 4)), [of(whole_boxes(3))]).gt_index.shape == (1, 0)


def test_an_image_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    targets = [of(whole_boxes(n)) for n in (5, 1, 0, 9)]
    together = MaxIoUAssigner()(ANCHORS, targets)
    for image, target in enumerate(targets):
        alone = MaxIoUAssigner()(ANCHORS, [target])
        assert torch.equal(together.gt_index[image], alone.gt_index[0])
        assert torch.equal(together.ignore[image], alone.ignore[0])


def test_objects_may_come_in_any_order_where_nothing_ties() -> None:
    torch.manual_seed(1)
    anchors = Anchors.of(torch.rand(200, 2).repeat(1, 2) * 50 + torch.tensor([0.0, 0, 12, 9]) + torch.rand(200, 4))
    boxes = torch.rand(20, 2).repeat(1, 2) * 50 + torch.tensor([0.0, 0, 10, 10]) + torch.rand(20, 4)
    order = torch.randperm(20)
    for options in ({"low_quality": "anchor"}, {"match_low_quality": False}):
        first, second = (MaxIoUAssigner(**options)(anchors, [of(b)]) for b in (boxes, boxes[order]))
        assert first.num_pos > 20
        assert torch.equal(first.gt_index, torch.where(second.positive, order[second.gt_index.clamp(min=0)], -1))
    # Where two objects claim one anchor the later one gets it; which anchors are positive stays the same.
    assert torch.equal(*(MaxIoUAssigner()(anchors, [of(b)]).positive for b in (boxes, boxes[order])))


@pytest.mark.parametrize("objects", [255, 256, 300])
def test_any_number_of_objects(objects: int) -> None:
    torch.manual_seed(0)
    check([of(whole_boxes(objects))])
    check([of(whole_boxes(objects))], low_quality="anchor")


def test_1000_objects_and_20000_anchors_stay_within_the_budget() -> None:
    torch.manual_seed(0)
    anchors = Anchors.of(torch.rand(20000, 2).repeat(1, 2) * 900 + torch.tensor([0.0, 0, 30, 30]))
    truth = pad_targets([of(torch.rand(1000, 2).repeat(1, 2) * 900 + torch.tensor([0.0, 0, 25, 40]))], anchors.boxes)
    budget = 4 * 2**20
    with LiveBytes() as memory:
        got = MaxIoUAssigner(memory_budget=budget)(anchors, truth)
    outputs = 20000 * 200  # results, and copies of the corners; one dense table of IoUs would be 80 MB
    assert 2**20 < memory.peak < budget + outputs
    assert bool((got.gt_index.amax(1) == 999).all())


def test_reads_no_value_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    targets = [of(whole_boxes(n), ignore_boxes=whole_boxes(2)) for n in (4, 0)]
    with no_value_checks(monkeypatch), HostReads() as reads:
        for options in OPTIONS:
            MaxIoUAssigner(**options)(ANCHORS, targets)
    assert reads.found == []


def test_compiles_into_one_graph() -> None:
    torch.manual_seed(0)
    truth = pad_targets([of(whole_boxes(4)), of(whole_boxes(2))], ANCHORS.boxes)
    assigner = MaxIoUAssigner()

    def assign(boxes: Tensor) -> tuple[Tensor, Tensor]:
        got = assigner(Anchors(boxes, ANCHORS.stride, ANCHORS.counts, ANCHORS.strides), truth)
        return got.gt_index, got.ignore

    compiled = torch.compile(assign, fullgraph=True, backend="eager")(ANCHORS.boxes)
    assert all(torch.equal(a, b) for a, b in zip(compiled, assign(ANCHORS.boxes), strict=True))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_quality_is_the_largest_pairwise_iou_at_every_scale(scale: float) -> None:
    torch.manual_seed(0)
    anchors, boxes = (torch.rand(n, 2).repeat(1, 2) * 3 + torch.rand(n, 4) * torch.tensor([0, 0, 2, 2]) for n in (50, 8))
    got = MaxIoUAssigner()(Anchors.of(anchors * scale), [of(boxes * scale)])
    torch.testing.assert_close(got.quality[0], pairwise_iou(anchors * scale, boxes * scale).amax(1), rtol=0, atol=1e-6)


def test_the_registry_builds_it() -> None:
    built = detloss.build({"type": "MaxIoUAssigner", "neg_iou_thr": (0.1, 0.3)})
    assert isinstance(built, MaxIoUAssigner) and "neg_iou_thr=(0.1, 0.3)" in repr(built)
    assert isinstance(detloss.build("max_iou"), MaxIoUAssigner)
