"""The Triton means of bins in Triton's interpreter, held against softmax in float64; ``test_triton.py`` starts this file."""

from __future__ import annotations

from collections.abc import Iterator

import kernel_calls as calls
import means_cases
import pytest
import torch
from torch import Tensor

import detloss
from detloss.kernels.means import BinMeans

pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
from detloss.kernels.triton_backend import BACKEND, Triton, expectation


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often the kernel was asked; new tensors hold NaN, so that what is not written shows; small blocks, not all full."""
    asked: list[int] = []
    means = Triton.means
    monkeypatch.setattr(Triton, "means", lambda self, given: (asked.append(1), means(self, given))[1])
    monkeypatch.setattr(torch, "empty", calls.poisoned(torch.empty))
    monkeypatch.setattr(expectation, "CELLS", 128)
    monkeypatch.setattr(expectation, "MOST_BINS_AT_ONCE", 8)
    with detloss.kernels.use("triton"):
        yield asked


def usual_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectation, "CELLS", 2048)
    monkeypatch.setattr(expectation, "MOST_BINS_AT_ONCE", 32)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(("shape", "dim"), [*means_cases.LAYOUTS, ((2, 64, 130), 1)], ids=str)
def test_means_are_those_of_a_softmax(
    shape: tuple[int, ...], dim: int, small: bool, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        usual_blocks(monkeypatch)
    means_cases.check_means(torch.randn(shape) * 4, dim)
    assert asked == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), means_cases.LAYOUTS, ids=str)
def test_low_precision_is_read_as_it_is(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    means_cases.check_low_precision(shape, dim, dtype)


def test_logits_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.randn(2, 5, 21, 7)
    views = [
        whole[:, 1:],
        whole[:, :4, 2:19],
        whole[:, :4, :, ::2],
        whole[::2, 1:, ::3],
        whole.permute(0, 3, 2, 1),
        whole.permute(3, 1, 2, 0),
        whole[:, :, :, :1],
        whole[:, :, :, 3:4].transpose(0, 1),
        torch.randn(2, 1, 17, 1).expand(2, 4, 17, 6),
    ]
    monkeypatch.setattr(Tensor, "contiguous", None)  # nothing asks for a copy
    for x in views:
        assert torch.equal(BACKEND.means(BinMeans(x)), BACKEND.means(BinMeans(x.clone(memory_format=torch.contiguous_format)))), (
            x.shape,
            x.stride(),
        )


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("dim", [1, 2])
def test_values_that_are_not_finite(dim: int, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        usual_blocks(monkeypatch)
    means_cases.check_values_that_are_not_finite(dim)


def test_the_kernel_is_taken_without_a_gradient_only(asked: list[int]) -> None:
    means_cases.check_taken_without_a_gradient_only(asked)
    assert detloss.kernels.backend("expected_distance").name == "triton"
    assert "run on CUDA" in (BACKEND.refuses(BinMeans(torch.empty(1, 4, 17, 1, device="meta"))) or "")
