"""The ATSS assigner is the rule of the paper, written as loops over images, objects, levels and anchors in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from fcos_cases import HostReads, no_value_checks, random_boxes, random_targets
from live_bytes import LiveBytes
from torch import Tensor

import detloss
from detloss.assigners import pad_targets
from detloss.assigners.atss import ATSSAssigner, nearest
from detloss.geometry import Anchors, grid_anchors, grid_points

MAPS, STRIDES = [(8, 8), (3, 5), (2, 2)], (8, 16, 32)
ANCHORS = grid_anchors(MAPS, STRIDES, [[20.0, 36.0], [64.0], [96.0]], [1.0, 2.0], rounded=True, dtype=torch.float64)
MARGIN = Fraction("0.01")

Box = list[Fraction]


def fractions(boxes: Tensor) -> list[Box]:
    return [[Fraction(x) for x in box] for box in boxes.tolist()]


def iou(a: Box, b: Box) -> Fraction:
    width, height = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), Fraction(0)) for i in (0, 1))
    area = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - width * height
    return width * height / area if area else Fraction(int(a == b))


def centre(box: Box) -> Box:
    return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]


def positives(anchors: list[Box], counts: tuple[int, ...], box: Box, topk: int) -> dict[int, Fraction]:
    """The IoU of every anchor that the object claims."""
    candidates, start = [], 0
    for count in counts:

        def distance(index: int) -> tuple[float, int]:
            x, y = (a - b for a, b in zip(centre(anchors[index]), centre(box), strict=True))
            return float(torch.tensor(float(x * x + y * y), dtype=torch.float32)), index

        candidates += sorted(range(start, start + count), key=distance)[:topk]
        start += count
    values = [iou(anchors[i], box) for i in candidates]
    number = len(values)
    mean = sum(values) / max(number, 1)
    squares = sum((v - mean) ** 2 for v in values)
    claimed = {}
    for index, value in zip(candidates, values, strict=True):
        x, y = centre(anchors[index])
        inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > MARGIN
        if inside and value >= mean and (value - mean) ** 2 * max(number - 1, 1) >= squares:
            claimed[index] = value
    return claimed


def brute_force(anchors: Anchors, targets: list[dict[str, Tensor]], topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """(gt_index, ignore, quality) of the rule."""
    boxes = fractions(anchors.boxes)
    index, ignore = torch.full((2, len(targets), len(boxes)), -1)
    quality = torch.zeros(index.shape, dtype=torch.float64)
    for image, target in enumerate(targets):
        crowd = target.get("iscrowd", torch.zeros(len(target["boxes"]))).tolist()
        regions = fractions(target.get("ignore_boxes", torch.zeros(0, 4)))
        best = [Fraction(-1)] * len(boxes)
        for number, box in enumerate(fractions(target["boxes"])):
            if crowd[number]:
                regions.append(box)
                continue
            for prior, value in positives(boxes, anchors.counts, box, topk).items():
                if value > best[prior]:
                    best[prior] = value
                    index[image, prior], quality[image, prior] = number, float(value)
        for prior, (x, y) in enumerate(map(centre, boxes)):
            covered = any(min(x - r[0], y - r[1], r[2] - x, r[3] - y) > 0 for r in regions)
            ignore[image, prior] = covered and best[prior] < 0
    return index, ignore.bool(), quality


def check(targets: list[dict[str, Tensor]], anchors: Anchors = ANCHORS, topk: int = 9):
    expected = brute_force(anchors, targets, topk)
    for budget in (1, 30_000, 64 * 2**20):
        got = ATSSAssigner(topk, memory_budget=budget)(anchors, targets)
        assert torch.equal(got.gt_index, expected[0]), f"gt_index, memory_budget={budget}"
        assert torch.equal(got.ignore, expected[1]), f"ignore, memory_budget={budget}"
        torch.testing.assert_close(got.quality, expected[2].to(got.quality.dtype), rtol=1e-12, atol=1e-14)
    return got


def of(*boxes: list[float], **extras: Tensor) -> list[dict[str, Tensor]]:
    """The targets of one image with these boxes."""
    return [{"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.long), **extras}]


@pytest.mark.parametrize("topk", [1, 4, 9])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_loops_on_random_objects(seed: int, topk: int) -> None:
    torch.manual_seed(seed)
    assert check(random_targets([int(n) for n in torch.randint(0, 9, (3,))]), topk=topk).positive.any()


def test_equals_the_loops_with_crowds_and_ignore_boxes() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        targets = random_targets([5, 0, 2])
        for target in targets:
            target["iscrowd"] = torch.rand(len(target["boxes"])) < 0.3
            target["ignore_boxes"] = random_boxes(2)
        check(targets)


@pytest.mark.parametrize(
    "box",
    [
        [-1e6, -1e6, 1e6, 1e6],  # giant
        [24.0, 24.0, 24.0009765625, 24.0009765625],  # tiny, its corner at an anchor's centre
        [23.9, 23.9, 24.1, 24.1],  # tiny, around an anchor's centre
        [12.0, 4.0, 12.0, 40.0],  # no width
        [16.0, 16.0, 16.0, 16.0],  # no extent
        [200.0, 200.0, 300.0, 300.0],  # off the image
        [-60.0, -60.0, 6.0, 6.0],  # mostly off the image
    ],
)
def test_strange_boxes_follow_the_rule(box: list[float]) -> None:
    check(of(box, [8.0, 8.0, 24.0, 24.0]))


def test_by_hand() -> None:
    row = Anchors.of(torch.tensor([[x, 0.0, x + 8, 8.0] for x in (0.0, 8.0, 16.0, 24.0, 32.0)]))
    got = ATSSAssigner(topk=3)(row, of([7.0, 0.0, 17.0, 8.0]))
    # The candidates 8, 0 and 16 have IoU 0.8 and 1/17 twice: mean 0.305882, deviation 0.427917, threshold 0.733799.
    assert got.gt_index.tolist() == [[-1, 0, -1, -1, -1]]
    torch.testing.assert_close(got.quality, torch.tensor([[0.0, 0.8, 0.0, 0.0, 0.0]]))


def test_of_equally_near_anchors_the_first_are_candidates() -> None:
    grid = grid_anchors([(4, 4)], [8], [[8.0]], [1.0])
    for size in (1.0, 8.0, 16.0):  # around (12, 12), as far from the anchors 5, 6, 9 and 10
        got = ATSSAssigner(topk=1)(grid, of([12 - size, 12 - size, 12 + size, 12 + size]))
        assert got.positive.nonzero().tolist() == ([[0, 5]] if size > 4 else [])


def test_a_single_candidate_and_equal_ones_are_positive() -> None:
    one = Anchors.of(torch.tensor([[0.0, 0.0, 8.0, 8.0]]))
    assert ATSSAssigner()(one, of([1.0, 1.0, 7.0, 9.0])).num_pos == 1
    same = Anchors.of(torch.tensor([[0.0, 0.0, 7.0, 8.0]] * 5))
    assert ATSSAssigner()(same, of([1.0, 1.0, 7.0, 9.0])).num_pos == 5


def test_of_duplicates_the_first_wins_and_touching_objects_share_nothing() -> None:
    assert check(of(*[[8.0, 8.0, 40.0, 40.0]] * 3)).gt_index.max() == 0
    got = check(of([0.0, 0.0, 32.0, 32.0], [32.0, 0.0, 64.0, 32.0]))
    assert {0, 1} <= set(got.gt_index.unique().tolist())
    assert (ANCHORS.xy[got.gt_index[0] == 0, 0] < 32).all() and (ANCHORS.xy[got.gt_index[0] == 1, 0] > 32).all()


def test_the_order_of_objects_does_not_matter() -> None:
    torch.manual_seed(0)
    boxes, order = random_boxes(12) + torch.rand(12, 4).sort(-1).values / 64, torch.randperm(12)
    labels = torch.zeros(12, dtype=torch.long)
    got, turned = (ATSSAssigner()(ANCHORS, [{"boxes": b, "labels": labels}]) for b in (boxes, boxes[order]))
    back = torch.where(turned.positive, order[turned.gt_index], -1)
    assert torch.equal(back, got.gt_index) and torch.equal(turned.quality, got.quality)


def test_points_stand_for_squares_around_them() -> None:
    points, targets = grid_points(MAPS, STRIDES), random_targets([5, 3])
    half = 2 * points.stride[:, None]
    squares = Anchors.of(torch.cat([points.xy - half, points.xy + half], 1), [64, 15, 4])
    got, expected = ATSSAssigner(anchor_scale=4)(points, targets), ATSSAssigner()(squares, targets)
    assert torch.equal(got.gt_index, expected.gt_index) and torch.equal(got.quality, expected.quality)
    assert got.positive.any()


def test_anchors_of_every_image_and_padding_among_them() -> None:
    torch.manual_seed(0)
    targets = random_targets([4, 6])
    boxes = torch.stack([ANCHORS.boxes, ANCHORS.boxes + 3.5])
    whole = ATSSAssigner()(Anchors.of(boxes, ANCHORS.counts), targets)
    for image in (0, 1):
        alone = ATSSAssigner()(Anchors.of(boxes[image], ANCHORS.counts), targets[image : image + 1])
        assert torch.equal(alone.gt_index[0], whole.gt_index[image]) and alone.positive.any()
    keep = torch.arange(60)  # the last anchors of the first level and all of the others are padding
    padded = Anchors.of(boxes, ANCHORS.counts, valid=(torch.arange(boxes.shape[1]) < 60).expand(2, -1))
    got, expected = ATSSAssigner()(padded, targets), ATSSAssigner()(Anchors.of(boxes[:, keep]), targets)
    assert torch.equal(got.gt_index[:, :60], expected.gt_index) and (got.gt_index[:, 60:] == -1).all()


@pytest.mark.parametrize("count", [1, 8, 9, 31, 287, 288, 289, 700])
def test_the_nearest_points_are_those_of_a_stable_sort(count: int) -> None:
    torch.manual_seed(count)
    points, at = torch.randint(0, 12, (2, count, 2)).float(), torch.randint(0, 24, (2, 7, 2)) / 2.0  # many are equally near
    distance = (points[:, None] - at[:, :, None]).square().sum(-1)
    k = min(9, count)
    expected = distance.sort(dim=-1, stable=True).indices[..., :k].sort(-1).values
    for tile in (1, 2**20):
        assert torch.equal(nearest(points, at, k, tile).sort(-1).values, expected)
        assert torch.equal(nearest(points[0], at, k, tile)[0], nearest(points, at, k, tile)[0])


def test_no_images_no_objects_no_anchors_and_empty_levels() -> None:
    assert ATSSAssigner()(ANCHORS, []).gt_index.shape == (0, len(ANCHORS.boxes))
    assert check(of()).negative.all()
    assert ATSSAssigner()(Anchors.of(torch.zeros(0, 4)), of([0.0, 0.0, 8.0, 8.0])).gt_index.shape == (1, 0)
    gap = Anchors.of(ANCHORS.boxes, (0, *ANCHORS.counts, 0))
    targets = random_targets([4])
    assert torch.equal(ATSSAssigner()(gap, targets).gt_index, ATSSAssigner()(ANCHORS, targets).gt_index)


@pytest.mark.parametrize("images", [1, 3])
def test_a_thousand_objects_stay_within_the_memory_budget(images: int) -> None:
    torch.manual_seed(0)
    anchors, budget = grid_anchors([(48, 48), (24, 24)], (8, 16), [[64.0], [128.0]], [1.0]), 2**20
    targets = pad_targets(random_targets([1000] + [0] * (images - 1), extent=384.0), anchors.boxes)
    with LiveBytes() as measured:
        got = ATSSAssigner(memory_budget=budget)(anchors, targets)
    assert measured.peak <= budget + images * (len(anchors.boxes) * 60 + 1000 * 64), measured.peak - budget
    with LiveBytes() as unlimited:
        whole = ATSSAssigner(memory_budget=2**40)(anchors, targets)
    assert unlimited.peak > 2 * budget
    assert torch.equal(got.gt_index, whole.gt_index) and torch.equal(got.quality, whole.quality)


def test_ignore_boxes_by_the_share_of_the_anchor_that_they_cover() -> None:
    row = Anchors.of(torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]]))
    region = torch.tensor([[0.0, 0.0, 11.0, 8.0]])  # all of the first anchor, 3/8 of the second
    for share, expected in ((None, [True, False]), (0.3, [True, True]), (0.5, [True, False]), (1.0, [False, False])):
        assert ATSSAssigner(ignore_iof_thr=share)(row, of(ignore_boxes=region)).ignore.tolist() == [expected]


def test_the_host_never_waits_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = random_targets([5, 0, 3])
    targets[0]["iscrowd"] = torch.tensor([0, 1, 0, 0, 0])
    with no_value_checks(monkeypatch), HostReads() as reads:
        ATSSAssigner()(ANCHORS, targets)
    assert reads.found == []


def test_an_object_that_is_not_a_number_matches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    with no_value_checks(monkeypatch):
        got = ATSSAssigner()(ANCHORS, of([nan, 0.0, 20.0, 20.0], [nan] * 4, [0.0, 0.0, 64.0, 64.0]))
    assert set(got.gt_index.unique().tolist()) == {-1, 2} and got.quality.isfinite().all()


def test_it_compiles_without_a_graph_break() -> None:
    targets, assigner = random_targets([3, 2]), ATSSAssigner()
    compiled = torch.compile(lambda t: assigner(ANCHORS, t), fullgraph=True, backend="aot_eager")
    expected, found = assigner(ANCHORS, targets), compiled(targets)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name


def test_conditions_say_why_an_object_got_nothing() -> None:
    targets = pad_targets(of([16.0, 16.0, 48.0, 48.0], [3.0, 3.0, 5.0, 5.0], [200.0, 200.0, 232.0, 232.0]), ANCHORS.boxes)
    assigner = ATSSAssigner()
    got, conditions = assigner(ANCHORS, targets), assigner.conditions(ANCHORS, targets, 0)
    left = torch.stack(list(conditions.values())).int().cumprod(0).bool()
    assert left[-1].any(1).tolist() == [True, False, False]
    assert torch.equal(left[-1, 0], got.gt_index[0] == 0)
    assert (left[0].sum(1) == 9 + 9 + 8).all() and left[1, 1:].any(1).all()


def test_it_is_registered_and_frozen() -> None:
    got = detloss.build({"type": "ATSSAssigner", "topk": 4})(ANCHORS, random_targets([2]))
    assert got.gt_index.dtype == torch.long and got.ignore.dtype == torch.bool and got.quality.dtype == torch.float64
    with pytest.raises(AttributeError):
        got.gt_index = got.ignore


@pytest.mark.parametrize("name", ["topk", "margin", "anchor_scale", "ignore_iof_thr", "memory_budget"])
def test_bad_options_are_value_errors(name: str) -> None:
    with pytest.raises(ValueError, match=f"ATSSAssigner: {name} must be a finite number .*; got -1"):
        ATSSAssigner(**{name: -1})
