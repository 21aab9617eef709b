"""The native means of bins against softmax in float64: layouts, dtypes, instruction sets, threads, values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator

import kernel_calls as calls
import means_cases
import pytest
import torch

from detloss import kernels
from detloss.criteria.distances import expected_distance
from detloss.kernels.native import Native
from detloss.kernels.native.library import problem

if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)

LAYOUTS = [*means_cases.LAYOUTS, ((2, 64, 1000), 1)]


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often the kernel was asked; new tensors hold NaN, so that what is not written shows."""
    asked: list[int] = []
    means = Native.means
    monkeypatch.setattr(Native, "means", lambda self, given: (asked.append(1), means(self, given))[1])
    monkeypatch.setattr(torch, "empty", calls.poisoned(torch.empty))
    with kernels.use("native"):
        yield asked


@pytest.mark.parametrize(("shape", "dim"), LAYOUTS, ids=str)
def test_means_are_those_of_a_softmax(shape: tuple[int, ...], dim: int, instruction_set: str, native: list[int]) -> None:
    means_cases.check_means(torch.randn(shape) * 4, dim)
    assert native == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), LAYOUTS, ids=str)
def test_low_precision_is_read_as_it_is(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    means_cases.check_low_precision(shape, dim, dtype)


def test_a_part_of_the_channels_is_read_where_it_lies() -> None:
    maps, rows = torch.randn(3, 144, 11, 13), torch.randn(7, 144)
    assert torch.equal(expected_distance(maps[:, 64:128], 1), expected_distance(maps[:, 64:128].contiguous(), 1))
    assert torch.equal(expected_distance(rows[:, 64:128]), expected_distance(rows[:, 64:128].contiguous()))
    assert torch.equal(expected_distance(rows.t()[:64], 0), expected_distance(rows.t()[:64].contiguous(), 0))


@pytest.mark.parametrize("dim", [1, 2])
def test_values_that_are_not_finite(dim: int, instruction_set: str) -> None:
    means_cases.check_values_that_are_not_finite(dim)


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
    means_cases.check_taken_without_a_gradient_only(native)
    assert str(kernels.backend("expected_distance")).startswith("native")
