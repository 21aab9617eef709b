"""The native costs of Hungarian matching are those of the operations of torch, to the bit; so are its matches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from match_cases import CLASSES, some_queries

from detloss import kernels
from detloss.assigners import HungarianAssigner, pad_targets
from detloss.kernels.native import Native
from detloss.kernels.native.library import problem

pytest.importorskip("scipy")
if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The operations that the native back-end was asked for."""
    asked: list[str] = []
    match = Native.match
    monkeypatch.setattr(Native, "match", lambda self, given: (asked.append(given.op), match(self, given))[1])
    with kernels.use("native"):
        yield asked


@pytest.mark.parametrize("scale", [1.0, 640.0, 1e-6, 1e20])
@pytest.mark.parametrize(("iou", "softmax"), [("giou", True), ("giou", False), ("iou", False)])
def test_costs_and_matches(iou: Any, softmax: bool, scale: float, instruction_set: str, native: list[str]) -> None:
    assigner = HungarianAssigner("softmax" if softmax else "focal", 2.0, 5.0, 3.0, iou)
    for images, queries, most in ((3, 70, 9), (1, 8, 20), (4, 129, 3)):
        targets, scores, boxes = some_queries(images, queries, most, softmax, scale)
        padded, sizes = pad_targets(targets, boxes, CLASSES), torch.tensor([scale * 1.5, scale]).expand(images, 2)
        found, costs = assigner(None, targets, scores, boxes, sizes), assigner._costs(padded, scores, boxes, sizes)
        assert native == ["pair_cost"] * 2
        with kernels.use("reference"):
            expected, want = assigner(None, targets, scores, boxes, sizes), assigner._costs(padded, scores, boxes, sizes)
        assert native == ["pair_cost"] * 2
        native.clear()
        assert torch.equal(costs, want)
        assert torch.equal(found.gt_index, expected.gt_index) and torch.equal(found.quality, expected.quality)
        assert torch.equal(found.ignore, expected.ignore) and bool(found.positive.any())


def test_small_parts_and_threads() -> None:
    targets, scores, boxes = some_queries(3, 90, 12, True, 100.0)
    whole = HungarianAssigner()(None, targets, scores, boxes, (100, 100))
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            parts = HungarianAssigner(memory_budget=10_000)(None, targets, scores, boxes, (100, 100))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(parts.gt_index, whole.gt_index) and torch.equal(parts.quality, whole.quality)


def test_other_costs_and_dtypes_go_by_the_operations_of_torch(native: list[str]) -> None:
    targets, scores, boxes = some_queries(2, 20, 4, True, 1.0)
    for iou in ("diou", "ciou"):
        assert HungarianAssigner(iou=iou)(None, targets, scores, boxes).positive.any()
    doubles = [{**target, "boxes": target["boxes"].double()} for target in targets]
    assert HungarianAssigner()(None, doubles, scores.double(), boxes.double()).positive.any()
    assert native == []
    assert str(kernels.backend(HungarianAssigner())) == str(kernels.backend("HungarianAssigner")) == "native: asked for"
    assert str(kernels.backend(HungarianAssigner(iou="diou"))) == "reference: pair_cost has no native kernel for iou='diou'"
