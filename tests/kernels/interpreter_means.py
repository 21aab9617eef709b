"""The Triton means of bins in Triton's interpreter, held against softmax in float64; ``test_triton.py`` starts this file."""

from __future__ import annotations

from collections.abc import Iterator

import kernel_calls as calls
import pytest
import torch
from torch import Tensor

import detloss
from detloss.criteria.distances import expected_distance
from detloss.kernels.means import BinMeans

pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
from detloss.kernels.triton_backend import BACKEND, Triton, expectation

LAYOUTS = [
    ((5, 64), -1),
    ((4, 10, 20), -1),
    ((64,), 0),
    ((8, 6), 0),
    ((3, 68, 7, 9), 1),
    ((2, 3, 144, 5, 1), 2),
    ((2, 64, 130), 1),
]


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


def by_softmax(logits: Tensor, dim: int) -> Tensor:
    dim %= logits.ndim
    shares = logits.double().unflatten(dim, (4, -1)).softmax(dim + 1).movedim(dim + 1, -1)
    return (shares * torch.arange(shares.shape[-1])).sum(-1)


def usual_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectation, "CELLS", 2048)
    monkeypatch.setattr(expectation, "MOST_BINS_AT_ONCE", 32)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(("shape", "dim"), LAYOUTS, ids=str)
def test_means_are_those_of_a_softmax(
    shape: tuple[int, ...], dim: int, small: bool, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        usual_blocks(monkeypatch)
    logits = torch.randn(shape) * 4
    torch.testing.assert_close(expected_distance(logits, dim).double(), by_softmax(logits, dim), rtol=2e-6, atol=1e-6)
    assert asked == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), LAYOUTS[:-1], ids=str)
def test_low_precision_is_read_as_it_is(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(shape) * 4).to(dtype)
    found = expected_distance(logits, dim)
    assert found.dtype == torch.float32 and torch.equal(found, expected_distance(logits.float(), dim))


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
    bins = torch.zeros(9, 4, 9)
    bins[0, 0, 3], bins[1, 0, 0], bins[2, 0, 7] = torch.nan, torch.nan, torch.inf
    bins[3, 0, 1:], bins[4, 0], bins[5, 0, 2] = -torch.inf, -torch.inf, 3e38
    bins[6, 0, 8], bins[7, 0], bins[8, 0], bins[8, 0, 8] = torch.nan, torch.nan, -torch.inf, torch.nan
    logits = bins.flatten(1)[:, :, None].expand(-1, -1, 5) if dim == 1 else bins.flatten(1)[:, None].expand(-1, 5, -1)
    means = expected_distance(logits, dim).movedim(dim, -1)
    torch.testing.assert_close(means, by_softmax(logits, dim).movedim(dim, -1).float(), equal_nan=True)
    assert means[3:6, 0, 0].nan_to_num(-1).tolist() == [0, -1, 2]


def test_the_kernel_is_taken_without_a_gradient_only(asked: list[int]) -> None:
    logits = torch.randn(3, 64, 5, requires_grad=True)
    with torch.no_grad():
        means = expected_distance(logits, 1)
    assert asked == [1]
    torch.testing.assert_close(expected_distance(logits, 1), means)
    torch.testing.assert_close(expected_distance(logits.double().detach(), 1).float(), means)
    assert asked == [1] and expected_distance(logits[:, :, :0].detach(), 1).shape == (3, 4, 0) and asked == [1]
    assert detloss.kernels.backend("expected_distance").name == "triton"
    assert "run on CUDA" in (BACKEND.refuses(BinMeans(torch.empty(1, 4, 17, 1, device="meta"))) or "")
