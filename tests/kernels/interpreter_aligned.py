"""Task alignment and the costs of queries by Triton's interpreter, against the operations of torch, to the bit.

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
from match_cases import CLASSES, POINTS, NoWait, aligned_case, aligned_problem, check_same, some_queries
from torch import Tensor

from detloss import kernels
from detloss.assigners import HungarianAssigner, TaskAlignedAssigner, pad_targets
from detloss.assigners.aligned import AlignedRule, Problem, _by_parts, _match
from detloss.kernels.matches import AlignedMatch, PairCostMatch

pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
from detloss.kernels.triton_backend import BACKEND, Triton, aligned, pair_cost

SMALL = {"PAIR_BLOCK": 64, "CHOICE_BLOCK": 32, "FLAT_BLOCK": 128, "CLAIM_ROWS": 2, "CLAIM_BLOCK": 64}
MEMORIES = (2**26, 1, 2**13, 2**14)  # for all objects, one, or a few that may be of several images
PASSED = (0, 1, 12, 14, 21, 29, 33, 35, 52, 54)  # cases that are quick, most of them with positives


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """New tensors hold NaN or a number that is no object; the operations that the back-end was asked for."""
    match, asked = Triton.match, []
    monkeypatch.setattr(torch, "empty", calls.poisoned(torch.empty))
    monkeypatch.setattr(Triton, "match", lambda self, given: (asked.append(given.op), match(self, given))[1])
    with kernels.use("reference"):
        yield asked


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of which the last is not full."""
    for name, value in SMALL.items():
        monkeypatch.setattr(aligned, name, value)
    monkeypatch.setattr(pair_cost, "BLOCK_SIZE", 32)


def check(problem: Problem, rule: AlignedRule, memory: int = 2**26) -> Tensor:
    """That the kernels find what the operations of torch find; the index."""
    expected, match = _by_parts(problem, rule), replace(_match(problem, rule), memory=memory)
    assert BACKEND.refuses(match) is None
    for found, want in zip(BACKEND.match(match), expected, strict=True):
        assert found.dtype == want.dtype and torch.equal(found, want)
    return expected[0]


def test_random_problems(small_blocks: None) -> None:
    positives = 0
    for seed in range(48):
        torch.manual_seed(seed)
        problem, rule = aligned_problem(random.Random(seed))
        positives += int((check(problem, rule, MEMORIES[seed % len(MEMORIES)]) >= 0).sum())
    assert positives > 500


@pytest.mark.parametrize("seed", PASSED)
def test_random_cases_through_the_assigner(seed: int, surroundings: list[str]) -> None:
    torch.manual_seed(seed)
    assigner, inputs = aligned_case(random.Random(seed))
    expected = assigner(*inputs)
    assert not surroundings
    with kernels.use("triton"):
        check_same(assigner(*inputs), expected)
    assert surroundings == ["task_aligned"]


def one_object(priors: int, objects: int = 1) -> tuple[Problem, AlignedRule]:
    """Equal objects that hold all priors, with predictions that are all the same."""
    box = torch.tensor([[0.0, 0, 8, 8]])
    rows = box.expand(objects, 4).clone()
    boxes, labels = (box + 1).expand(1, priors, 4).clone(), torch.zeros(objects, dtype=torch.long)
    xy = torch.full((priors, 2), 4.0)
    problem = Problem(xy, torch.ones(1, priors).bool(), rows, rows, labels, torch.zeros(1, priors, 2), boxes)
    return problem, AlignedRule(10, 0.5, 6.0, "ciou", 1e-9, 2**26)


def test_equal_pairs_go_to_the_first_priors_and_the_first_object(small_blocks: None) -> None:
    for memory in MEMORIES:
        index = check(*one_object(130, 5), memory)
        assert index[0].tolist() == [0] * 10 + [-1] * 120
    problem, rule = one_object(130)
    problem.scores[0, 100:120:2] = 1.0
    problem.scores[0, 33] = 0.5
    assert (check(problem, rule._replace(topk=12))[0] >= 0).nonzero().flatten().tolist() == [0, 33, *range(100, 120, 2)]


@pytest.mark.parametrize("topk", [1, 3, 64, 130, 1024])
def test_any_number_of_choices(topk: int, small_blocks: None) -> None:
    torch.manual_seed(topk)
    problem, rule = one_object(130)
    problem.scores.copy_((torch.randn(1, 130, 2) * 4).round())
    assert int((check(problem, rule._replace(topk=topk)) >= 0).sum()) == min(topk, 130)


def test_usual_blocks_and_the_same_every_time() -> None:
    for seed in (3, 7):
        torch.manual_seed(seed)
        problem, rule = aligned_problem(random.Random(seed))
        check(problem, rule)
        match = _match(problem, rule)
        first, again = BACKEND.match(match), BACKEND.match(match)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_no_objects_and_a_single_prior(small_blocks: None) -> None:
    problem, rule = one_object(1)
    assert check(problem, rule).tolist() == [[0]]
    none = problem._replace(region=problem.region[:0], objects=problem.objects[:0], labels=problem.labels[:0])
    assert check(none, rule).tolist() == [[-1]]
    assert check(problem._replace(region=problem.region * torch.nan), rule).tolist() == [[-1]]


