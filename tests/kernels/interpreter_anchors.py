"""The IoU rule of anchors and ATSS by Triton's interpreter, against the operations of torch, to the bit.

``test_triton.py`` starts this file in a process of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import kernel_calls as calls
import pytest
import torch
from match_cases import CASES, NoWait, check_same, some_boxes
from torch import Tensor

from detloss import kernels
from detloss.assigners import ATSSAssigner, MaxIoUAssigner, PaddedTargets, pad_targets
from detloss.assigners.predictions import fold_sum
from detloss.geometry import Anchors
from detloss.kernels.matches import ATSSMatch, MaxIoUMatch

pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
import triton
import triton.language as tl

from detloss.kernels.triton_backend import BACKEND, Triton, atss, max_iou

LARGEST = {"max_iou": 6_000, "atss": 6_000}  # pairs of a case that the interpreter gets through quickly


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """New tensors hold NaN or a number that is no object, blocks are small; the operations the back-end was asked for."""
    match, asked = Triton.match, []

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, calls.poisoned(getattr(torch, name)))
    for module, name, size in ((max_iou, "ANCHORS", 64), (max_iou, "OBJECTS", 4), (atss, "ANCHORS", 64), (atss, "UNPACKED", 128)):
        monkeypatch.setattr(module, name, size)
    monkeypatch.setattr(Triton, "match", lambda self, given: (asked.append(given.op), match(self, given))[1])
    with kernels.use("reference"):
        yield asked


def targets_of(*boxes: Tensor) -> list[dict[str, Tensor]]:
    return [{"boxes": own, "labels": torch.zeros(len(own), dtype=torch.long)} for own in boxes]


def check(assigner: MaxIoUAssigner | ATSSAssigner, anchors: Anchors, targets: list[dict[str, Tensor]] | PaddedTargets) -> Tensor:
    """That the kernels find what the operations of torch find; the index."""
    expected = assigner(anchors, targets)
    with kernels.use("triton"):
        check_same(assigner(anchors, targets), expected)
    return expected.gt_index


@pytest.mark.parametrize("name", ["max_iou", "atss"])
def test_random_cases(name: str, surroundings: list[str]) -> None:
    positives = passed = 0
    for seed in range(100):
        torch.manual_seed(seed)
        assigner, (anchors, targets) = CASES[name](random.Random(seed))
        objects = sum(len(target["boxes"]) for target in targets)
        if getattr(assigner, "topk", 0) > atss.MOST_OF_LEVEL or objects * (anchors.boxes.shape[-2] + 200) > LARGEST[name]:
            continue
        positives += int((check(assigner, anchors, targets) >= 0).sum())
        passed += 1
    assert surroundings == [name] * passed and passed > 30 and positives > 60


@pytest.mark.parametrize("sizes", [(1, 1), (64, 4), (65, 5), (130, 13)])
def test_blocks_that_are_full_and_not(sizes: tuple[int, int]) -> None:
    torch.manual_seed(0)
    priors, objects = sizes
    boxes = some_boxes(priors, whole=False, size=60, side=40)
    targets = targets_of(some_boxes(objects, whole=True, size=60, side=40), some_boxes(2, whole=False, size=60, side=40))
    for assigner in (MaxIoUAssigner(0.5, (0.1, 0.4), 0.2), ATSSAssigner(3), ATSSAssigner(33, margin=0.0)):
        check(assigner, Anchors.of(boxes), targets)


def test_usual_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    anchors = Anchors.of(some_boxes(1200, whole=True, size=200, side=60), [1100, 100])
    targets = targets_of(*some_boxes(2, 9, whole=True, size=200, side=60))
    monkeypatch.setattr(max_iou, "ANCHORS", 128)
    monkeypatch.setattr(max_iou, "OBJECTS", 8)
    monkeypatch.setattr(atss, "ANCHORS", 1024)
    for assigner in (MaxIoUAssigner(), ATSSAssigner()):
        assert int((check(assigner, anchors, targets) >= 0).sum()) > 20


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(0.5, (0.1, 0.4)), ATSSAssigner()], ids=["max_iou", "atss"])
def test_images_without_objects(assigner: MaxIoUAssigner | ATSSAssigner) -> None:
    torch.manual_seed(2)
    anchors, none = Anchors.of(some_boxes(70, whole=True, size=60, side=40)), torch.zeros(0, 4)
    assert (check(assigner, anchors, targets_of(none, none)) == -1).all()
    found = check(assigner, anchors, targets_of(none, some_boxes(5, whole=True, size=60, side=40), none))
    assert (found[[0, 2]] == -1).all() and (found[1] >= 0).any()


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(), ATSSAssigner(3)], ids=["max_iou", "atss"])
def test_inputs_of_any_strides(assigner: MaxIoUAssigner | ATSSAssigner) -> None:
    torch.manual_seed(3)
    boxes, valid = some_boxes(2, 90, whole=True, size=60, side=40), torch.rand(2, 90) < 0.8
    padded = pad_targets(targets_of(*some_boxes(2, 5, whole=True, size=60, side=40)), boxes)
    match = assigner._match(Anchors.of(boxes, valid=valid), padded)
    expected = BACKEND.match(match)

    def strided(x: Tensor) -> Tensor:
        return torch.stack((x, x), -1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0]

    others = {name: strided(getattr(match, name)) for name in ("boxes", "valid", "objects", "present")}
    assert not any(value.is_contiguous() for value in others.values())
    for found, want in zip(BACKEND.match(replace(match, **others)), expected, strict=True):
        assert torch.equal(found, want)


def test_one_row_of_proposals_stands_for_all_images() -> None:
    torch.manual_seed(4)
    boxes, valid = some_boxes(90, whole=True, size=60, side=40), torch.rand(1, 90) < 0.8
    targets = targets_of(*some_boxes(3, 5, whole=True, size=60, side=40))
    for anchors in (Anchors.of(boxes[None], valid=valid), Anchors.of(boxes.expand(3, 90, 4), valid=valid)):
        check(MaxIoUAssigner(), anchors, targets)
    anchors = Anchors.of(boxes, valid=valid.expand(3, 90).clone())
    check(ATSSAssigner(), anchors, targets)


def test_ties_of_rounded_overlaps() -> None:
    """Thirds and sevenths: an object claims all anchors whose IoU is the same quotient, and no neighbour in the last bit."""
    anchors = Anchors.of(torch.tensor([[0.0, 0, 3, 1], [1.0, 0, 4, 1], [0.0, 0, 1, 7], [2.0, 0, 3, 7], [0.0, 0, 1, 6.999999]]))
    targets = targets_of(torch.tensor([[0.0, 0, 1, 1], [1.0, 0, 2, 1], [2.0, 0, 3, 1]]))
    for kind in ("gt", "anchor"):
        check(MaxIoUAssigner(0.9, 0.1, low_quality=kind), anchors, targets)
    assert check(MaxIoUAssigner(0.9, 0.1, low_quality="gt"), anchors, targets).tolist() == [[2, 2, -1, -1, -1]]


def test_thresholds_that_overlaps_equal() -> None:
    """IoUs of exactly 2/5, 1/2 and 7/10 as they round, which the thresholds as they round must meet."""
    anchors = Anchors.of(torch.tensor([[0.0, 0, 10, high] for high in (4, 5, 7)]))
    targets = targets_of(torch.tensor([[0.0, 0, 10, 10]]))
    for positive, negative in ((0.7, 0.4), (0.5, (0.4, 0.5)), (0.4, 0.4), (0.7, 0.7)):
        check(MaxIoUAssigner(positive, negative, match_low_quality=False), anchors, targets)
    assert check(MaxIoUAssigner(0.9, 0.4, 0.7), anchors, targets).tolist() == [[-1, -1, 0]]


def test_the_first_of_equal_objects_gets_an_anchor_in_all_parts() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    same = boxes[[0, 1, 0, 1, 0]]
    for memory in (2**26, 2, 64):  # all objects at once, one by one, four and the last one
        found = check(ATSSAssigner(1, memory_budget=memory), Anchors.of(boxes), targets_of(boxes[[0] * 5], same.flip(0)))
        assert found.tolist() == [[0, -1], [0, 1]]
    assert check(MaxIoUAssigner(match_low_quality=False), Anchors.of(boxes), targets_of(same)).tolist() == [[0, 1]]
    assert check(MaxIoUAssigner(low_quality="gt"), Anchors.of(boxes), targets_of(same)).tolist() == [[4, 3]]


@pytest.mark.parametrize("per_image", [False, True])
def test_the_first_of_equally_near_anchors_are_candidates(per_image: bool) -> None:
    """More than a block of anchors around one centre: only numbers decide, and what is not usable comes last."""
    sides = torch.arange(1, 151).flip(0)[:, None].float()
    boxes = torch.cat((50 - sides, 50 - sides, 50 + sides, 50 + sides), dim=1)
    boxes[3, 0], boxes[140, 2] = torch.nan, torch.inf
    targets = targets_of(torch.tensor([[30.0, 30, 70, 70]]), torch.tensor([[0.0, 0, 100, 100], [45, 45, 55, 55]]))
    valid = torch.ones(2, 150, dtype=torch.bool)
    valid[:, :2] = False
    valid[1, 4:148] = False
    anchors = Anchors.of(boxes.expand(2, 150, 4).clone() if per_image else boxes, [149, 1], valid=valid if per_image else None)
    for topk in (1, 5, 30):
        check(ATSSAssigner(topk), anchors, targets)


def test_an_anchor_that_is_not_a_number_makes_no_threshold() -> None:
    """All anchors are candidates: the mean is NaN, which nothing reaches, unless the anchor is marked as not valid."""
    boxes = some_boxes(8, whole=True, size=20, side=20)
    boxes[:3], targets = torch.tensor([0.0, 0, 20, 20]), targets_of(torch.tensor([[0.0, 0, 20, 20]]))
    boxes[5, 1] = torch.nan
    valid = torch.arange(8)[None] != 5
    assert (check(ATSSAssigner(8), Anchors.of(boxes), targets) == -1).all()
    assert (check(ATSSAssigner(8), Anchors.of(boxes, valid=valid), targets) == 0).any()


def test_no_rounding_takes_the_mean_above_all_overlaps() -> None:
    anchors = Anchors.of(torch.tensor([[0.0, 0, 10, 4]]).expand(7, 4))
    assert (check(ATSSAssigner(7), anchors, targets_of(torch.tensor([[0.0, 0, 10, 10]]))) == 0).all()


def test_an_overlap_of_minus_0_is_one_of_0() -> None:
    anchors = Anchors.of(torch.tensor([[0.0, -4, -0.0, 4], [-0.0, -4, -0.0, 4], [0.0, -4, 0.0, 4]]))
    assert (check(ATSSAssigner(), anchors, targets_of(torch.tensor([[-8.0, -8, 8, 8]] * 2))) == 0).all()


def test_signed_zeros_and_sizes_at_the_limits() -> None:
    """Overlaps of −0, areas that underflow, and sides whose squares overflow."""
    edges = torch.tensor([[0.0, 0, -0.0, 5], [-0.0, 0, 0.0, 5], [0, 0, 1e-22, 1e-22], [-1e30, -1e30, 1e30, 1e30], [0, 0, 5, 5]])
    anchors, targets = Anchors.of(edges), targets_of(edges[[1, 2, 3, 4]].clone())
    for assigner in (MaxIoUAssigner(), ATSSAssigner(2, 0.0), ATSSAssigner(9, 0.0)):
        check(assigner, anchors, targets)


def test_objects_that_are_not_finite() -> None:
    """Targets are finite when they are padded, not when they are given as such: NaN and infinite boxes match nothing here."""
    torch.manual_seed(5)
    anchors = Anchors.of(some_boxes(80, whole=True, size=60, side=40))
    for value in (torch.nan, torch.inf):
        padded = pad_targets(targets_of(*some_boxes(2, 4, whole=True, size=60, side=40)), anchors.boxes)
        padded.boxes[0, 1, 2], padded.boxes[1] = value, value
        check(MaxIoUAssigner(0.5, (0.1, 0.4)), anchors, padded)
        assert not (check(ATSSAssigner(), anchors, padded)[0] == 1).any()


@triton.jit
def folded(x: Any, out: Any, count: Any, DEPTH: tl.constexpr) -> None:
    """The sum of ``count`` numbers as ATSS takes it."""
    lane = atss._fold_order(count, DEPTH)
    numbers = tl.load(x + lane, mask=lane >= 0, other=0.0)
    tl.store(out, atss._fold_sum(numbers, DEPTH))


def test_sums_are_taken_in_the_order_of_the_reference() -> None:
    torch.manual_seed(6)
    for count in (1, 2, 3, 5, 7, 9, 13, 23, 31, 32, 33, 45, 63, 65, 127):
        x, out = torch.rand(count) ** 4, torch.zeros(1)
        folded[(1,)](x, out, count, DEPTH=max(1, (count - 1).bit_length()))
        assert torch.equal(out[0], fold_sum(x)), count


def test_low_precision_is_matched_in_single_precision(surroundings: list[str]) -> None:
    torch.manual_seed(7)
    targets = targets_of(some_boxes(5, whole=True, size=60, side=40))
    for dtype in (torch.bfloat16, torch.float16):
        anchors = Anchors.of(some_boxes(90, whole=True, size=60, side=40).to(dtype))
        for assigner in (MaxIoUAssigner(), ATSSAssigner()):
            check(assigner, anchors, targets)
    assert surroundings == ["max_iou", "atss"] * 2


@pytest.mark.parametrize("name", ["max_iou", "atss"])
def test_the_host_reads_nothing_of_the_device(name: str) -> None:
    torch.manual_seed(2)
    anchors = Anchors.of(some_boxes(130, whole=True, size=60, side=40), [100, 30])
    targets = targets_of(*(some_boxes(count, whole=True, size=60, side=40) for count in (5, 1)))
    assigner = MaxIoUAssigner(neg_iou_thr=(0.1, 0.4)) if name == "max_iou" else ATSSAssigner(memory_budget=2**9)
    match = assigner._match(anchors, pad_targets(targets, anchors.boxes))
    with NoWait():
        found = BACKEND.match(match)
    assert (found[0] >= 0).any()


def test_what_runs_is_named_and_what_cannot_be_read_is_refused() -> None:
    with kernels.use("triton"):
        for assigner in (MaxIoUAssigner(), ATSSAssigner):
            assert str(kernels.backend(assigner, torch.zeros(2, 4))) == "triton: asked for"
        assert kernels.backend("ATSSAssigner", torch.zeros(2, 4).double()).name == "reference"
    boxes, objects, present = torch.zeros(3, 4), torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    rule = MaxIoUMatch(boxes, None, objects, present, 0.5, (0.0, 0.4), 0.0, True, True)
    nearest = ATSSMatch(boxes, None, objects, present, (2, 1), 9, 0.01, 2**20)
    assert BACKEND.refuses(rule) is None and BACKEND.refuses(nearest) is None
    assert BACKEND.refuses(replace(rule, present=present.int())) == "int32 input"
    assert BACKEND.refuses(replace(rule, objects=torch.zeros(2, 1, 4))) == "shapes that do not fit"
    assert BACKEND.refuses(replace(nearest, counts=(2, 2))) == "shapes that do not fit"
    assert BACKEND.refuses(replace(nearest, topk=65)) == "more than 64 candidates"
    assert "run on CUDA" in (BACKEND.refuses(replace(rule, boxes=boxes.to("meta"))) or "")
