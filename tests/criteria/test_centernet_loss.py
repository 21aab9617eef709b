"""CenterNetLoss: its numbers by hand, who owns a cell, and what it says when something is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from criteria_cases import fresh, gradients, leaves, pixel_targets
from criteria_cases_centernet import random_centre_maps
from fcos_cases import HostReads, no_value_checks
from torch import Tensor

from detloss.criteria.centernet import CenterNetLoss

LN2 = math.log(2)


def target(*boxes: list[float], labels: list[int] | None = None, **more: Tensor) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels or [0] * len(boxes)), **more}


def flat(classes: int = 2, side: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of 0, sizes of 1 cell, offsets of 0."""
    return (
        torch.zeros(1, classes, side, side, requires_grad=True),
        torch.ones(1, 2, side, side, requires_grad=True),
        torch.zeros(1, 2, side, side, requires_grad=True),
    )


def test_values_by_hand() -> None:
    """One object of 2 × 1 cells of 4 pixels with its centre at (2.0, 1.5) cells: cell (2, 1), radius 0, one peak."""
    losses = CenterNetLoss(2)(*flat(), [target([4.0, 4.0, 12.0, 8.0], labels=[1])])
    # Logits of 0: the peak costs ln 2 / 4 and so does each of the 31 other elements.
    assert losses["loss_cls"].item() == pytest.approx(32 * LN2 / 4)
    # |1 − 2| + |1 − 1| over 2 · 1 objects, times 0.1; |0 − 0| + |0 − 0.5| over 2.
    assert losses["loss_size"].item() == pytest.approx(0.1 * 0.5)
    assert losses["loss_offset"].item() == pytest.approx(0.25)
    assert losses.metrics["num_pos"] == losses.metrics["num_gt"] == 1
    # The box predicted is 4 × 4 around (8, 4), [6, 2, 10, 6]; 4 · 2 of 16 + 32 − 8 pixels are common with [4, 4, 12, 8].
    assert losses.metrics["mean_iou"].item() == pytest.approx(8 / 40)


def test_the_surroundings_of_a_large_object_are_spared() -> None:
    """20 × 20 cells: the radius is ⌊20 (1 − √0.7) / 2⌋ = 1, σ = 1/2; the neighbours have e⁻² and the corners e⁻⁴."""
    losses = CenterNetLoss(1)(*flat(1, 3), [target([-34.0, -34.0, 46.0, 46.0])])
    expected = (1 + 4 * (1 - math.exp(-2)) ** 4 + 4 * (1 - math.exp(-4)) ** 4) * LN2 / 4
    assert losses["loss_cls"].item() == pytest.approx(expected)


def test_sizes_in_pixels() -> None:
    losses = CenterNetLoss(2, size_unit="pixel")(*flat(), [target([4.0, 4.0, 12.0, 8.0])])
    assert losses.unweighted["loss_size"].item() == pytest.approx((7 + 3) / 2)
    # The box predicted is 1 × 1 around (8, 4); half of it is in [4, 4, 12, 8].
    assert losses.metrics["mean_iou"].item() == pytest.approx(0.5 / (1 + 32 - 0.5))


BIG, SMALL, MIDDLE = [0.0, 2.0, 16.0, 10.0], [7.0, 5.0, 9.0, 7.0], [4.0, 2.0, 12.0, 10.0]  # all with the centre (8, 6)


@pytest.mark.parametrize(("owner", "pays"), [("smallest", 1 / 2), ("last", 2 / 2), ("all", (4 + 1 + 2) / 6)])
def test_objects_with_one_centre_cell(owner: str, pays: float) -> None:
    """Sides in cells 4 × 2, 0.5 × 0.5 and, last, 2 × 2: against 1 × 1 they cost 4, 1 and 2. The first two share their peak."""
    objects = target(BIG, SMALL, MIDDLE, labels=[0, 0, 1])
    losses = CenterNetLoss(2, cell_owner=owner)(*flat(), [objects])
    assert losses.unweighted["loss_size"].item() == pytest.approx(pays)
    assert losses.metrics["num_pos"] == 1 and losses.metrics["num_gt_without_pos"] == 2
    matched = CenterNetLoss(2, cell_owner=owner).match(*flat(), [objects])
    assert matched.counts.tolist() == [2, 3 if owner == "all" else 1]
    assert matched.assignment.gt_index[0, 1 * 4 + 2] == (2 if owner == "last" else 1)


