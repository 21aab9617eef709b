"""The IoU rule and ATSS by Triton's interpreter, against the operations of torch, to the bit.

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
from match_cases import atss_case, check_same, max_iou_case, some_boxes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detloss import kernels
from detloss.assigners import Assigner, ATSSAssigner, MaxIoUAssigner, pad_targets
from detloss.geometry import Anchors
from detloss.kernels.matches import ATSSMatch, MaxIoUMatch

pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
from detloss.kernels.triton_backend import BACKEND, Triton, atss, max_iou


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """New tensors hold NaN or a number that is no object; the operations that the back-end was asked for."""
    made, match, asked = torch.empty, Triton.match, []

    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        fresh = calls.poisoned(made)(*arguments, **options)
        return fresh if fresh.is_floating_point() else fresh.fill_(77)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(Triton, "match", lambda self, given: (asked.append(given.op), match(self, given))[1])
    with kernels.use("triton"):
        yield asked


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of which the last is not full."""
    for module, sizes in ((max_iou, {"ANCHORS": 64, "OBJECTS": 4}), (atss, {"ANCHORS": 32, "UNPACKED": 128})):
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)


def compared(assigner: Assigner, inputs: tuple[Any, ...]) -> int:
    """That the kernels find what the operations of torch find; the number of positives."""
    found = assigner(*inputs)
    with kernels.use("reference"):
        expected = assigner(*inputs)
    check_same(found, expected)
    return int((expected.gt_index >= 0).sum())


@pytest.mark.parametrize("name", ["max_iou", "atss"])
def test_random_cases(name: str, small_blocks: None, surroundings: list[str]) -> None:
    positives, taken = 0, 0
    for seed in range(14 if name == "max_iou" else 20):
        torch.manual_seed(seed)
        assigner, inputs = (max_iou_case if name == "max_iou" else atss_case)(random.Random(seed))
        many = name == "atss" and (assigner.topk > atss.MOST_OF_LEVEL or len(inputs[0].boxes.flatten(0, -2)) > 1500)
        if not many:
            positives += compared(assigner, inputs)
            taken += 1
    assert surroundings == [name] * taken and taken >= 10 and positives > 100


@pytest.mark.parametrize("name", ["max_iou", "atss"])
def test_usual_blocks(name: str, surroundings: list[str]) -> None:
    torch.manual_seed(1)
    boxes, objects = some_boxes(1500, whole=True, size=200, side=60), some_boxes(21, whole=True, size=200, side=60)
    targets = [
        {"boxes": part, "labels": torch.zeros(len(part), dtype=torch.long)} for part in (objects, objects[:0], objects[:3])
    ]
    assigner: Assigner = MaxIoUAssigner() if name == "max_iou" else ATSSAssigner()
    assert compared(assigner, (Anchors.of(boxes, [1100, 300, 100]), targets)) > 20
    assert surroundings == [name]


@pytest.mark.parametrize("topk", [1, 2, 3, 5, 9, 31, 64])
def test_sums_over_any_number_of_candidates(topk: int, small_blocks: None, surroundings: list[str]) -> None:
    """Deviations are sums whose order depends on the number of candidates: 1 to 3 levels of ``topk`` each."""
    torch.manual_seed(topk)
    boxes, objects = torch.rand(200, 2) * 100, torch.rand(4, 2) * 60
    anchors = torch.cat((boxes, boxes + 5 + torch.rand(200, 2) * 40), dim=1)
    targets = [{"boxes": torch.cat((objects, objects + 40), dim=1), "labels": torch.zeros(4, dtype=torch.long)}]
    for counts in ([200], [100, 100], [70, 0, 70, 60], [197, 3]):
        compared(ATSSAssigner(topk), (Anchors.of(anchors, counts), targets))
    assert surroundings == ["atss"] * 4


def test_ties_of_rounded_overlaps(surroundings: list[str]) -> None:
    """Thirds and sevenths: an object claims all anchors whose IoU is the same quotient, and no neighbour in the last bit."""
    anchors = torch.tensor([[0.0, 0, 3, 1], [1.0, 0, 4, 1], [0.0, 0, 1, 7], [2.0, 0, 3, 7], [0.0, 0, 1, 6.999999]])
    targets = [{"boxes": torch.tensor([[0.0, 0, 1, 1], [1.0, 0, 2, 1], [2.0, 0, 3, 1]]), "labels": torch.zeros(3).long()}]
    found = MaxIoUAssigner(0.9, 0.1, low_quality="gt")(Anchors.of(anchors), targets)
    assert found.gt_index.tolist() == [[2, 2, -1, -1, -1]]
    assert found.quality[0, 0] == torch.tensor(1.0) / 3 and surroundings == ["max_iou"]


class NoWait(TorchDispatchMode):
    """An error where the host would wait for the values of a device."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        assert not any(word in str(function) for word in ("_local_scalar_dense", "nonzero", "unique", "masked_select")), function
        return function(*arguments, **(options or {}))


class Skipped:
    """A kernel that is not run: what it does is the device's."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **options: None


@pytest.mark.parametrize("name", ["max_iou", "atss"])
def test_the_host_reads_nothing_of_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    anchors = Anchors.of(some_boxes(130, whole=True, size=60, side=40), [100, 30])
    kind = {"whole": True, "size": 60, "side": 40}
    targets = [{"boxes": some_boxes(count, **kind), "labels": torch.zeros(count).long()} for count in (5, 1)]
    assigner = MaxIoUAssigner(neg_iou_thr=(0.1, 0.4)) if name == "max_iou" else ATSSAssigner(memory_budget=2**9)
    match = assigner._match(anchors, pad_targets(targets, anchors.boxes))
    for module in (max_iou, atss):
        for kernel in ("max_iou_best", "max_iou_decide", "atss_nearest", "atss_claim", "atss_settle"):
            monkeypatch.setattr(module, kernel, Skipped(), raising=False)
    with NoWait():
        assert BACKEND.match(match)[0].shape == (2, 130)


def test_what_is_refused() -> None:
    boxes, objects, present = torch.zeros(3, 4), torch.zeros(1, 1, 4), torch.ones(1, 1).bool()
    rule = MaxIoUMatch(boxes, None, objects, present, 0.5, (0.0, 0.4), 0.0, True, True)
    nearest = ATSSMatch(boxes, None, objects, present, (2, 1), 9, 0.01, 2**20)
    assert BACKEND.refuses(rule) is BACKEND.refuses(nearest) is None
    assert BACKEND.refuses(replace(rule, objects=torch.zeros(2, 1, 4))) == "shapes that do not fit"
    assert BACKEND.refuses(replace(nearest, counts=(2, 2))) == "shapes that do not fit"
    assert BACKEND.refuses(replace(nearest, topk=65)) == "more than 64 candidates of a level"
    assert BACKEND.refuses(replace(rule, boxes=boxes.double())) == "float64 input"
    for assigner in (MaxIoUAssigner(), ATSSAssigner()):
        assert str(kernels.backend(assigner)) == "triton: asked for"
