"""The Triton kernels run by Triton's interpreter; ``test_triton.py`` starts this file in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import kernel_calls as calls
import pytest
import torch

import detloss
from detloss import functional as F
from detloss.kernels.contract import Call

pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
from detloss.kernels.triton_backend import BACKEND, boxes, coordinates, distribution, masks, sigmoid, softmax

PAIRS = calls.pairs()
# One of each operation. Gradients of boxes of a thousandth of a pixel are beyond fp16.
ONE_OF_EACH = list({pair.call.op: pair for pair in reversed(PAIRS) if "0.001" not in pair.id}.values())


@pytest.fixture(autouse=True)
def poison_and_small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors hold NaN, so that what is not written shows; small blocks, so that there are several, the last not full."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, calls.poisoned(getattr(torch, name)))
    monkeypatch.setattr(sigmoid, "ROW_BLOCK", 256)
    monkeypatch.setattr(sigmoid, "PLANE_BLOCK", 16)
    monkeypatch.setattr(sigmoid, "CLASS_BLOCK", 3)
    monkeypatch.setattr(softmax, "tile_shape", lambda classes, planes: (16 if planes else 32, 4))
    monkeypatch.setattr(distribution, "CELLS", 512)
    monkeypatch.setattr(coordinates, "BLOCK_SIZE", 512)
    monkeypatch.setattr(boxes, "BLOCK_SIZE", 128)
    monkeypatch.setattr(masks, "BLOCK_SIZE", 256)
    with detloss.kernels.use("reference"):
        yield


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=lambda number: PAIRS[number].id)
def test_agrees_with_float64(number: int) -> None:
    calls.check(BACKEND, PAIRS[number], expand=number % 2 == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("pair", ONE_OF_EACH, ids=lambda pair: pair.id)
def test_low_precision_is_computed_in_single_precision(pair: calls.Pair, dtype: torch.dtype) -> None:
    calls.check(BACKEND, pair, dtype)


def focal(pred: torch.Tensor, index: torch.Tensor, **more: torch.Tensor) -> Call:
    return Call("sigmoid_focal", pred, index=index, numbers=(2.0, 0.25, 0.75, 0.0), **more)  # type: ignore[arg-type]


def test_usual_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, calls.poisoned(getattr(torch, name)))
    for pair in ONE_OF_EACH:
        calls.check(BACKEND, pair)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_layouts(layout: str) -> None:
    logits = torch.randn(2, 5, 3, 7)
    if layout == "channels_last":
        pred = logits.contiguous(memory_format=torch.channels_last)
    elif layout == "sliced":
        pred = torch.stack((logits, logits), -1)[..., 0]
    else:
        pred = torch.randn(5, 42).t()
    index = torch.randint(0, 5, (2, 3, 7) if pred.ndim == 4 else (42,))
    teacher = torch.rand(pred.shape).t().contiguous().t() if pred.ndim == 2 else torch.rand(pred.shape)
    for call in (
        focal(pred, index),
        Call("cross_entropy", pred, index=index, numbers=(0.0,)),
        Call("kl_divergence", pred, target=teacher, numbers=(4.0,)),
    ):
        found, plain = (BACKEND.total(replace(call, pred=x), 1.0, None, True, True) for x in (pred, pred.contiguous()))
        torch.testing.assert_close(found[0], plain[0])
        torch.testing.assert_close(found[1], plain[1])
        assert found[1] is not None and found[1].shape == pred.shape


def test_what_does_not_count_is_0_whatever_it_holds_and_what_counts_stays_nan() -> None:
    weighted = [
        pair for pair in PAIRS if pair.call.pred.ndim == 2 and pair.call.weight is not None and pair.call.weight.ndim == 1
    ]
    for pair in {pair.call.op: pair for pair in weighted}.values():
        call = pair.call
        pred = call.pred.clone()
        pred[0] = torch.nan  # its weight is 0
        total, grad = BACKEND.total(replace(call, pred=pred), 1.0, None, True, True)
        assert torch.isfinite(total) and grad is not None and torch.isfinite(grad).all() and not grad[0].any(), pair.id
        pred[5] = torch.nan
        loss = BACKEND.elements(replace(call, pred=pred), True)
        total, grad = BACKEND.total(replace(call, pred=pred), 1.0, None, True, True)
        if call.index is None or call.index[5] < pred.shape[1]:
            assert torch.isnan(total) and grad is not None and torch.isnan(grad[5]).any() and torch.isnan(loss[5]).any(), pair.id
        assert grad is not None and torch.isfinite(grad[6:]).all() and torch.isfinite(loss[6:]).all(), pair.id


def test_divisor_of_0_gives_0_even_of_nan() -> None:
    for op, numbers, more in (
        ("sigmoid_focal", (2.0, 0.25, 0.75, 0.0), {"index": torch.tensor([0, 1, 2])}),
        ("cross_entropy", (0.0,), {"index": torch.tensor([0, 1, 2])}),
        ("distribution_focal", (), {"target": torch.rand(3)}),
        ("kl_divergence", (4.0,), {"target": torch.rand(3, 4)}),
        ("l1", (), {"target": torch.rand(3, 4)}),
        ("giou", (1e-6, 0.0), {"target": torch.rand(3, 4)}),
    ):
        pred = torch.full((3, 4), torch.nan)
        total, grad = BACKEND.total(Call(op, pred, numbers=numbers, **more), 1.0, torch.tensor(0), True, True)
        assert total == 0 and grad is not None and not grad.any(), op


def test_an_index_that_is_no_class_is_background() -> None:
    pred = torch.randn(4, 3)
    found = BACKEND.elements(focal(pred, torch.tensor([-5, 9, 3, 3])), False)
    torch.testing.assert_close(found, BACKEND.elements(focal(pred, torch.tensor([3, 3, 3, 3])), False))


def test_extreme_logits() -> None:
    pred = torch.tensor([[1e4, -1e4, 1e30], [torch.inf, -torch.inf, 0.0], [-torch.inf, 90.0, -90.0]])
    for index in (torch.tensor([0, 0, 1]), torch.tensor([1, 2, 3])):
        for gamma in (0.0, 1.5, 2.0):
            total, grad = BACKEND.total(
                Call("sigmoid_focal", pred, index=index, numbers=(gamma, 1.0, 1.0, 0.0)), 1.0, None, True, True
            )
            exact = pred.double().requires_grad_()
            loss = F.sigmoid_focal_loss(exact, index, gamma=gamma, alpha=None, reduction="sum")
            torch.testing.assert_close(total.double(), loss.detach())
            assert torch.isfinite(grad).all()


def test_divergence_keeps_the_digits_of_every_row_and_what_is_not_finite() -> None:
    teacher, noise = torch.randn(8, 6) * 2, torch.randn(8, 6)
    near = [(teacher + apart * noise, teacher) for apart in (1e-7, 1e-3, 5.0)]
    rows = [[0.3, -1.0, 2.0, first] for first in (torch.inf, -torch.inf, torch.nan, 1e4, -1e30, 0.3)] + [[-torch.inf] * 4]
    special = torch.tensor(rows)
    for pred, target in (
        *near,
        (teacher + 1000 + 0.01 * noise, teacher),
        (special.repeat(7, 1), special.repeat_interleave(7, 0)),
    ):
        call = Call("kl_divergence", pred, target=target, numbers=(4.0,))
        loss, (_, grad) = BACKEND.elements(call, True), BACKEND.total(call, 1.0, None, True, True)
        exact = pred.double().requires_grad_()
        expected = F.kl_distillation_loss(exact, target, temperature=4.0, reduction="none")
        (slope,) = torch.autograd.grad(expected.sum(), exact)
        torch.testing.assert_close(loss, expected.detach().float(), rtol=3e-6, atol=0.0, equal_nan=True)
        largest = slope.abs().amax(1, keepdim=True)
        torch.testing.assert_close((grad / largest).float(), (slope / largest).float(), rtol=0, atol=1e-5, equal_nan=True)


def test_targets_of_other_dtypes() -> None:
    pred, mask = torch.randn(40, 4), torch.rand(40, 4) > 0.5
    index, score = torch.randint(0, 5, (40,)), torch.rand(40).bfloat16()
    boxes = torch.randint(0, 9, (40, 4)).cumsum(1)
    for one, other in (
        (Call("binary_cross_entropy", pred, target=mask, numbers=(0.0,)), {"target": mask.float()}),
        (
            Call("quality_focal", pred, index=index.to(torch.uint8), score=score, numbers=(2.0,)),
            {"index": index, "score": score.float()},
        ),
        (
            Call("giou", pred, target=boxes, weight=mask[:, 0], numbers=(1e-6, 0.0)),
            {"target": boxes.float(), "weight": mask[:, 0].float()},
        ),
    ):
        found, expected = (BACKEND.total(call, 1.0, None, True, True) for call in (one, replace(one, **other)))
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_the_same_every_time() -> None:
    call = focal(torch.randn(300, 80), torch.randint(0, 81, (300,)))
    first, again = (BACKEND.total(call, 1.0, None, True, True) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("number", [1.0, 2.5, 0.0])
def test_rescale(in_place: bool, number: float) -> None:
    for grad in (torch.randn(70, 90), torch.randn(9, 5).t(), torch.randn(5, dtype=torch.bfloat16)):
        expected = grad * number
        found = BACKEND.rescale(grad, torch.tensor(number), in_place)
        torch.testing.assert_close(found, expected)
        assert (found is grad) is in_place


def test_other_devices_are_refused() -> None:
    assert "run on CUDA" in (BACKEND.refuses(focal(torch.empty(2, 3, device="meta"), torch.zeros(2, dtype=torch.int64))) or "")
    assert "no triton kernel" in (BACKEND.refuses(Call("unknown", torch.zeros(1))) or "")
    assert BACKEND.unavailable() is None


def test_through_the_public_functions() -> None:
    with detloss.kernels.use("triton"):
        for function, pred, target in (
            (F.sigmoid_focal_loss, torch.randn(9, 4), torch.randint(0, 5, (9,))),
            (F.quality_focal_loss, torch.randn(9, 4), (torch.randint(0, 5, (9,)), torch.rand(9))),
            (F.cross_entropy_loss, torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3))),
            (F.distribution_focal_loss, torch.randn(9, 8), torch.rand(9) * 7),
            (F.kl_distillation_loss, torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)),
            (F.localization_distillation_loss, torch.randn(3, 4, 8), torch.randn(3, 4, 8)),
            (F.ciou_loss, *(torch.rand(9, 4).cumsum(1) for _ in range(2))),
            (F.smooth_l1_loss, torch.randn(9, 4), torch.randn(9, 4)),
            (F.huber_loss, torch.randn(9, 4), torch.randn(9, 4)),
        ):
            assert detloss.kernels.backend(function, pred).name == "triton"
            for reduction in ("mean", "none"):
                exact, found = pred.double().requires_grad_(), pred.clone().requires_grad_()
                for x in (exact, found):
                    (function(x, target, reduction=reduction).sum() * 3).backward()
                torch.testing.assert_close(found.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
