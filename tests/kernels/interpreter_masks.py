"""The Triton masks from prototypes in Triton's interpreter, held against float64; ``test_triton.py`` starts this file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

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

import detloss
from detloss.functional.prototype_masks import prototype_mask_sum
from detloss.kernels.prototypes import PrototypeMasks

pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
from detloss.kernels.triton_backend import BACKEND, Triton, prototypes


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often the kernels were asked; new tensors hold NaN, so that what is not written shows; several pieces of a window."""
    asked: list[int] = []
    masks = Triton.masks
    monkeypatch.setattr(Triton, "masks", lambda self, *given: (asked.append(1), masks(self, *given))[1])
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, calls.poisoned(getattr(torch, name)))
    monkeypatch.setattr(prototypes, "LEAST_PIECE", 64)
    monkeypatch.setattr(prototypes, "MOST_PIECES", 4)
    with detloss.kernels.use("triton"):
        yield asked


def agrees(masks: PrototypeMasks) -> None:
    """Whether value and gradients are those that float64 gives."""
    parts = masks.coefficients.double(), masks.prototypes.double(), masks.masks.double()
    exact = PrototypeMasks(*parts, masks.crops, masks.weight.double())
    for got, want in zip(value_and_slopes(masks), value_and_slopes(exact), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=3e-6, atol=3e-6 * float(want.abs().max()))


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("count", [1, 4, 9, 32])
def test_agrees_with_float64(count: int, numbered: bool, asked: list[int]) -> None:
    check_agreement(count, numbered, asked)


@pytest.mark.parametrize("count", [33, 100, 256])
def test_many_prototypes(count: int) -> None:
    masks = some_masks(count, True)
    masks.coefficients.mul_(0.1)
    agrees(masks)


def test_more_rows_than_a_block_and_the_usual_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = torch.tensor([[0, 0, 33, 1, 18, 2, 21, 0, 2], [1, 33, 34, 0, 5, 0, 8, 1, 1], [1, 35, 52, 0, 19, 3, 6, 1, 3]])
    coefficients, masks = torch.randn(53, 8), some_masks(8, True)
    many = replace(masks, coefficients=coefficients, crops=crops, weight=torch.tensor([0.5, 1.0, 2.0]))
    agrees(many)
    found = value_and_slopes(many)
    assert not found[1][34].any() and not found[1][52].any() and found[1][51].all()
    monkeypatch.setattr(prototypes, "LEAST_PIECE", 256)
    monkeypatch.setattr(prototypes, "MOST_PIECES", 16)
    for got, want in zip(value_and_slopes(many), found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_windows_that_end_anywhere_in_a_tile() -> None:
    edges = torch.tensor([0, 1, 7, 8, 9, 15, 16, 17, 18])
    y1, y2, x1, x2 = (edges[torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(seed))] for seed in range(4))
    y1, y2, x1, x2 = torch.minimum(y1, y2), torch.maximum(y1, y2) + 1, torch.minimum(x1, x2), torch.maximum(x1, x2) + 1
    own, zero = torch.arange(40), torch.zeros(40, dtype=torch.int64)
    crops = torch.stack((zero, own, own + 1, y1, y2, x1, x2, zero, own % 3 + 1), 1)
    masks = some_masks(3, True)
    agrees(PrototypeMasks(torch.randn(40, 3), masks.prototypes, masks.masks, crops, torch.rand(40) + 0.5))


