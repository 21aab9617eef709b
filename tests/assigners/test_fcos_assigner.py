"""The FCOS assigner is the rule of the paper, written as a triple loop over images, locations and objects."""

from __future__ import annotations

import math

import pytest
import torch
from fcos_cases import HostReads, no_value_checks, random_boxes, random_targets
from live_bytes import LiveBytes
from torch import Tensor

import detloss
from detloss.assigners import FCOSAssigner, default_regress_ranges, pad_targets
from detloss.geometry import Points, grid_points

Ranges = tuple[tuple[float, float], ...]
SIZES, STRIDES = [(8, 8), (4, 4), (2, 2)], (8, 16, 32)


def owner(x: float, y: float, stride: float, low: float, high: float, boxes: list[list[float]], radius: float | None) -> int:
    """Index of the object that the location belongs to, −1 for none, in the float64 arithmetic of Python."""
    best, smallest = -1, math.inf
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        sides = (x - x1, y - y1, x2 - x, y2 - y)
        inside = min(sides) > 0
        if radius is not None:  # the square around the centre, cut off at the sides of the box
            cx, cy, reach = (x1 + x2) / 2, (y1 + y2) / 2, radius * stride
            left, top = max(cx - reach, x1), max(cy - reach, y1)
            right, bottom = min(cx + reach, x2), min(cy + reach, y2)
            inside = left < x < right and top < y < bottom
        area = (x2 - x1) * (y2 - y1)
        if inside and low <= max(sides) <= high and area < smallest:
            best, smallest = index, area
    return best


def brute_force(points: Points, targets: list[dict[str, Tensor]], ranges: Ranges, radius: float | None) -> tuple[Tensor, Tensor]:
    """(gt_index, ignore) of the rule, location by location."""
    levels = [level for level, count in enumerate(points.counts) for _ in range(count)]
    index, ignore = [], []
    for target in targets:
        crowd = target.get("iscrowd", torch.zeros(len(target["boxes"]))).tolist()
        regions = target.get("ignore_boxes", torch.zeros(0, 4)).tolist()
        regions += [box for box, flag in zip(target["boxes"].tolist(), crowd, strict=True) if flag]
        real = [i for i, flag in enumerate(crowd) if not flag]
        boxes = [target["boxes"][i].tolist() for i in real]
        for (x, y), level in zip(points.xy.tolist(), levels, strict=True):
            found = owner(x, y, points.strides[level], *ranges[level], boxes, radius)
            index.append(real[found] if found >= 0 else -1)
            covered = any(min(x - x1, y - y1, x2 - x, y2 - y) > 0 for x1, y1, x2, y2 in regions)
            ignore.append(covered and found < 0)
    shape = (len(targets), len(levels))
    return torch.tensor(index, dtype=torch.long).reshape(shape), torch.tensor(ignore, dtype=torch.bool).reshape(shape)


def check(
    targets: list[dict[str, Tensor]], points: Points | None = None, ranges: Ranges | None = None, radius: float | None = None
):
    points = grid_points(SIZES, STRIDES) if points is None else points
    expected = brute_force(points, targets, ranges or default_regress_ranges(points.strides), radius)
    for budget in (1, 5000, 64 * 2**20):
        got = FCOSAssigner(ranges, radius, budget)(points, targets)
        assert torch.equal(got.gt_index, expected[0]), f"gt_index, memory_budget={budget}"
        assert torch.equal(got.ignore, expected[1]), f"ignore, memory_budget={budget}"
    return got


