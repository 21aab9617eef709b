"""The native matching is that of the operations of torch, to the bit: random and degenerate cases, every instruction set."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import kernel_calls as calls
import pytest
import torch
from match_cases import CASES, POINTS, aligned_case, check_same, some_boxes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import detloss
from detloss import kernels
from detloss.assigners import Assigner, ATSSAssigner, MaxIoUAssigner, TaskAlignedAssigner, pad_targets
from detloss.geometry import Anchors
from detloss.kernels.matches import AlignedMatch, ATSSMatch, Match, MaxIoUMatch
from detloss.kernels.native import BACKEND, Native
from detloss.kernels.native.library import library, problem

if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)

SETS = {"base": 0, "avx2": 1, "avx512": 2}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Native kernels whatever the environment says; new tensors hold NaN or a number that is no object."""
    monkeypatch.setattr(torch, "empty", calls.poisoned(torch.empty))
    before, threads = library().detloss_instruction_set().decode(), torch.get_num_threads()
    with kernels.use("native"):
        yield
    library().detloss_choose(SETS[before])
    torch.set_num_threads(threads)


@pytest.fixture
def matched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that the native back-end was asked for."""
    asked: list[str] = []
    match = Native.match

    def counted(self: Native, given: Match) -> tuple[Tensor, ...]:
        asked.append(given.op)
        return match(self, given)

    monkeypatch.setattr(Native, "match", counted)
    return asked


class Watching(TorchDispatchMode):
    """A mode that has to see every operation."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name", CASES)
def test_random_cases_on_every_instruction_set_with_any_number_of_threads(name: str, matched: list[str]) -> None:
    positives = 0
    for seed in range(120):
        torch.manual_seed(seed)
        assigner, inputs = CASES[name](random.Random(seed))
        with kernels.use("reference"):
            expected = assigner(*inputs)
        assert not matched
        for number, choice in enumerate(SETS.values()):
            if library().detloss_choose(choice):
                torch.set_num_threads(1 + (seed + number) % 3)
                check_same(assigner(*inputs), expected)
                assert matched == [name]
                matched.clear()
        positives += int((expected.gt_index >= 0).sum())
    assert positives > 1000


@pytest.mark.parametrize("name", ["max_iou", "atss"])
def test_many_objects_and_anchors(name: str, matched: list[str]) -> None:
    torch.manual_seed(0)
    boxes = some_boxes(5000, whole=True, size=400, side=60)
    objects = some_boxes(1100, whole=True, size=400, side=60)
    targets = [{"boxes": objects, "labels": torch.zeros(len(objects), dtype=torch.long)}]
    assigner: Assigner = MaxIoUAssigner() if name == "max_iou" else ATSSAssigner()
    found = assigner(Anchors.of(boxes), targets)
    assert matched == [name]
    with kernels.use("reference"):
        check_same(found, assigner(Anchors.of(boxes), targets))


def test_ties_of_rounded_overlaps() -> None:
    """Thirds and sevenths: an object claims all anchors whose IoU is the same quotient, and no neighbour in the last bit."""
    anchors = torch.tensor([[0.0, 0, 3, 1], [1.0, 0, 4, 1], [0.0, 0, 1, 7], [2.0, 0, 3, 7], [0.0, 0, 1, 6.999999]])
    targets = [{"boxes": torch.tensor([[0.0, 0, 1, 1], [1.0, 0, 2, 1], [2.0, 0, 3, 1]]), "labels": torch.zeros(3).long()}]
    found = MaxIoUAssigner(0.9, 0.1, low_quality="gt")(Anchors.of(anchors), targets)
    assert found.gt_index.tolist() == [[2, 2, -1, -1, -1]]
    assert found.quality[0, 0] == torch.tensor(1.0) / 3


def test_backend_names_assigners() -> None:
    with kernels.use("auto"):
        for assigner in (MaxIoUAssigner(), ATSSAssigner, "TaskAlignedAssigner"):
            assert str(kernels.backend(assigner)).startswith("native: ") and str(kernels.backend(assigner)).endswith(" on cpu")
        assert str(kernels.backend("MaxIoUAssigner", torch.zeros(2, 4).double())) == "reference: float64 predictions"
        assert str(kernels.backend(detloss.FCOSAssigner())) == "reference: FCOSAssigner has no kernel"
    with kernels.use("reference"):
        assert str(kernels.backend(MaxIoUAssigner())) == "reference: asked for"
    assert str(kernels.backend(MaxIoUAssigner())) == "native: asked for"