def test_the_same_every_time() -> None:
    first, again = (value_and_slopes(some_masks(16, True)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_rows_and_pixels_of_no_crop_have_no_gradient_whatever_they_hold() -> None:
    check_rows_and_pixels_of_no_crop()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_reaches_its_own_window_only(value: float) -> None:
    masks = some_masks(4, True)
    masks.coefficients[19] = value
    total, by_rows, by_maps = value_and_slopes(masks)
    inside = torch.zeros(3, 19, 23, dtype=torch.bool)
    inside[2, 4:17, 6:11] = True
    assert not total.isfinite() and not by_rows[19].isfinite().all() and by_rows[:19].isfinite().all()
    assert by_maps.movedim(1, -1)[~inside].isfinite().all() and not by_maps.movedim(1, -1)[inside].isfinite().any()


def test_a_pixel_that_is_not_finite_reaches_the_rows_that_see_it_only() -> None:
    masks = some_masks(4, True)
    masks.prototypes[2, 0, 10, 8] = torch.nan
    _, by_rows, by_maps = value_and_slopes(masks)
    assert by_rows[:19].isfinite().all() and not by_rows[19].isfinite().any()
    lost = ~by_maps.isfinite()
    assert lost[2, :, 10, 8].all() and lost.sum() == 4


def test_extreme_logits() -> None:
    for scale in (1e3, 1e18):
        masks = some_masks(4, False)
        masks.coefficients.mul_(scale)
        agrees(masks)


def test_without_a_gradient_and_without_crops(asked: list[int]) -> None:
    masks = some_masks(4, True)
    with torch.no_grad():
        total = prototype_mask_sum(masks)
    torch.testing.assert_close(total, value_and_slopes(masks)[0])
    assert BACKEND.masks(masks, False)[1:] == (None, None)
    nothing = replace(masks, crops=masks.crops[:0], weight=masks.weight[:0])
    no_rows = replace(masks, crops=masks.crops[2:3], weight=masks.weight[2:3])
    no_pixels = masks.crops.clone()
    no_pixels[:, 4] = no_pixels[:, 3]
    for empty in (nothing, no_rows, replace(masks, crops=no_pixels)):
        assert all(not x.any() for x in value_and_slopes(empty))
    assert len(asked) == 6


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("again", [False, True])
def test_one_of_the_factors_may_be_constant(again: bool, number: int) -> None:
    check_one_factor(number, again)


def test_strided_and_low_precision_inputs() -> None:
    check_strided_and_low_precision()


def test_masks_and_weights_of_other_dtypes_and_layouts() -> None:
    masks = some_masks(4, True)
    expected = value_and_slopes(masks)
    for dtype in (torch.uint8, torch.int32, torch.float32, torch.float16):
        other = replace(masks, masks=masks.masks.to(dtype).transpose(1, 2).contiguous().transpose(1, 2))
        assert all(torch.equal(a, b) for a, b in zip(value_and_slopes(other), expected, strict=True))
    weight = torch.stack((masks.weight, masks.weight), 1).double()[:, 0]
    assert all(torch.equal(a, b) for a, b in zip(value_and_slopes(replace(masks, weight=weight)), expected, strict=True))
    truth = some_masks(4, False)
    truth.masks.round_()
    as_bool = replace(truth, masks=truth.masks.bool())
    assert all(torch.equal(a, b) for a, b in zip(value_and_slopes(truth), value_and_slopes(as_bool), strict=True))


def test_what_is_refused() -> None:
    masks = some_masks(4, True)
    assert BACKEND.refuses(masks) is None and detloss.kernels.backend("prototype_masks").name == "triton"
    assert BACKEND.refuses(replace(masks, prototypes=masks.prototypes.half())) == "float16 masks"
    assert "257 prototypes" in (BACKEND.refuses(some_masks(257, True)) or "")
    assert "run on CUDA" in (BACKEND.refuses(replace(masks, coefficients=masks.coefficients.to("meta"))) or "")
    for name in ("prototypes", "masks"):
        assert "another device" in (BACKEND.refuses(replace(masks, **{name: getattr(masks, name).to("meta")})) or "")
    assert "not on the CPU" in (BACKEND.refuses(replace(masks, crops=masks.crops.to("meta"))) or "")
    assert "2^31" in (BACKEND.refuses(replace(masks, prototypes=torch.zeros(1).expand(1, 32, 2**13, 2**13))) or "")
