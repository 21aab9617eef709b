"""The task-aligned assigner is its rule, written as loops over images, objects and priors in the arithmetic of Python."""

from __future__ import annotations

import math

import pytest
import torch
from fcos_cases import HostReads, no_value_checks, random_boxes, random_targets
from live_bytes import LiveBytes
from torch import Tensor

import detloss
from detloss.assigners import pad_targets
from detloss.assigners.task_aligned import TaskAlignedAssigner, match_operator
from detloss.geometry import Anchors, Points, grid_points

SIZES, STRIDES = [(8, 8), (4, 4), (2, 2)], (8, 16, 32)
POINTS = grid_points(SIZES, STRIDES, dtype=torch.float64)
TOOD = {"topk": 13, "alpha": 1.0, "iou": "iou", "enlarge_small": False}

Targets = list[dict[str, Tensor]]


def predictions(targets: Targets, points: Points = POINTS, classes: int = 3, spread: float = 6.0) -> tuple[Tensor, Tensor]:
    """Logits, and boxes that are those of random objects with some noise, or of nothing where there are none."""
    logits, boxes = torch.randn(len(targets), len(points.xy), classes).to(points.xy.dtype), []
    for target in targets:
        around = torch.cat((points.xy - 12, points.xy + 12), dim=1)
        if len(target["boxes"]):
            around = target["boxes"][torch.randint(len(target["boxes"]), (len(points.xy),))].to(points.xy.dtype)
        noise = torch.randn(len(points.xy), 2, 2).sort(1).values.flatten(1).to(points.xy.dtype)
        boxes.append(around + spread * noise)
    return logits, torch.stack(boxes)


def overlap(a: list[float], b: list[float], kind: str) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    common = max(width, 0.0) * max(height, 0.0)
    (wa, ha), (wb, hb) = ((x[2] - x[0], x[3] - x[1]) for x in (a, b))
    union = wa * ha + wb * hb - common
    iou = common / union if union else float(a == b)
    if kind == "iou" or a == b:
        return iou
    diagonal = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
    distance = sum((a[i] + a[i + 2] - b[i] - b[i + 2]) ** 2 for i in (0, 1)) / 4
    v = 4 / math.pi**2 * (math.atan2(wa, ha) - math.atan2(wb, hb)) ** 2
    return max(iou - distance / diagonal - (v * v / (1 - iou + v) if v else 0.0), 0.0)


def brute_force(targets: Targets, logits: Tensor, boxes: Tensor, points: Points = POINTS, **options) -> tuple[Tensor, Tensor]:
    """(gt_index, quality) of the rule."""
    rule = {"topk": 10, "alpha": 0.5, "beta": 6.0, "iou": "ciou", "enlarge_small": True, **options}
    index = torch.full(boxes.shape[:2], -1)
    quality = torch.zeros(boxes.shape[:2], dtype=torch.float64)
    for image, target in enumerate(targets):
        shared: list[dict[int, float]] = []
        metric: list[dict[int, float]] = []
        chosen: list[list[int]] = []
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            region = list(box)
            for axis in (0, 1):
                if rule["enlarge_small"] and box[axis + 2] - box[axis] < points.strides[1]:
                    middle = (box[axis] + box[axis + 2]) / 2
                    region[axis], region[axis + 2] = middle - points.strides[1] / 2, middle + points.strides[1] / 2
            inside = [p for p, (x, y) in enumerate(points.xy.tolist()) if region[0] < x < region[2] and region[1] < y < region[3]]
            shared.append({p: overlap(boxes[image, p].tolist(), box, rule["iou"]) for p in inside})
            score = {p: 1 / (1 + math.exp(-float(logits[image, p, label]))) for p in inside}
            metric.append({p: score[p] ** rule["alpha"] * shared[-1][p] ** rule["beta"] for p in inside})
            candidates = [p for p in inside if metric[-1][p] > 0]
            chosen.append(sorted(candidates, key=lambda p, of=metric[-1]: (-of[p], p))[: rule["topk"]])
        for p in range(len(points.xy)):
            claims = [g for g, own in enumerate(chosen) if p in own]
            if len(claims) > 1:
                claims = sorted((g for g in range(len(shared)) if p in shared[g]), key=lambda g, p=p: (-shared[g][p], g))
            index[image, p] = claims[0] if claims else -1
        for g in range(len(shared)):
            own = [p for p in range(len(points.xy)) if index[image, p] == g]
            for p in own:
                scale = max(shared[g][q] for q in own) / (max(metric[g][q] for q in own) + 1e-9)
                quality[image, p] = metric[g][p] * scale
    return index, quality


