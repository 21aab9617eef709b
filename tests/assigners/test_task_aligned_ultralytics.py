"""The task-aligned assigner beside that of ultralytics: the same objects and scores, and right where the peer is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detloss.assigners.task_aligned import TaskAlignedAssigner
from detloss.geometry import grid_points

tal = pytest.importorskip("ultralytics.utils.tal")

STRIDES = (8, 16, 32)
Batch = tuple[list[dict[str, Tensor]], Tensor, Tensor]


def batch(seed: int, dtype: torch.dtype, objects: int, smallest: float, images: int = 3, classes: int = 7) -> Batch:
    """Objects on 320 x 320 pixels with sides from ``smallest`` on, logits, and boxes of the size of a few strides."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=dtype, generator=generator)

    points = grid_points([(40, 40), (20, 20), (10, 10)], STRIDES, dtype=dtype)
    centre, half = rand(images, objects, 2) * 320, smallest / 2 * 16 ** rand(images, objects, 2)
    boxes = torch.cat((centre - half, centre + half), dim=-1)
    labels = torch.randint(classes, (images, objects), generator=generator)
    logits = torch.randn(images, 2100, classes, dtype=dtype, generator=generator) * 2 - 3
    sides = rand(images, 2100, 4) * 6 * points.stride[:, None]
    predicted = torch.cat((points.xy - sides[..., :2], points.xy + sides[..., 2:]), dim=-1)
    return [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)], logits, predicted


def theirs(targets: list[dict[str, Tensor]], logits: Tensor, boxes: Tensor, **options) -> tuple[Tensor, Tensor]:
    """(index of the object, −1 where the score is 0, score) of the peer.

    Where an object has fewer than topk priors of a metric above 0 the peer fills up with any others; they score 0.
    """
    points = grid_points([(40, 40), (20, 20), (10, 10)], STRIDES, dtype=boxes.dtype)
    rule = {"topk": 10, "alpha": 0.5, "beta": 6.0, **options}
    assigner = tal.TaskAlignedAssigner(num_classes=logits.shape[2], stride=list(STRIDES), **rule)
    truth = torch.stack([t["boxes"] for t in targets])
    labels = torch.stack([t["labels"] for t in targets])[..., None]
    scores, mask = logits.sigmoid(), torch.ones_like(labels, dtype=boxes.dtype)
    got_labels, _, target, found, index = assigner(scores, boxes, points.xy, labels, truth, mask)
    assert torch.equal(target.amax(-1) > 0, (target > 0).any(-1)) and (got_labels >= 0).all()
    return torch.where(found & (target.amax(-1) > 0), index, -1), target.amax(-1)


def ours(targets: list[dict[str, Tensor]], logits: Tensor, boxes: Tensor, **options):
    points = grid_points([(40, 40), (20, 20), (10, 10)], STRIDES, dtype=boxes.dtype)
    return TaskAlignedAssigner(**options)(points, targets, logits, boxes)


@pytest.mark.parametrize(("objects", "smallest"), [(1, 20.0), (5, 4.0), (20, 8.0), (60, 16.0), (100, 30.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(6))
def test_the_same_objects_and_scores(seed: int, dtype: torch.dtype, objects: int, smallest: float) -> None:
    random = batch(seed, dtype, objects, smallest)
    index, score = theirs(*random)
    got = ours(*random)
    assert torch.equal(got.gt_index, index) and got.num_pos > 0
    # In float32 theirs is up to 1e-4 (relative) from float64, for small overlaps; in float64 it has a constant eps of 1e-7.
    torch.testing.assert_close(got.quality, score, rtol=1e-6, atol=2e-6 if dtype == torch.float32 else 2e-7)


def test_these_batches_have_conflicts_of_both_kinds() -> None:
    """Priors that several chose, won by one of them and by one that did not choose them."""
    random = batch(3, torch.float64, 100, 30.0)
    got, alone = ours(*random), []
    for number in range(100):
        one = [{name: value[number : number + 1] for name, value in target.items()} for target in random[0]]
        alone.append(ours(one, *random[1:]).positive)
    chose = torch.stack(alone, dim=-1)
    several = chose.sum(-1) > 1
    by_one_of_them = chose.gather(-1, got.gt_index.clamp(min=0)[..., None])[..., 0]
    assert (several & by_one_of_them).sum() > 100 and (several & ~by_one_of_them).sum() > 10


@pytest.mark.parametrize(("topk", "alpha", "beta"), [(13, 1.0, 6.0), (1, 0.5, 6.0), (4, 0.7, 2.5)])
def test_other_options(topk: int, alpha: float, beta: float) -> None:
    random, rule = batch(0, torch.float64, 30, 10.0), {"topk": topk, "alpha": alpha, "beta": beta}
    index, score = theirs(*random, **rule)
    got = ours(*random, **rule)
    assert torch.equal(got.gt_index, index)
    torch.testing.assert_close(got.quality, score, rtol=1e-6, atol=2e-7)


def test_more_candidates_than_priors_are_no_error_here() -> None:
    random = batch(0, torch.float64, 2, 16.0)
    with pytest.raises(RuntimeError, match="out of range"):
        theirs(*random, topk=3000)
    assert ours(*random, topk=3000).num_pos > 10


def test_a_prediction_that_is_not_a_number_matches_nothing_here() -> None:
    targets, logits, boxes = batch(0, torch.float64, 20, 30.0)
    row = ours(targets, logits, boxes).positive[0].nonzero()[0, 0]
    boxes[0, row] = math.nan
    assert theirs(targets, logits, boxes)[1].isnan().any()
    got = ours(targets, logits, boxes)
    assert got.gt_index[0, row] == -1 and got.quality.isfinite().all()
