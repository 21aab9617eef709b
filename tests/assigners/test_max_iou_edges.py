"""MaxIoU with proposals, boxes that are not ordinary, wrong options, and the reasons it gives."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.geometry import Anchors
from detloss.types import Assignment

SQUARES = [[0.0, 0, 8, 8], [8.0, 0, 16, 8], [0.0, 8, 8, 16], [8.0, 8, 16, 16]]


def assign(anchors: list[list[float]] | Tensor, boxes: list[list[float]], **options: Any) -> Assignment:
    """The assignment of one image."""
    target = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.long)}
    return MaxIoUAssigner(**options)(Anchors.of(torch.as_tensor(anchors)), [target])


def test_of_duplicates_the_last_claims_and_the_first_has_the_overlap() -> None:
    twice = [[0.0, 0, 8, 8]] * 2
    assert assign(SQUARES, twice).gt_index.tolist() == [[1, -1, -1, -1]]
    assert assign(SQUARES, twice, low_quality="anchor").gt_index.tolist() == [[0, -1, -1, -1]]
    assert assign(SQUARES, twice, match_low_quality=False).gt_index.tolist() == [[0, -1, -1, -1]]


@pytest.mark.parametrize(
    "box",
    [[16.0, 16, 24, 24], [8.0, 16, 8, 24], [3.0, 3, 3, 3], [-30.0, -30, -10, -10], [500.0, 500, 600, 600], [8.0, 0, 8, 16]],
    ids=["touches", "has no width", "is a point", "is off the image", "is far off", "is a side of an anchor"],
)
@pytest.mark.parametrize("low_quality", ["gt", "anchor"])
def test_an_object_that_overlaps_nothing_gets_nothing(box: list[float], low_quality: str) -> None:
    got = assign(SQUARES, [box], low_quality=low_quality)
    assert bool(got.negative.all()) and got.quality.tolist() == [[0.0] * 4]


def test_an_object_without_area_equal_to_an_anchor_without_area_gets_nothing() -> None:
    assert bool(assign([[3.0, 3, 3, 3], [0.0, 0, 0, 9]], [[3.0, 3, 3, 3], [0.0, 0, 0, 9]]).negative.all())


def test_a_tiny_object_claims_the_anchor_around_it() -> None:
    got = assign(SQUARES, [[9.0, 1, 9.001, 1.001]])
    assert got.gt_index.tolist() == [[-1, 0, -1, -1]]
    torch.testing.assert_close(got.quality[0, 1], torch.tensor(1e-6 / 64), rtol=2e-3, atol=0)


def test_a_giant_object_claims_all_anchors_inside() -> None:
    assert assign(SQUARES, [[-1e6, -1e6, 1e6, 1e6]]).gt_index.tolist() == [[0] * 4]
    for side in (1e15, 1e30, 3e38):
        assert assign([[-side, -side, side, side], *SQUARES], [[-side, -side, side, side]]).gt_index.tolist() == [
            [0, -1, -1, -1, -1]
        ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype(dtype: torch.dtype) -> None:
    anchors = (torch.tensor(SQUARES) * 64).to(dtype)  # areas above the largest float16
    got = assign(anchors, [[0.0, 0, 512, 512], [600.0, 0, 1024, 512]])
    assert got.gt_index.tolist() == [[0, 1, -1, -1]]
    assert got.quality.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def proposals() -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Two images with two and three proposals, padded to four with boxes that would match."""
    first, second = [[0.0, 0, 8, 8], [0.0, 0, 8, 4], [0.0, 0, 8, 8], [0.0, 0, 8, 8]], [[8.0, 0, 16, 8], *SQUARES[:2], SQUARES[1]]
    valid = torch.tensor([[True, True, False, False], [True, True, True, False]])
    targets = [{"boxes": torch.tensor([box]), "labels": torch.zeros(1, dtype=torch.long)} for box in (SQUARES[0], SQUARES[1])]
    return torch.tensor([first, second]), valid, targets


