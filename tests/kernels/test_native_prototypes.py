"""The native cross entropy of masks from prototypes against the loop in float64: sizes, targets, instruction sets, threads."""

from __future__ import annotations

from collections.abc import Iterator

import kernel_calls as calls
import pytest
import torch
from prototype_cases import some_masks, value_and_slopes

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
    found = value_and_slopes(some_masks(count, numbered))
    assert native == [1]
    expected = value_and_slopes(some_masks(count, numbered, torch.float64))
    assert native == [1]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=3e-6, atol=2e-6)


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
    masks = some_masks(4, True)
    masks.prototypes[1] = torch.nan
    _, by_rows, by_maps = value_and_slopes(masks)
    assert by_rows.isfinite().all() and by_maps.isfinite().all() and not by_maps[1].any()
    masks.prototypes[2, :, 2, 0] = torch.inf  # beside the fourth crop
    assert all(x.isfinite().all() for x in value_and_slopes(masks))
    masks.prototypes[2, :, 2, 1] = torch.nan
    assert value_and_slopes(masks)[0].isnan()


def test_without_a_gradient_and_without_crops(native: list[int]) -> None:
    masks = some_masks(4, True)
    with torch.no_grad():
        total = prototype_mask_sum(masks)
    torch.testing.assert_close(total, value_and_slopes(masks)[0])
    nothing = PrototypeMasks(masks.coefficients, masks.prototypes, masks.masks, masks.crops[:0], masks.weight[:0])
    assert all(not x.any() for x in value_and_slopes(nothing))
    assert native == [1] * 3


@pytest.mark.parametrize("again", [False, True])
def test_one_of_the_factors_may_be_constant(again: bool) -> None:
    masks = some_masks(4, True)
    _, *expected = value_and_slopes(masks)
    for number in (0, 1):
        inputs = [masks.coefficients.clone(), masks.prototypes.clone()]
        inputs[number].requires_grad_()
        total = prototype_mask_sum(PrototypeMasks(inputs[0], inputs[1], masks.masks, masks.crops, masks.weight))
        (slope,) = torch.autograd.grad(-2 * total, inputs[number], create_graph=again)
        torch.testing.assert_close(slope.detach(), expected[number], rtol=1e-5, atol=1e-5)


def test_strided_and_low_precision_inputs() -> None:
    masks = some_masks(8, False)
    wide = masks.prototypes.contiguous(memory_format=torch.channels_last)
    strided = PrototypeMasks(masks.coefficients.t().contiguous().t(), wide, masks.masks, masks.crops, masks.weight)
    for got, want in zip(value_and_slopes(strided), value_and_slopes(masks), strict=True):
        assert torch.equal(got, want)
    halves = some_masks(8, False, torch.bfloat16)
    exact = PrototypeMasks(halves.coefficients.float(), halves.prototypes.float(), halves.masks, halves.crops, halves.weight)
    for got, want in zip(value_and_slopes(halves), value_and_slopes(exact), strict=True):
        torch.testing.assert_close(got.float(), want, rtol=8e-3, atol=1e-6)
