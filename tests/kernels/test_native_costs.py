"""The native costs of Hungarian matching are those of the operations of torch, to the bit; so are its matches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from detloss import kernels
from detloss.assigners import HungarianAssigner, pad_targets
from detloss.kernels.native import Native
from detloss.kernels.native.library import problem

pytest.importorskip("scipy")
if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)

CLASSES = 6


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The operations that the native back-end was asked for."""
    asked: list[str] = []
    match = Native.match
    monkeypatch.setattr(Native, "match", lambda self, given: (asked.append(given.op), match(self, given))[1])
    with kernels.use("native"):
        yield asked


def some(images: int, queries: int, most: int, softmax: bool, scale: float) -> tuple[list[Any], Tensor, Tensor]:
    """Objects, logits and boxes: some equal, some without area, some turned inside out, some not finite."""
    corner = torch.rand(images, queries, 2)
    boxes = torch.cat((corner, corner + torch.rand(images, queries, 2) * 0.4), -1) * scale
    boxes[:, ::7] = boxes[:, ::7].roll(2, -1)
    boxes[:, 1::9, 2] = boxes[:, 1::9, 0]
    scores = torch.randn(images, queries, CLASSES + softmax) * 3
    targets = []
    for image in range(images):
        count = most - image if most > image else 0
        truth = torch.cat((torch.rand(count, 2), torch.ones(count, 2)), -1) * scale
        like = boxes[image].roll(-2, 0).repeat(3, 1)[: len(truth[::3])]
        truth[::3] = torch.cat((torch.minimum(like[:, :2], like[:, 2:]), torch.maximum(like[:, :2], like[:, 2:])), -1)
        truth[1::4, 2:] = truth[1::4, :2]
        targets.append({"boxes": truth, "labels": torch.randint(CLASSES, (count,))})
    boxes[0, 3, 1], scores[0, 5, 2], boxes[-1, 4, 0] = torch.nan, torch.inf, -torch.inf
    return targets, scores, boxes


@pytest.mark.parametrize("scale", [1.0, 640.0, 1e-6, 1e20])
@pytest.mark.parametrize(("iou", "softmax"), [("giou", True), ("giou", False), ("iou", False)])
def test_costs_and_matches(iou: Any, softmax: bool, scale: float, instruction_set: str, native: list[str]) -> None:
    assigner = HungarianAssigner("softmax" if softmax else "focal", 2.0, 5.0, 3.0, iou)
    for images, queries, most in ((3, 70, 9), (1, 8, 20), (4, 129, 3)):
        targets, scores, boxes = some(images, queries, most, softmax, scale)
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
    targets, scores, boxes = some(3, 90, 12, True, 100.0)
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
    targets, scores, boxes = some(2, 20, 4, True, 1.0)
    for iou in ("diou", "ciou"):
        assert HungarianAssigner(iou=iou)(None, targets, scores, boxes).positive.any()
    doubles = [{**target, "boxes": target["boxes"].double()} for target in targets]
    assert HungarianAssigner()(None, doubles, scores.double(), boxes.double()).positive.any()
    assert native == []
    assert str(kernels.backend(HungarianAssigner())) == str(kernels.backend("HungarianAssigner")) == "native: asked for"
    assert str(kernels.backend(HungarianAssigner(iou="diou"))) == "reference: pair_cost has no native kernel for iou='diou'"