def test_proposals_are_matched_with_the_objects_of_their_image_and_padding_never() -> None:
    boxes, valid, targets = proposals()
    got = MaxIoUAssigner(0.6, 0.5)(Anchors.of(boxes, valid=valid), targets)
    assert got.gt_index.tolist() == [[0, -1, -1, -1], [0, -1, 0, -1]]
    assert got.ignore.tolist() == [[False, True, True, True], [False, False, False, True]]
    assert got.quality.tolist() == [[1.0, 0.5, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]


def test_shared_anchors_may_be_valid_in_some_images_only() -> None:
    _, _, targets = proposals()
    valid = torch.tensor([[False, True, True, True], [True] * 4])
    got = MaxIoUAssigner()(Anchors.of(torch.tensor(SQUARES), valid=valid), targets)
    assert got.gt_index.tolist() == [[-1] * 4, [-1, 0, -1, -1]]
    assert got.ignore.tolist() == [[True, False, False, False], [False] * 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", range(4))
def test_a_proposal_that_is_not_finite_is_ignored_and_changes_nothing_else(bad: float, side: int) -> None:
    boxes, valid, targets = proposals()
    expected = MaxIoUAssigner()(Anchors.of(boxes, valid=valid), targets)
    boxes[1, 0, side] = bad
    got = MaxIoUAssigner()(Anchors.of(boxes, valid=valid), targets)
    assert got.gt_index[1, 0] == -1 and bool(got.ignore[1, 0])
    left = torch.ones(2, 4, dtype=torch.bool)
    left[1, 0] = False
    for name in ("gt_index", "ignore", "quality"):
        assert torch.equal(getattr(got, name)[left], getattr(expected, name)[left])


def test_an_object_that_is_not_finite_gets_nothing_where_values_are_not_checked() -> None:
    boxes = torch.tensor([[[float("nan"), 0, 8, 8], [8.0, 0, float("inf"), 8], SQUARES[3]]])
    flags, none = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 0, 4)
    truth = PaddedTargets(boxes, flags.long(), flags, none, torch.zeros(1, 0, dtype=torch.bool))
    got = MaxIoUAssigner()(Anchors.of(torch.tensor(SQUARES)), truth)
    assert got.gt_index.tolist() == [[-1, -1, -1, 2]] and bool(torch.isfinite(got.quality).all())


def test_reasons() -> None:
    boxes = torch.tensor([SQUARES[0], [6.0, 6, 10, 10], [50.0, 50, 60, 60], [2.0, 2, 6, 6]])
    truth = pad_targets([{"boxes": boxes, "labels": torch.zeros(4, dtype=torch.long)}], boxes)
    anchors = Anchors.of(torch.tensor(SQUARES))
    touched, enough = MaxIoUAssigner(min_pos_iou=0.2).conditions(anchors, truth, 0).items()
    assert touched[0] == "anchor that overlaps the object"
    assert touched[1].any(1).tolist() == [True, True, False, True]
    assert enough[0] == (
        "anchor with an IoU of at least pos_iou_thr 0.5, "
        "or with the best IoU of the object where that is at least min_pos_iou 0.2"
    )
    assert enough[1].any(1).tolist() == [True, False, False, True]
    strict = MaxIoUAssigner(match_low_quality=False).conditions(anchors, truth, 0)
    assert list(strict)[1] == "anchor with an IoU of at least pos_iou_thr 0.5"
    assert list(strict.values())[1].tolist() == [[True, False, False, False], *[[False] * 4] * 3]


def test_reasons_of_an_image_with_its_own_proposals() -> None:
    boxes, valid, targets = proposals()
    priors = Anchors.of(boxes, valid=valid)
    truth = pad_targets(targets, boxes)
    for image, expected in enumerate(([[True, True, False, False]], [[True, False, True, False]])):
        assert next(iter(MaxIoUAssigner().conditions(priors, truth, image).values())).tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_iou_thr": 0}, "pos_iou_thr must be a finite number > 0"),
        ({"pos_iou_thr": 1.5}, "expected neg_iou_thr <= pos_iou_thr <= 1; got neg_iou_thr=0.4 and pos_iou_thr=1.5"),
        ({"neg_iou_thr": 0.6}, "expected neg_iou_thr <= pos_iou_thr <= 1; got neg_iou_thr=0.6"),
        ({"neg_iou_thr": (0.4, 0.1)}, "neg_iou_thr must be (lo, hi) with lo <= hi; got (0.4, 0.1)"),
        ({"neg_iou_thr": (0.1, 0.2, 0.3)}, "neg_iou_thr must be a number or (lo, hi); got (0.1, 0.2, 0.3)"),
        ({"neg_iou_thr": -0.1}, "neg_iou_thr must be a finite number >= 0"),
        ({"min_pos_iou": -0.1}, "min_pos_iou must be a finite number >= 0"),
        ({"ignore_iof_thr": -1}, "ignore_iof_thr must be a finite number >= 0"),
        ({"low_quality": "anchors"}, "low_quality must be one of 'gt', 'anchor'; got 'anchors'. Did you mean 'anchor'?"),
        ({"memory_budget": 0}, "memory_budget must be a finite number > 0"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="MaxIoUAssigner: .*" + re.escape(message)):
        MaxIoUAssigner(**options)


def test_thresholds_that_are_no_numbers() -> None:
    for value in ("0.4", None, (0.1, "x")):
        with pytest.raises(TypeError, match="MaxIoUAssigner: neg_iou_thr must be a number"):
            MaxIoUAssigner(neg_iou_thr=value)  # type: ignore[arg-type]
    assert MaxIoUAssigner(1, 0).negative_range == (0.0, 0.0)


def test_proposals_of_another_number_of_images() -> None:
    boxes, valid, targets = proposals()
    with pytest.raises(ValueError, match=r"shared or given for each of the 1 images of the targets; got boxes \[2, 4, 4\]"):
        MaxIoUAssigner()(Anchors.of(boxes), targets[:1])
    with pytest.raises(ValueError, match=r"got boxes \[4, 4\] and valid \[2, 4\]"):
        MaxIoUAssigner()(Anchors.of(boxes[0], valid=valid), targets[:1])