@pytest.mark.parametrize("name", CASES)
def test_other_dtypes_and_dispatch_modes_run_the_operations_of_torch(name: str, matched: list[str]) -> None:
    torch.manual_seed(0)
    anchors = Anchors.of(some_boxes(40, whole=True, size=60, side=40))
    targets = [{"boxes": some_boxes(3, whole=True, size=60, side=40), "labels": torch.zeros(3, dtype=torch.long)}]
    logits, boxes = torch.randn(1, 40, 2), anchors.boxes[None].clone()
    assigner = {"max_iou": MaxIoUAssigner, "atss": ATSSAssigner, "task_aligned": TaskAlignedAssigner}[name]()
    expected = assigner(anchors, targets, logits, boxes)
    assert matched == [name]
    matched.clear()
    double = Anchors.of(anchors.boxes.double())
    assert torch.equal(assigner(double, targets, logits.double(), boxes.double()).gt_index, expected.gt_index)
    with Watching():
        assert torch.equal(assigner(anchors, targets, logits, boxes).gt_index, expected.gt_index)
    assert not matched


def test_compiled_task_alignment_is_an_operator_that_runs_the_kernel(matched: list[str]) -> None:
    torch.manual_seed(0)
    assigner, (points, targets, logits, boxes) = aligned_case(random.Random(4))
    torch.compiler.reset()
    found = torch.compile(lambda *given: assigner(points, targets, *given), fullgraph=True, backend="aot_eager")(logits, boxes)
    assert matched == ["task_aligned"]
    with kernels.use("reference"):
        check_same(found, assigner(points, targets, logits, boxes))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_matched_in_single_precision(dtype: torch.dtype, matched: list[str]) -> None:
    anchors = Anchors.of(some_boxes(90, whole=True, size=60, side=40).to(dtype))
    targets = [{"boxes": some_boxes(5, whole=True, size=60, side=40), "labels": torch.zeros(5, dtype=torch.long)}]
    found = MaxIoUAssigner()(anchors, targets)
    assert matched == ["max_iou"] and found.quality.dtype == torch.float32
    with kernels.use("reference"):
        check_same(found, MaxIoUAssigner()(anchors, targets))


def test_a_label_without_a_logit_is_an_error_where_it_matters() -> None:
    given = {"boxes": torch.tensor([[0.0, 0, 64, 64], [900.0, 900, 901, 901]]), "labels": torch.tensor([0, 9])}
    padded = pad_targets([given], POINTS.xy)
    logits, boxes = torch.zeros(1, len(POINTS.xy), 2), torch.zeros(1, len(POINTS.xy), 4)
    TaskAlignedAssigner(enlarge_small=False)(POINTS, padded, logits, boxes)
    padded.labels[0, 0] = 2
    with pytest.raises(IndexError, match="labels must be in 0…1; got 2"):
        TaskAlignedAssigner(enlarge_small=False)(POINTS, padded, logits, boxes)


def matches() -> tuple[MaxIoUMatch, ATSSMatch, AlignedMatch]:
    """One of each: 3 priors, 1 image, 1 object."""
    boxes, objects, present, labels = torch.zeros(3, 4), torch.zeros(1, 1, 4), torch.ones(1, 1).bool(), torch.zeros(1).long()
    both = boxes, torch.ones(1, 3).bool(), objects, present
    rule = (10, 0.5, 6.0, "iou", 1e-9, 2**20)
    return (
        MaxIoUMatch(*both, 0.5, (0.0, 0.4), 0.0, True, True),
        ATSSMatch(*both, (2, 1), 9, 0.01, 2**20),
        AlignedMatch(boxes[None], torch.zeros(1, 3, 2), boxes[:, :2], both[1], objects[0], objects[0], labels, *rule),
    )


WRONG: list[tuple[int, dict[str, Any], str]] = [
    (0, {"present": torch.ones(1, 1).int()}, "int32 input"),
    (0, {"objects": torch.zeros(1, 1, 4, device="meta")}, "input on 'meta'"),
    (0, {"valid": torch.ones(2, 3).bool()}, "shapes that do not fit"),
    (0, {"objects": torch.zeros(2, 1, 4)}, "shapes that do not fit"),
    (1, {"boxes": torch.zeros(2, 3, 4)}, "shapes that do not fit"),
    (1, {"counts": (2, 2)}, "shapes that do not fit"),
    (1, {"topk": 5000}, "more than 1024 candidates"),
    (2, {"valid": torch.ones(1, 2).bool()}, "shapes that do not fit"),
    (2, {"labels": torch.zeros(2).long()}, "shapes that do not fit"),
    (2, {"xy": torch.zeros(2, 3, 2)}, "shapes that do not fit"),
    (2, {"boxes": torch.zeros(1, 3, 4).half()}, "float16 input"),
    (2, {"topk": 5000}, "more than 1024 candidates"),
]


@pytest.mark.parametrize(("which", "changed", "reason"), WRONG)
def test_what_cannot_be_read_is_refused(which: int, changed: dict[str, Any], reason: str) -> None:
    match = matches()[which]
    assert BACKEND.refuses(match) is None
    assert BACKEND.refuses(replace(match, **changed)) == reason