def check(targets: Targets, seed: int = 0, points: Points = POINTS, **options):
    torch.manual_seed(seed)
    logits, boxes = predictions(targets, points)
    expected = brute_force(targets, logits, boxes, points, **options)
    for budget in (1, 100_000, 64 * 2**20):
        got = TaskAlignedAssigner(**options, memory_budget=budget)(points, targets, logits, boxes)
        assert torch.equal(got.gt_index, expected[0]), f"memory_budget={budget}"
        torch.testing.assert_close(got.quality, expected[1], rtol=1e-8, atol=1e-10)
    return got


def of(*boxes: list[float], **extras: Tensor) -> Targets:
    """The targets of one image with these boxes."""
    return [{"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.long), **extras}]


@pytest.mark.parametrize("options", [{}, TOOD, {"topk": 2, "beta": 1.7}, {"topk": 3, "alpha": 0.0}])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loops_on_random_objects(seed: int, options: dict[str, object]) -> None:
    torch.manual_seed(seed)
    assert check(random_targets([int(n) for n in torch.randint(1, 9, (3,))]), seed, **options).positive.any()


@pytest.mark.parametrize(
    "box",
    [
        [-1e6, -1e6, 1e6, 1e6],  # giant
        [12.0, 12.0, 12.001, 12.001],  # tiny, its corner at a location
        [13.0, 13.0, 15.0, 15.0],  # between locations
        [12.0, 4.0, 12.0, 40.0],  # no width
        [200.0, 200.0, 300.0, 300.0],  # off the image
        [-40.0, -40.0, 20.0, 20.0],  # partly off the image, its coordinates with a sum below 0
    ],
)
def test_strange_boxes_follow_the_rule(box: list[float]) -> None:
    for options in ({}, TOOD):
        check(of(box, [8.0, 8.0, 24.0, 24.0], [24.0, 8.0, 40.0, 24.0], box), **options)


def test_fewer_priors_than_topk_and_a_single_one() -> None:
    one = grid_points([(1, 1)], [16], dtype=torch.float64)
    targets = of([0.0, 0.0, 16.0, 16.0])
    got = TaskAlignedAssigner()(one, targets, torch.zeros(1, 1, 1), targets[0]["boxes"][None].double())
    assert got.gt_index.tolist() == [[0]] and got.quality.item() == pytest.approx(1.0)
    check(of([0.0, 0.0, 64.0, 64.0]), topk=500)


def test_of_equal_metrics_the_first_priors_are_chosen() -> None:
    target = of([0.0, 0.0, 64.0, 64.0], [200.0, 0.0, 264.0, 64.0], [0.0, 0.0, 64.0, 64.0])
    logits, boxes = torch.zeros(1, 84, 1), target[0]["boxes"][0].expand(1, 84, 4)
    for topk in (1, 7, 64):
        got = TaskAlignedAssigner(topk)(POINTS, target, logits, boxes)
        assert torch.equal(got.gt_index[0], torch.where(torch.arange(84) < topk, 0, -1))


def test_a_prior_that_two_chose_goes_to_whoever_contains_it_and_overlaps_it_most() -> None:
    pair = grid_points([(1, 2)], [8], dtype=torch.float64)  # x = 4 and 12
    targets = of([0.0, 0.0, 16.0, 9.0], [0.0, 0.0, 16.0, 10.0], [0.0, 0.0, 16.0, 8.0])
    targets[0]["labels"] = torch.tensor([0, 0, 1])
    boxes = torch.tensor([[[0.0, 0.0, 16.0, 8.0], [2.0, 0.0, 16.0, 8.0]]], dtype=torch.float64)
    logits = torch.tensor([[[0.0, -5.0], [0.0, 5.0]]])  # the last object chooses the second prior: its score is better
    got = TaskAlignedAssigner(1, 10.0, iou="iou")(pair, targets, logits, boxes)
    assert got.gt_index.tolist() == [[2, 2]]
    first, second = (1 / (1 + math.exp(-x)) for x in (-5, 5))
    metrics = torch.tensor([first**10, (second**10) * (7 / 8) ** 6], dtype=torch.float64)
    torch.testing.assert_close(got.quality[0], metrics * 1.0 / (metrics.max() + 1e-9))


def test_a_small_object_is_enlarged_to_the_stride_of_the_second_level() -> None:
    box = [
        13.0,
        13.0,
        15.0,
        15.0,
    ]  # 6 to 22 when enlarged: 12 and 20 of stride 8, 8 of 16, 16 of 32
    boxes = torch.tensor(box).double().expand(1, 84, 4)
    got = TaskAlignedAssigner()(POINTS, of(box), torch.zeros(1, 84, 1), boxes)
    assert got.positive.nonzero()[:, 1].tolist() == [9, 10, 17, 18, 64, 80]
    assert TaskAlignedAssigner(enlarge_small=False)(POINTS, of(box), torch.zeros(1, 84, 1), boxes).num_pos == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_never_match(bad: float) -> None:
    targets = random_targets([6, 6])
    logits, boxes = predictions(targets)
    clean = TaskAlignedAssigner()(POINTS, targets, logits, boxes)
    rows = clean.positive[0].nonzero().flatten()
    logits[0, rows[0]], boxes[0, rows[1], 2] = bad, bad
    got = TaskAlignedAssigner()(POINTS, targets, logits, boxes)
    assert not got.positive[0, rows[:2]].any() and got.quality.isfinite().all()
    assert torch.equal(got.gt_index[1], clean.gt_index[1]) and torch.equal(got.quality[1], clean.quality[1])
    assert TaskAlignedAssigner()(POINTS, targets, logits + bad, boxes).num_pos == 0


def test_crowds_match_nothing_and_regions_are_ignored() -> None:
    targets = of([0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 32.0, 16.0], iscrowd=torch.tensor([0, 1]))
    boxes = torch.tensor([0.0, 0.0, 16.0, 16.0]).double().expand(1, 84, 4)
    got = TaskAlignedAssigner()(POINTS, targets, torch.zeros(1, 84, 1), boxes)
    inside = (POINTS.xy[:, 0] < 32) & (POINTS.xy[:, 1] < 16)
    assert got.gt_index.max() == 0 and torch.equal(got.ignore[0], inside & (got.gt_index[0] < 0))
    assert got.ignore.sum() == 5


def test_the_order_of_objects_and_images_does_not_matter() -> None:
    targets, order = random_targets([12, 5]), torch.randperm(12)
    logits, boxes = predictions(targets)
    turned = [targets[1], {name: value[order] for name, value in targets[0].items()}]
    got = TaskAlignedAssigner()(POINTS, targets, logits, boxes)
    other = TaskAlignedAssigner()(POINTS, turned, logits.flip(0), boxes.flip(0))
    assert torch.equal(torch.where(other.positive[1], order[other.gt_index[1]], -1), got.gt_index[0])
    assert torch.equal(other.quality.flip(0), got.quality) and torch.equal(other.gt_index[0], got.gt_index[1])


def test_every_budget_gives_the_same_bits() -> None:
    points, targets = grid_points([(20, 20), (10, 10)], (8, 16)), random_targets([40, 0, 90], extent=160.0)
    logits, boxes = predictions(targets, points)
    whole = TaskAlignedAssigner(beta=2.3, memory_budget=2**30)(points, targets, logits, boxes)
    assert whole.num_pos > 200
    for budget in (1, 5_000, 30_000, 100_000, 1_000_000):
        part = TaskAlignedAssigner(beta=2.3, memory_budget=budget)(points, targets, logits, boxes)
        assert torch.equal(part.gt_index, whole.gt_index) and torch.equal(part.quality, whole.quality), budget


@pytest.mark.parametrize("covering", [False, True])
def test_a_thousand_objects_stay_within_the_memory_budget(covering: bool) -> None:
    points, budget = grid_points([(40, 40), (20, 20)], (8, 16)), 2**22
    targets = random_targets([1000, 0], extent=320.0)
    if covering:
        targets[0]["boxes"] = torch.tensor([-1.0, -1.0, 321.0, 321.0]) + torch.rand(1000, 4)
    targets, (logits, boxes) = pad_targets(targets, points.xy), predictions(targets, points)
    with LiveBytes() as measured:
        got = TaskAlignedAssigner(memory_budget=budget)(points, targets, logits, boxes)
    assert measured.peak <= budget + 2 * (len(points.xy) + 1000) * 120  # the result and what is known of each prior and object
    if covering:
        with LiveBytes() as unlimited:
            whole = TaskAlignedAssigner(memory_budget=2**40)(points, targets, logits, boxes)
        assert unlimited.peak > 40 * budget and got.num_pos > 20
        assert torch.equal(got.gt_index, whole.gt_index) and torch.equal(got.quality, whole.quality)


def test_the_host_waits_three_times_however_many_images_and_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    for counts in ([1], [5, 0, 30, 2]):
        targets = random_targets(counts)
        logits, boxes = predictions(targets)
        with no_value_checks(monkeypatch), HostReads() as reads:
            TaskAlignedAssigner()(POINTS, targets, logits, boxes)
        assert reads.found == ["nonzero"] * 2  # and the list of counts, which no operator reports


def test_it_compiles_without_a_graph_break() -> None:
    targets, assigner = random_targets([3, 2]), TaskAlignedAssigner()
    targets[0]["ignore_boxes"] = random_boxes(2)
    logits, boxes = (x.requires_grad_() for x in predictions(targets))
    compiled = torch.compile(lambda t, *p: assigner(POINTS, t, *p), fullgraph=True, backend="aot_eager")
    expected, found = assigner(POINTS, targets, logits, boxes), compiled(targets, logits, boxes)
    for name, value in vars(expected).items():
        own = getattr(found, name)
        assert torch.equal(own, value) and not own.requires_grad, name
    with torch.no_grad():
        problem = assigner._problem(POINTS, pad_targets(targets, POINTS.xy), logits.detach(), boxes.detach())
        torch.library.opcheck(match_operator, (*problem, *assigner._rule()))


def test_layout_and_precision_of_predictions() -> None:
    points, targets = grid_points(SIZES, STRIDES), random_targets([5, 3])
    logits, boxes = predictions(targets, points)
    got = TaskAlignedAssigner()(points, targets, logits, boxes)
    maps = logits.transpose(1, 2).contiguous().transpose(1, 2)
    assert not maps.is_contiguous() and torch.equal(TaskAlignedAssigner()(points, targets, maps, boxes).quality, got.quality)
    logits, boxes = logits.bfloat16(), boxes.bfloat16()
    half, upcast = (TaskAlignedAssigner()(points, targets, *p) for p in ((logits, boxes), (logits.float(), boxes.float())))
    assert half.quality.dtype == torch.float32 and torch.equal(half.gt_index, upcast.gt_index)
    assert torch.equal(half.quality, upcast.quality)


def test_priors_of_every_image_and_padding_among_them() -> None:
    targets = random_targets([4, 6])
    logits, boxes = predictions(targets)
    centre = torch.stack([POINTS.xy, POINTS.xy + 2.5]).repeat(1, 1, 2)
    priors = Anchors.of(centre, POINTS.counts, STRIDES, torch.arange(84).expand(2, -1) != 40)
    got = TaskAlignedAssigner()(priors, targets, logits, boxes)
    boxes[:, 40] = math.nan
    for image in (0, 1):
        alone = Anchors.of(centre[image], POINTS.counts, STRIDES)
        own = TaskAlignedAssigner()(alone, targets[image : image + 1], *(x[image : image + 1] for x in (logits, boxes)))
        assert torch.equal(own.gt_index[0], got.gt_index[image]) and torch.equal(own.quality[0], got.quality[image])


def test_no_images_no_objects_and_no_priors() -> None:
    empty = TaskAlignedAssigner()(POINTS, [], torch.zeros(0, 84, 3), torch.zeros(0, 84, 4))
    assert empty.gt_index.shape == (0, 84)
    assert check(random_targets([0, 0])).negative.all()
    none = grid_points([(0, 3)], [8]), of([0.0, 0.0, 8.0, 8.0]), torch.zeros(1, 0, 3), torch.zeros(1, 0, 4)
    assert TaskAlignedAssigner()(*none).num_pos == 0


def test_conditions_say_why_an_object_got_nothing() -> None:
    targets = pad_targets(of([16.0, 16.0, 48.0, 48.0], [200.0, 200.0, 232.0, 232.0], [0.0, 0.0, 16.0, 16.0]), POINTS.xy)
    logits, boxes = torch.zeros(1, 84, 1), torch.tensor([16.0, 16.0, 48.0, 48.0]).double().expand(1, 84, 4)
    got = TaskAlignedAssigner()(POINTS, targets, logits, boxes)
    conditions = TaskAlignedAssigner().conditions(POINTS, targets, 0, logits, boxes)
    left = torch.stack(list(conditions.values())).int().cumprod(0).bool().any(-1)
    assert left.tolist() == [[True, False, True], [True, False, False], [True, False, False]]
    assert torch.equal(conditions["location among the 10 best of the object"][0], got.gt_index[0] == 0)


def test_errors_say_what_is_wrong() -> None:
    logits, boxes, targets = torch.zeros(1, 84, 3), torch.zeros(1, 84, 4), of([0.0, 0.0, 8.0, 8.0])
    with pytest.raises(TypeError, match="TaskAlignedAssigner looks at predictions"):
        TaskAlignedAssigner()(POINTS, targets)
    with pytest.raises(ValueError, match="expected targets for each of 1 images; got 2"):
        TaskAlignedAssigner()(POINTS, targets * 2, logits, boxes)
    with pytest.raises(ValueError, match=r"labels.*must be in 0…2"):
        TaskAlignedAssigner()(POINTS, [{**targets[0], "labels": torch.tensor([3])}], logits, boxes)
    for name, value in (("topk", 0), ("alpha", -1), ("beta", -1), ("eps", 0), ("memory_budget", 0), ("iou", "giou")):
        with pytest.raises(ValueError, match=f"{name} must be"):
            detloss.build({"type": "TaskAlignedAssigner", name: value})