def test_equal_objects_with_one_centre_cell_belong_to_the_first() -> None:
    matched = CenterNetLoss(2).match(*flat(), [target(MIDDLE, MIDDLE, BIG)])
    assert matched.assignment.gt_index.max() == 0


def test_a_thousand_objects_have_their_cells_in_one_call() -> None:
    torch.manual_seed(0)
    (heat, size, offset), targets = random_centre_maps(1), pixel_targets((1000,))
    matched = CenterNetLoss(3, memory_budget=2**16).match(heat, size, offset, targets)
    boxes = targets[0]["boxes"]
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        cell = (int((y1 + y2) / 8), int((x1 + x2) / 8))
        best[cell] = min(best.get(cell, (math.inf, 0)), ((x2 - x1) * (y2 - y1), k))
    found = {(p // 16, p % 16): int(g) for p, g in enumerate(matched.assignment.gt_index[0].tolist()) if g >= 0}
    assert found == {cell: k for cell, (_, k) in best.items()}


def test_an_object_off_the_map_gets_nothing_and_explain_says_so() -> None:
    objects = target([900.0, 900.0, 910.0, 910.0], [-9.0, 0.0, 1.0, 4.0], BIG, SMALL)
    criterion = CenterNetLoss(2)
    losses = criterion(*flat(), [objects])
    assert losses.metrics["num_pos"] == 1 and losses.metrics["num_gt_without_pos"] == 3
    reasons = [report.reason for report in criterion.explain(*flat(), [objects]).objects]
    assert reasons[0] == reasons[1] == "no cell of the map under its centre"
    assert reasons[2] == "no cell of its own, another object has the same centre (smallest wins)" and reasons[3] is None


def test_levels_split_objects_by_their_longer_side() -> None:
    """Strides 4 and 8: up to 64 pixels on the first level, larger ones on the second."""
    torch.manual_seed(0)
    maps = random_centre_maps(1, (4, 8))
    objects = target([0.0, 0.0, 64.0, 8.0], [0.0, 0.0, 64.5, 8.0])
    explained = CenterNetLoss(3, (4, 8)).explain(*maps, [objects])
    assert [report.per_level for report in explained.objects] == [(1, 0), (0, 1)]
    first = CenterNetLoss(3, (4, 8)).explain(*(x[:1] for x in maps), [objects])
    assert first.objects[1].reason == "no level with its size in the range"
    whole = CenterNetLoss(3, (4, 8))(*maps, [target([0.0, 0.0, 8.0, 8.0])])
    only = CenterNetLoss(3)(*(x[:1] for x in maps), [target([0.0, 0.0, 8.0, 8.0])])
    assert whole["loss_size"] == only["loss_size"] and whole["loss_cls"] > only["loss_cls"]


def test_moving_image_and_objects_by_a_cell_changes_nothing() -> None:
    """The maps shift by one column; the new first one is as quiet as the old last one, so that both cost nothing."""
    torch.manual_seed(0)
    maps, targets = random_centre_maps(2, dtype=torch.float64), pixel_targets((3, 1))
    heat, size, offset = (x[0].detach() for x in maps)
    heat[..., :1] = heat[..., -1:] = -1e4
    for one in targets:
        one["boxes"] = one["boxes"].clamp(4, 56)
    shifted = [{**one, "boxes": one["boxes"] + torch.tensor([4.0, 0.0, 4.0, 0.0])} for one in targets]
    moved = [x.roll(1, dims=-1) for x in (heat, size, offset)]
    got, want = CenterNetLoss(3)(*moved, shifted), CenterNetLoss(3)(heat, size, offset, targets)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=0)


def test_cells_in_ignore_boxes_pay_nothing_but_the_centres_of_objects_do() -> None:
    region = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    plain = CenterNetLoss(1)(*flat(1), [target([4.0, 4.0, 8.0, 8.0])])
    ignored = CenterNetLoss(1)(*flat(1), [target([4.0, 4.0, 8.0, 8.0], ignore_boxes=region)])
    assert plain["loss_cls"].item() == pytest.approx(16 * LN2 / 4)
    assert ignored["loss_cls"].item() == pytest.approx(1 * LN2 / 4)
    assert plain["loss_size"] == ignored["loss_size"]


def test_class_options_reach_the_loss() -> None:
    """Sigmoid cross entropy of logits 0: every element costs ln 2, whatever its target; positives of class 1 count 5 times."""
    config = {"type": "CrossEntropyLoss", "use_sigmoid": True}
    objects = [target([4.0, 4.0, 8.0, 8.0], labels=[1])]
    plain = CenterNetLoss(2, loss_cls=config)(*flat(), objects)["loss_cls"].item()
    weighted = CenterNetLoss(2, loss_cls={**config, "class_weight": [1.0, 5.0]})(*flat(), objects)["loss_cls"].item()
    smoothed = CenterNetLoss(2, loss_cls={**config, "label_smoothing": 0.2})
    heat = torch.full((1, 2, 4, 4), 3.0)
    assert plain == pytest.approx(32 * LN2) and weighted == pytest.approx((31 + 5) * LN2)
    # A logit of 3 as background: target 0.1 instead of 0 saves 0.1 · 3; as foreground: 0.9 instead of 1 costs 0.3 more.
    saved = 31 * 0.3 - 0.3
    base = CenterNetLoss(2, loss_cls=config)(heat, *flat()[1:], objects)["loss_cls"].item()
    assert smoothed(heat, *flat()[1:], objects)["loss_cls"].item() == pytest.approx(base - saved, rel=1e-5)


@pytest.mark.parametrize("counts", [(0, 0), (3, 2)])
def test_a_step_reads_no_value_on_the_host(counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = random_centre_maps(2), pixel_targets(counts)
    with no_value_checks(monkeypatch), HostReads() as reads:
        CenterNetLoss(3)(*maps, targets).total_loss.backward()
    assert reads.found == []


def test_giant_tiny_and_empty_boxes_are_finite() -> None:
    objects = target([-1e6, -1e6, 1e6, 1e6], [8.0, 8.0, 8.0, 8.0], [3.0, 3.0, 3.001, 3.001], [0.0, 0.0, 16.0, 0.0])
    maps = flat()
    losses = CenterNetLoss(2)(*maps, [objects])
    assert losses.metrics["num_pos"] == 3  # the giant one shares its cell with the tiny one
    assert all(torch.isfinite(g).all() for g in gradients(losses.total_loss, maps))


def test_a_map_without_cells() -> None:
    maps = fresh([torch.zeros(2, c, 0, 4) for c in (3, 2, 2)])
    losses = CenterNetLoss(3)(*maps, pixel_targets((2, 0)))
    assert losses.total_loss == 0 and len(gradients(losses.total_loss, maps)) == len(leaves(maps))


def test_bad_options_and_calls() -> None:
    with pytest.raises(ValueError, match=r"radius must be one of 'exact', 'official'; got 'offical'. Did you mean 'official'"):
        CenterNetLoss(3, radius="offical")
    with pytest.raises(ValueError, match=r"min_overlap must lie in \(0, 1\); got 1.5"):
        CenterNetLoss(3, min_overlap=1.5)
    with pytest.raises(ValueError, match=r"loss_size compares numbers one by one.*got GIoULoss"):
        CenterNetLoss(3, loss_size="GIoULoss")
    with pytest.raises(ValueError, match="one size range per stride; got 1 ranges and 2 strides"):
        CenterNetLoss(3, (4, 8), size_ranges=[(0, 64)])
    with pytest.raises(ValueError, match=r"lo < hi per level; got \(64, 0\)"):
        CenterNetLoss(3, size_ranges=[(64, 0)])
    with pytest.raises(ValueError, match=r"no term 'loss_box' to weigh"):
        CenterNetLoss(3, weights={"loss_box": 1.0})
    heat, size, offset = flat()
    with pytest.raises(ValueError, match=r"heatmaps\[0\] must have shape \[B, 3, H, W\] = \[1, 3, 4, 4\]; got \[1, 2, 4, 4\]"):
        CenterNetLoss(3)(heat, size, offset, [target()])
    with pytest.raises(ValueError, match=r"sizes\[0\] must have shape .* got \[2, 4, 4\]"):
        CenterNetLoss(2)(heat, size[0], offset, [target()])
    with pytest.raises(ValueError, match=r"expected 1 to 1 levels, one per stride \(4,\); got 2"):
        CenterNetLoss(2)([heat, heat], [size, size], [offset, offset], [target()])