def test_an_object_whose_class_has_no_logit_gets_nothing(small_blocks: None) -> None:
    problem, rule = one_object(70, 3)
    problem.scores[..., 1] = 1.0
    for label, wanted in ((-1, 2), (2, 0), (-3, 0), (2**40, 0)):
        problem.labels[:] = torch.tensor([0, 0, label])
        problem.region[:2] = torch.nan
        index, quality = BACKEND.match(_match(problem, rule))
        assert index.max() == (2 if wanted else -1) and bool((quality > 0).any()) is bool(wanted)


def test_the_host_does_not_wait() -> None:
    match = _match(*one_object(70, 3))
    with NoWait():
        BACKEND.match(match)


@pytest.mark.parametrize("scale", [1.0, 640.0, 1e-6, 1e20])
@pytest.mark.parametrize(("iou", "softmax"), [("giou", True), ("giou", False), ("iou", False)])
def test_costs(iou: Any, softmax: bool, scale: float, small_blocks: None, surroundings: list[str]) -> None:
    torch.manual_seed(0)
    assigner = HungarianAssigner("softmax" if softmax else "focal", 2.0, 5.0, 3.0, iou)
    for images, queries, most in ((3, 70, 5), (1, 8, 9), (2, 64, 2)):
        targets, scores, boxes = some_queries(images, queries, most, softmax, scale)
        padded, sizes = pad_targets(targets, boxes, CLASSES), torch.tensor([scale * 1.5, scale]).expand(images, 2)
        want = assigner._costs(padded, scores, boxes, sizes)
        assert not surroundings
        with kernels.use("triton"):
            found = assigner._costs(padded, scores, boxes, sizes)
        assert surroundings == ["pair_cost"]
        surroundings.clear()
        assert torch.equal(found, want) and bool(found.isfinite().any()) and bool(found.isinf().any())


def test_costs_of_boxes_and_objects_on_one_line(surroundings: list[str]) -> None:
    boxes = torch.tensor([[[0.0, 0, 0, 4], [0, 2, 0, 8], [2, 0, 0, 0], [0, 0, 3, 3], [1, 1, 1, 1]]])
    given = [{"boxes": boxes[0, [0, 1, 4]], "labels": torch.zeros(3, dtype=torch.long)}]
    inputs = pad_targets(given, boxes, 2), torch.zeros(1, 5, 3), boxes, torch.ones(1, 2)
    expected = HungarianAssigner()._costs(*inputs)
    with kernels.use("triton"):
        assert torch.equal(HungarianAssigner()._costs(*inputs), expected) and surroundings == ["pair_cost"]


def test_costs_take_the_memory_of_those_of_the_classes_and_stay_nan() -> None:
    boxes, yes = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 2, 2]]]), torch.ones(1, 2).bool()
    cost = torch.tensor([[[1.0, torch.nan]]])
    match = PairCostMatch(boxes, boxes[:, :1], torch.ones(1, 2), yes, yes[:, :1], cost, 5.0, 2.0, "giou", 3.0)
    (found,) = BACKEND.match(match)
    assert found.data_ptr() == cost.data_ptr() and found[0, 0, 0] == 1 and torch.isnan(found[0, 0, 1])
    cost.fill_(0)
    assert BACKEND.match(match)[0][0, 0].tolist() == [0.0, 3.0]
    assert BACKEND.match(replace(match, cost=torch.zeros(1, 0, 2), objects=boxes[:, :0], valid=yes[:, :0]))[0].shape == (1, 0, 2)


def test_what_cannot_be_read_is_refused() -> None:
    match: AlignedMatch = _match(*one_object(3))
    for changed, reason in (
        ({"topk": 1025}, "more than 1024 candidates"),
        ({"valid": torch.ones(1, 2).bool()}, "shapes that do not fit"),
        ({"labels": torch.zeros(1).int()}, "int32 input"),
        ({"boxes": torch.zeros(1, 3, 4, dtype=torch.float64)}, "float64 input"),
        ({"scores": torch.zeros(1, 3, 2, device="meta")}, "input on 'meta'"),
        ({"boxes": torch.zeros(1, 3, 4, device="meta")}, "the triton kernels run on CUDA, not on 'meta'"),
    ):
        assert BACKEND.refuses(replace(match, **changed)) == reason  # type: ignore[arg-type]


def test_backend_names_both() -> None:
    with kernels.use("triton"):
        assert str(kernels.backend(TaskAlignedAssigner())) == str(kernels.backend("HungarianAssigner")) == "triton: asked for"
        assert str(kernels.backend(HungarianAssigner(iou="ciou"))) == "reference: pair_cost has no triton kernel for iou='ciou'"
        found = TaskAlignedAssigner()(POINTS, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}], *few())
    assert not (found.gt_index >= 0).any()


def few() -> tuple[Tensor, Tensor]:
    """Logits of two classes and boxes of one image."""
    return torch.zeros(1, len(POINTS.xy), 2), torch.zeros(1, len(POINTS.xy), 4)
