"""The native means of bins against softmax in float64: layouts, dtypes, instruction sets, threads, values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator

import kernel_calls as calls
import pytest
import torch
from torch import Tensor

from detloss import kernels
from detloss.criteria.distances import expected_distance
from detloss.kernels.native import Native
from detloss.kernels.native.library import problem

if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)

LAYOUTS = [
    ((5, 64), -1),
    ((4, 10, 20), -1),
    ((64,), 0),
    ((8, 6), 0),
    ((3, 68, 7, 9), 1),
    ((2, 3, 144, 5, 1), 2),
    ((2, 64, 1000), 1),
]


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often the kernel was asked; new tensors hold NaN, so that what is not written shows."""
    asked: list[int] = []
    means = Native.means
    monkeypatch.setattr(Native, "means", lambda self, given: (asked.append(1), means(self, given))[1])
    monkeypatch.setattr(torch, "empty", calls.poisoned(torch.empty))
    with kernels.use("native"):
        yield asked


def by_softmax(logits: Tensor, dim: int) -> Tensor:
    dim %= logits.ndim
    shares = logits.double().unflatten(dim, (4, -1)).softmax(dim + 1).movedim(dim + 1, -1)
    return (shares * torch.arange(shares.shape[-1])).sum(-1)


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS, ids=str)
def test_means_are_those_of_a_softmax(shape: tuple[int, ...], dim: int, instruction_set: str, native: list[int]) -> None:
    logits = torch.randn(shape) * 4
    torch.testing.assert_close(expected_distance(logits, dim).double(), by_softmax(logits, dim), rtol=2e-6, atol=1e-6)
    assert native == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), LAYOUTS, ids=str)
def test_low_precision_is_read_as_it_is(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(shape) * 4).to(dtype)
    assert torch.equal(expected_distance(logits, dim), expected_distance(logits.float(), dim))


def test_a_part_of_the_channels_is_read_where_it_lies() -> None:
    maps, rows = torch.randn(3, 144, 11, 13), torch.randn(7, 144)
    assert torch.equal(expected_distance(maps[:, 64:128], 1), expected_distance(maps[:, 64:128].contiguous(), 1))
    assert torch.equal(expected_distance(rows[:, 64:128]), expected_distance(rows[:, 64:128].contiguous()))
    assert torch.equal(expected_distance(rows.t()[:64], 0), expected_distance(rows.t()[:64].contiguous(), 0))


@pytest.mark.parametrize("dim", [1, 2])
def test_values_that_are_not_finite(dim: int, instruction_set: str) -> None:
    bins = torch.zeros(6, 4, 8)
    bins[0, 0, 3], bins[1, 0, 0], bins[2, 0, 7] = torch.nan, torch.nan, torch.inf
    bins[3, 0, 1:], bins[4, 0], bins[5, 0, 2] = -torch.inf, -torch.inf, 3e38
    logits = bins.flatten(1)[:, :, None].expand(-1, -1, 5) if dim == 1 else bins.flatten(1)[:, None].expand(-1, 5, -1)
    means = expected_distance(logits, dim).movedim(dim, -1)
    torch.testing.assert_close(means, by_softmax(logits, dim).movedim(dim, -1).float(), equal_nan=True)
    assert means[3:, 0, 0].nan_to_num(-1).tolist() == [0, -1, 2]


def test_the_number_of_threads_does_not_matter() -> None:
    threads, logits = torch.get_num_threads(), torch.randn(4, 68, 900)
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((expected_distance(logits, 1), expected_distance(logits.transpose(1, 2))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for found in results[1:] for a, b in zip(found, results[0], strict=True))


def test_the_kernel_is_taken_without_a_gradient_only(native: list[int]) -> None:
    logits = torch.randn(3, 64, 5, requires_grad=True)
    with torch.no_grad():
        means = expected_distance(logits, 1)
    assert native == [1]
    torch.testing.assert_close(expected_distance(logits, 1), means)
    torch.testing.assert_close(expected_distance(logits.double().detach(), 1).float(), means)
    assert native == [1] and expected_distance(logits[:, :, :0].detach(), 1).shape == (3, 4, 0) and native == [1]
    assert str(kernels.backend("expected_distance")).startswith("native")