def of(*boxes: list[float], **extras: Tensor) -> list[dict[str, Tensor]]:
    """The targets of one image with these boxes."""
    return [{"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.long), **extras}]


@pytest.mark.parametrize("radius", [None, 0.5, 1.5])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_triple_loop_on_random_objects(seed: int, radius: float | None) -> None:
    torch.manual_seed(seed)
    targets = random_targets([int(n) for n in torch.randint(0, 9, (3,))])
    assert check(targets, ranges=((-1, 16), (16, 32), (32, math.inf)), radius=radius).positive.any()
    check(targets, radius=radius)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_triple_loop_in_float64_for_coordinates_that_are_no_round_numbers(seed: int) -> None:
    torch.manual_seed(seed)
    points = grid_points(SIZES, (7.3, 14.6, 29.2), dtype=torch.float64)
    targets = [{**t, "boxes": t["boxes"].double() * 0.937} for t in random_targets([6, 3])]
    check(targets, points, ranges=((-1, 14.6), (14.6, 29.2), (29.2, math.inf)))


def test_equals_the_triple_loop_with_crowds_and_ignore_boxes() -> None:
    for _ in range(8):
        targets = random_targets([5, 0, 2])
        for target in targets:
            target["iscrowd"] = torch.rand(len(target["boxes"])) < 0.3
            target["ignore_boxes"] = random_boxes(2)
        check(targets)


def test_an_object_inside_an_ignore_box_keeps_its_locations() -> None:
    got = check(of([0.0, 0.0, 16.0, 16.0], ignore_boxes=torch.tensor([[0.0, 0.0, 24.0, 16.0]])), grid_points([(2, 3)], [8]))
    assert got.gt_index.tolist() == [[0, 0, -1, 0, 0, -1]]
    assert got.ignore.tolist() == [[False, False, True, False, False, True]]
    assert got.negative.sum() == 0 and got.num_pos == 4


def test_a_crowd_is_a_region_and_no_object() -> None:
    got = check(of([0.0, 0.0, 16.0, 8.0], iscrowd=torch.tensor([1])), grid_points([(2, 2)], [8]))
    assert got.gt_index.tolist() == [[-1] * 4]
    assert got.ignore.tolist() == [[True, True, False, False]]


def test_of_duplicates_the_first_wins() -> None:
    got = check(of(*[[8.0, 8.0, 40.0, 40.0]] * 3))
    assert got.gt_index.max() == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_smaller_object_wins_wherever_it_stands_in_the_list(order: tuple[int, int]) -> None:
    boxes = [[0.0, 0.0, 64.0, 64.0], [16.0, 16.0, 48.0, 48.0]]
    got = check(of(*(boxes[i] for i in order)), grid_points([(8, 8)], [8]))
    small = order.index(1)
    assert (got.gt_index == small).sum() == 16 and (got.gt_index == 1 - small).sum() == 48


def test_a_location_on_a_side_is_outside_and_touching_objects_share_nothing() -> None:
    got = check(of([4.0, 0.0, 20.0, 16.0], [20.0, 0.0, 36.0, 16.0]), grid_points([(1, 5)], [8]))
    assert got.gt_index.tolist() == [[-1, 0, -1, 1, -1]]  # x = 4, 12, 20, 28, 36


def test_both_ends_of_a_range_are_included() -> None:
    points = grid_points([(1, 1), (1, 1)], [8, 8])  # (4, 4) on both levels, so max(l, t, r, b) = 12
    got = check(of([-8.0, -8.0, 16.0, 16.0]), points, ranges=((0, 12), (12, 20)))
    assert got.gt_index.tolist() == [[0, 0]]
    assert check(of([-8.0, -8.0, 16.0, 16.0]), points, ranges=((0, 11.9), (12.1, 20))).num_pos == 0


def test_the_centre_region_is_open_and_cut_off_at_the_box() -> None:
    row = grid_points([(1, 8)], [8])  # x = 4, 12 … 60, y = 4
    got = check(of([0.0, 0.0, 56.0, 8.0]), row, radius=2.0)  # centre 28, reach 16: 12 < x < 44
    assert got.gt_index.tolist() == [[-1, -1, 0, 0, 0, -1, -1, -1]]
    assert check(of([22.0, 0.0, 34.0, 8.0]), row, radius=2.0).gt_index.tolist() == [[-1, -1, -1, 0, -1, -1, -1, -1]]


@pytest.mark.parametrize(
    "box",
    [
        [-5000.0, -5000.0, 5000.0, 5000.0],  # giant
        [11.75, 11.75, 12.25, 12.25],  # tiny, around a location
        [13.0, 13.0, 15.0, 15.0],  # tiny, between locations
        [12.0, 4.0, 12.0, 40.0],  # no width
        [12.0, 12.0, 12.0, 12.0],  # no extent
        [200.0, 200.0, 300.0, 300.0],  # off the image
        [-60.0, -60.0, 6.0, 6.0],  # mostly off the image
    ],
)
def test_strange_boxes_follow_the_rule(box: list[float]) -> None:
    check(of(box, [8.0, 8.0, 24.0, 24.0]))


@pytest.mark.parametrize(
    ("large", "small"),
    [
        ([-4.0, -4.0, 55.0, 13.0], [-4.0, -4.0, 46.0, 16.0]),  # 1003 and 1000 px²: one float32 number as 1e8 − area
        ([-10000.0, -10000.0, 10001.0, 10000.0], [-10000.0, -10000.0, 10000.0, 10000.0]),  # 4.0002e8 and 4e8
        ([-2e6, -2e6, 2e6 + 1, 2e6], [-2e6, -2e6, 2e6, 2e6]),  # 1.6e13 + 4e6 and 1.6e13
        ([-4097.0, -4096.0, 4096.0, 4097.0], [-4096.0, -4096.0, 4098.0, 4096.0]),  # 8193 · 8193 and 8194 · 8192
    ],
)
def test_areas_are_compared_exactly(large: list[float], small: list[float]) -> None:
    points = grid_points([(1, 1)], [8])
    assert check(of(large, small), points).gt_index.item() == 1
    assert check(of(small, large), points).gt_index.item() == 0


def test_no_images_no_objects_and_no_locations() -> None:
    points = grid_points(SIZES, STRIDES)
    assert FCOSAssigner()(points, []).gt_index.shape == (0, 84)
    none = check(of())
    assert none.num_pos == 0 and none.negative.all()
    assert FCOSAssigner()(grid_points([(0, 3)], [8]), of([0.0, 0.0, 8.0, 8.0])).gt_index.shape == (1, 0)


@pytest.mark.parametrize("extent", [64.0, 16.0])
def test_a_thousand_objects_in_one_image_and_none_in_the_other(extent: float) -> None:
    check(random_targets([1000, 0], extent=extent), grid_points([(4, 4), (2, 2)], [16, 32]))


def test_every_chunk_size_gives_the_same_result() -> None:
    points, targets = grid_points(SIZES, STRIDES), random_targets([7, 3])
    targets[1]["ignore_boxes"] = random_boxes(9)
    whole = FCOSAssigner(memory_budget=2**30)(points, targets)
    bytes_per_location = 2 * 10 * 6 * 4
    for chunk in (1, 2, 3, 7, 41, 42, 43, 83, 84, 85):
        part = FCOSAssigner(memory_budget=chunk * bytes_per_location)(points, targets)
        assert torch.equal(part.gt_index, whole.gt_index) and torch.equal(part.ignore, whole.ignore), chunk


@pytest.mark.parametrize(("images", "objects"), [(2, 1000), (4, 100), (2, 1), (1, 0)])
@pytest.mark.parametrize("radius", [None, 1.5])
def test_temporaries_stay_within_the_memory_budget(images: int, objects: int, radius: float | None) -> None:
    points = grid_points([(64, 64)], [8])
    targets = pad_targets(random_targets([objects] * images, extent=512.0), points.xy)
    if not objects:  # regions only
        targets = pad_targets(
            [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "ignore_boxes": random_boxes(500, extent=512.0)}], points.xy
        )
    budget, count = 2**19, len(points.xy)
    with LiveBytes() as measured:
        FCOSAssigner(None, radius, budget)(points, targets)
    result = images * count * (8 + 1 + 8 + 1 + 1)  # gt_index and ignore, and what the last line makes of them
    per_point, per_object = 8 * 4 * count, images * max(objects, 1) * 128
    assert measured.peak <= budget + result + per_point + per_object
    if objects == 1000:
        with LiveBytes() as unlimited:
            FCOSAssigner(None, radius, 2**40)(points, targets)
        assert unlimited.peak > 100 * budget


def test_the_host_never_waits_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    points, targets = grid_points(SIZES, STRIDES), random_targets([5, 0, 3])
    targets[0]["iscrowd"] = torch.tensor([0, 1, 0, 0, 0])
    targets[2]["ignore_boxes"] = random_boxes(2)
    with no_value_checks(monkeypatch), HostReads() as reads:
        FCOSAssigner(center_sampling_radius=1.5)(points, targets)
    assert reads.found == []


def test_an_object_that_is_not_a_number_matches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    with no_value_checks(monkeypatch):
        got = FCOSAssigner()(grid_points(SIZES, STRIDES), of([nan, 0.0, 20.0, 20.0], [nan] * 4, [0.0, 0.0, 64.0, 64.0]))
    assert set(got.gt_index.unique().tolist()) == {-1, 2}


def test_it_is_registered_and_returns_a_frozen_assignment() -> None:
    assigner = detloss.build({"type": "FCOSAssigner", "center_sampling_radius": 1.5})
    got = assigner(grid_points(SIZES, STRIDES), random_targets([2]))
    assert got.gt_index.dtype == torch.long and got.ignore.dtype == torch.bool and got.quality is None
    with pytest.raises(AttributeError):
        got.gt_index = got.ignore


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regress_ranges": ((0, 8), (16, 8))}, r"lo < hi per level; got \(16, 8\)"),
        ({"regress_ranges": ((0, 8, 16),)}, r"regress_ranges must hold \(lo, hi\).*got \(0, 8, 16\)"),
        ({"regress_ranges": (64, 128)}, r"regress_ranges must hold \(lo, hi\).*got 64"),
        ({"regress_ranges": ((0, float("nan")),)}, "regress_ranges must hold"),
        ({"center_sampling_radius": 0.0}, "center_sampling_radius must be a finite number > 0; got 0"),
        ({"memory_budget": -1}, "memory_budget must be a finite number > 0; got -1"),
    ],
)
def test_bad_options_are_value_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCOSAssigner(**options)


def test_too_few_ranges_for_the_levels() -> None:
    with pytest.raises(ValueError, match="expected a regress range for each of 3 levels; got 1"):
        FCOSAssigner(((-1, 64),))(grid_points(SIZES, STRIDES), of())


def test_default_ranges_are_those_of_the_paper() -> None:
    inf = math.inf
    assert default_regress_ranges((8, 16, 32, 64, 128)) == ((-1, 64), (64, 128), (128, 256), (256, 512), (512, inf))
    assert default_regress_ranges((8,)) == ((-1, inf),)
