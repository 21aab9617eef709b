"""The Triton back-end on a GPU: agreement with float64, no wait of the host, capture in a CUDA graph."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import kernel_calls
import pytest
import torch
from match_cases import CLASSES, aligned_problem, atss_case, check_same, max_iou_case, some_boxes, some_queries
from prototype_cases import some_masks, value_and_slopes

import detloss
from detloss import functional as F
from detloss.assigners import ATSSAssigner, HungarianAssigner, MaxIoUAssigner, pad_targets
from detloss.assigners.aligned import Problem, _by_parts, _match
from detloss.criteria.distances import expected_distance
from detloss.geometry import Anchors
from detloss.kernels.contract import Call
from detloss.kernels.means import BinMeans
from detloss.kernels.prototypes import PrototypeMasks

pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PAIRS = kernel_calls.pairs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("number", range(len(PAIRS)), ids=lambda number: PAIRS[number].id)
def test_agrees_with_float64(number: int, dtype: torch.dtype) -> None:
    from detloss.kernels.triton_backend import BACKEND

    if dtype == torch.float16 and "0.001" in PAIRS[number].id:
        pytest.skip("gradients of boxes of a thousandth of a pixel are beyond fp16")
    kernel_calls.check(BACKEND, PAIRS[number], dtype, tolerance=4e-6, expand=number % 2 == 0, device="cuda")


def focal(rows: int) -> Call:
    index = torch.randint(0, 81, (rows,), device="cuda")
    return Call("sigmoid_focal", torch.randn(rows, 80, device="cuda"), index=index, numbers=(2.0, 0.25, 0.75, 0.0))


def test_large_input_and_the_same_every_time() -> None:
    from detloss.kernels.triton_backend import BACKEND

    call = focal(162136)
    (total, grad), (again, grad_again) = (BACKEND.total(call, 1.0, None, True, True) for _ in range(2))
    assert torch.equal(total, again) and torch.equal(grad, grad_again)
    exact = F.sigmoid_focal_loss(call.pred.double(), call.index, reduction="sum")
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=0)


def test_the_host_does_not_wait() -> None:
    pred, target = torch.randn(999, 80, device="cuda", requires_grad=True), torch.randint(0, 81, (999,), device="cuda")
    count = (target < 80).sum()
    F.sigmoid_focal_loss(pred, target, avg_factor=count).backward()
    assert detloss.kernels.backend("sigmoid_focal_loss", pred).name == "triton"
    torch.cuda.set_sync_debug_mode("error")
    try:
        F.sigmoid_focal_loss(pred, target, avg_factor=count).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_capture_in_a_graph() -> None:
    from detloss.kernels.triton_backend import BACKEND

    call, divisor = focal(1000), torch.full((1,), 7.0, device="cuda")
    BACKEND.total(call, 1.0, divisor, True, True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total, grad = BACKEND.total(call, 1.0, divisor, True, True)
    call.pred.copy_(torch.randn_like(call.pred))
    graph.replay()
    expected, expected_grad = BACKEND.total(call, 1.0, divisor, True, True)
    assert torch.equal(total, expected) and torch.equal(grad, expected_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("shape", "dim"), [((5, 64), -1), ((64,), 0), ((8, 6), 0), ((3, 68, 70, 90), 1), ((2, 400, 99), 1)])
def test_means_of_bins(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(shape, device="cuda") * 4).to(dtype)
    assert detloss.kernels.backend("expected_distance", logits).name == "triton"
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = expected_distance(logits, dim)
        if logits.ndim == 4:
            wide = logits.contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(expected_distance(wide, dim), found, rtol=2e-6, atol=1e-6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    shares = logits.double().unflatten(dim, (4, -1)).softmax(dim % logits.ndim + 1).movedim(dim % logits.ndim + 1, -1)
    expected = (shares * torch.arange(shares.shape[-1], device="cuda")).sum(-1)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)


def test_means_in_a_graph() -> None:
    from detloss.kernels.triton_backend import BACKEND

    logits = torch.randn(2, 4, 17, 300, device="cuda")
    BACKEND.means(BinMeans(logits))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        means = BACKEND.means(BinMeans(logits))
    logits.copy_(torch.randn_like(logits))
    graph.replay()
    assert torch.equal(means, BACKEND.means(BinMeans(logits)))


def on_the_gpu(masks: PrototypeMasks, dtype: torch.dtype = torch.float32) -> PrototypeMasks:
    """The masks on the GPU, their crops on the CPU as they are."""
    parts = (x.to("cuda", dtype) for x in (masks.coefficients, masks.prototypes, masks.masks))
    return PrototypeMasks(*parts, masks.crops, masks.weight.cuda())


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("count", [1, 4, 9, 32, 100, 256])
def test_masks_of_prototypes(count: int, numbered: bool) -> None:
    masks = some_masks(count, numbered)
    masks.coefficients.div_(count**0.5)
    given = on_the_gpu(masks)
    assert detloss.kernels.backend("prototype_masks", given.coefficients).name == "triton"
    value_and_slopes(given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, again = value_and_slopes(given), value_and_slopes(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = value_and_slopes(on_the_gpu(masks, torch.float64))
    for got, same, want in zip(found, again, expected, strict=True):
        assert torch.equal(got, same)
        torch.testing.assert_close(got.double(), want, rtol=4e-6, atol=4e-6)


def test_masks_of_many_objects() -> None:
    objects, rows, side = 60, 900, 160
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, side + 1, (2, objects, 2), generator=generator).sort(0).values
    first = torch.arange(objects) * 15
    image = torch.arange(objects) // 20
    y1, x1, y2, x2 = *corners[0].unbind(1), *corners[1].unbind(1)
    crops = torch.stack((image, first, first + 15, y1, y2, x1, x2, image, torch.arange(objects) % 20 + 1), 1)
    truth = torch.randint(0, 21, (4, side, side), generator=generator)
    coefficients, prototypes = torch.randn(rows, 32, generator=generator), torch.randn(4, 32, side, side, generator=generator)
    masks = PrototypeMasks(coefficients / 6, prototypes, truth, crops, torch.rand(objects, generator=generator))
    found = value_and_slopes(on_the_gpu(masks))
    for got, want in zip(found, value_and_slopes(on_the_gpu(masks, torch.float64)), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=4e-6, atol=4e-6 * float(want.abs().max()))
    assert not found[2][3].any()


def without_waiting(match: Any) -> tuple[torch.Tensor, ...]:
    """What the kernels find, once compiled, where a wait of the host is an error."""
    from detloss.kernels.triton_backend import BACKEND

    assert BACKEND.refuses(match) is None
    BACKEND.match(replace(match, cost=match.cost.clone()) if match.op == "pair_cost" else match)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return BACKEND.match(match)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("seed", range(60))
def test_task_alignment_is_that_of_torch(seed: int) -> None:
    torch.manual_seed(seed)
    problem, rule = aligned_problem(random.Random(seed))
    problem = Problem(*(x.cuda() for x in problem))
    match = replace(_match(problem, rule), memory=(2**26, 1, 2**13, 2**14)[seed % 4])
    for found, expected in zip(without_waiting(match), _by_parts(problem, rule), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_task_alignment_of_many_priors_and_its_capture() -> None:
    from detloss.kernels.triton_backend import BACKEND

    torch.manual_seed(0)
    problem, rule = aligned_problem(random.Random(3))
    images, priors = 4, 8400
    xy, centre = torch.rand(priors, 2) * 640, torch.rand(images * 30, 2) * 640
    objects = torch.cat((centre, centre + 20 + torch.rand(images * 30, 2) * 200), dim=1)
    boxes = torch.cat((xy - torch.rand(priors, 2) * 80, xy + torch.rand(priors, 2) * 80), dim=1).expand(images, -1, -1)
    labels, scores = torch.randint(80, (images * 30,)), torch.randn(images, priors, 80, dtype=torch.bfloat16)
    valid = torch.ones(images, priors, dtype=torch.bool)
    problem = Problem(*(x.cuda() for x in (xy, valid, objects, objects, labels, scores, boxes)))
    for iou in ("ciou", "iou"):
        match = _match(problem, rule._replace(iou=iou, topk=10))
        expected = _by_parts(problem, rule._replace(iou=iou, topk=10))
        assert all(torch.equal(found, want) for found, want in zip(without_waiting(match), expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index, quality = BACKEND.match(match)
    graph.replay()
    assert torch.equal(index, expected[0]) and torch.equal(quality, expected[1]) and bool((index >= 0).any())


@pytest.mark.parametrize("scale", [1.0, 640.0, 1e-6, 1e20])
@pytest.mark.parametrize(("iou", "softmax"), [("giou", True), ("giou", False), ("iou", False)])
def test_costs_are_those_of_torch(iou: Any, softmax: bool, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from detloss.kernels.triton_backend import Triton

    torch.manual_seed(0)
    match, given = Triton.match, []
    monkeypatch.setattr(
        Triton, "match", lambda self, x: (given.append(replace(x, cost=x.cost.clone())), match(self, x))[1]
    )  # fmt: skip
    assigner = HungarianAssigner("softmax" if softmax else "focal", 2.0, 5.0, 3.0, iou)
    targets, scores, boxes = some_queries(3, 300, 9, softmax, scale)
    targets = [{name: value.cuda() for name, value in target.items()} for target in targets]
    scores, boxes, sizes = scores.cuda(), boxes.cuda(), torch.tensor([scale * 1.5, scale]).expand(3, 2).cuda()
    padded = pad_targets(targets, boxes, CLASSES)
    found = assigner._costs(padded, scores, boxes, sizes)
    (asked,) = given
    assert torch.equal(without_waiting(asked)[0], found)
    with detloss.kernels.use("reference"):
        assert torch.equal(found, assigner._costs(padded, scores, boxes, sizes))


@pytest.mark.parametrize("name", ["max_iou", "atss"])
@pytest.mark.parametrize("seed", range(40))
def test_anchors_are_matched_as_by_torch(name: str, seed: int) -> None:
    from detloss.kernels.triton_backend import BACKEND

    torch.manual_seed(seed)
    assigner, (anchors, targets) = {"max_iou": max_iou_case, "atss": atss_case}[name](random.Random(seed))
    valid = None if anchors.valid is None else anchors.valid.cuda()
    anchors = Anchors.of(anchors.boxes.cuda(), anchors.counts, valid=valid)
    targets = [{key: value.cuda() for key, value in target.items()} for target in targets]
    match = assigner._match(anchors, pad_targets(targets, anchors.boxes))
    refused = BACKEND.refuses(match)
    assert (refused is None) == (getattr(match, "topk", 0) <= 64)
    if refused is None:
        without_waiting(match)
    found = assigner(anchors, targets)
    with detloss.kernels.use("reference"):
        check_same(found, assigner(anchors, targets))


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(0.7, (0.1, 0.3), 0.3), ATSSAssigner()], ids=["max_iou", "atss"])
def test_many_anchors_and_objects(assigner: MaxIoUAssigner | ATSSAssigner) -> None:
    torch.manual_seed(0)
    anchors = Anchors.of(some_boxes(20_000, whole=True, size=800, side=100).cuda(), [15_000, 4_000, 900, 100])
    boxes = [some_boxes(count, whole=True, size=800, side=100).cuda() for count in (100, 0, 7, 1100)]
    targets = [{"boxes": own, "labels": torch.zeros(len(own), dtype=torch.long).cuda()} for own in boxes]
    found = without_waiting(assigner._match(anchors, pad_targets(targets, anchors.boxes)))
    with detloss.kernels.use("reference"):
        expected = assigner(anchors, targets)
    assert torch.equal(found[0], expected.gt_index) and torch.equal(found[1], expected.quality) and bool((found[0] >= 0).any())


@pytest.mark.parametrize("assigner", [MaxIoUAssigner(0.5, (0.1, 0.4)), ATSSAssigner()], ids=["max_iou", "atss"])
def test_matches_of_anchors_in_a_graph(assigner: MaxIoUAssigner | ATSSAssigner) -> None:
    from detloss.kernels.triton_backend import BACKEND

    torch.manual_seed(1)
    anchors = Anchors.of(some_boxes(3000, whole=True, size=400, side=60).cuda())
    targets = [{"boxes": some_boxes(20, whole=True, size=400, side=60).cuda(), "labels": torch.zeros(20).long().cuda()}] * 2
    match = assigner._match(anchors, pad_targets(targets, anchors.boxes))
    BACKEND.match(match)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = BACKEND.match(match)
    match.objects.copy_(some_boxes(2, 20, whole=True, size=400, side=60))
    graph.replay()
    for captured, again in zip(found, BACKEND.match(match), strict=True):
        assert torch.equal(captured, again)
