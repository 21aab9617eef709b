"""The Triton back-end on a GPU: agreement with float64, no wait of the host, capture in a CUDA graph."""

from __future__ import annotations

import kernel_calls
import pytest
import torch

import detloss
from detloss import functional as F
from detloss.kernels.contract import Call

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
