"""The native cross entropy of masks from prototypes against the loop in float64: sizes, targets, instruction sets, threads."""

from __future__ import annotations

from collections.abc import Iterator

import kernel_calls as calls
import pytest
import torch
from prototype_cases import (
    check_agreement,
    check_one_factor,
    check_rows_and_pixels_of_no_crop,
    check_strided_and_low_precision,
    some_masks,
    value_and_slopes,
)

from detloss import kernels
from detloss.functional.prototype_masks import prototype_mask_sum
from detloss.kernels.native import Native
from detloss.kernels.native.library import problem
from detloss.kernels.prototypes import PrototypeMasks

if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often the kernel was asked; new tensors hold NaN, so that what is not written shows."""
    asked: list[int] = []
    masks = Native.masks
    monkeypatch.setattr(Native, "masks", lambda self, *given: (asked.append(1), masks(self, *given))[1])
    monkeypatch.setattr(torch, "empty", calls.poisoned(torch.empty))
    with kernels.use("native"):
        yield asked


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("count", [1, 4, 9, 32])
def test_agrees_with_float64(count: int, numbered: bool, instruction_set: str, native: list[int]) -> None:
    check_agreement(count, numbered, native)


def test_the_same_bits_for_every_number_of_threads() -> None:
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found.append(value_and_slopes(some_masks(32, True)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_rows_and_pixels_of_no_crop_have_no_gradient_whatever_they_hold() -> None:
    check_rows_and_pixels_of_no_crop()


def test_without_a_gradient_and_without_crops(native: list[int]) -> None:
    masks = some_masks(4, True)
    with torch.no_grad():
        total = prototype_mask_sum(masks)
    torch.testing.assert_close(total, value_and_slopes(masks)[0])
    nothing = PrototypeMasks(masks.coefficients, masks.prototypes, masks.masks, masks.crops[:0], masks.weight[:0])
    assert all(not x.any() for x in value_and_slopes(nothing))
    assert native == [1] * 3


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("again", [False, True])
def test_one_of_the_factors_may_be_constant(again: bool, number: int) -> None:
    check_one_factor(number, again)


def test_strided_and_low_precision_inputs() -> None:
    check_strided_and_low_precision()
