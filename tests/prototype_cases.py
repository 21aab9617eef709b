"""Masks that are linear in prototypes, and what their cross entropy gives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from detloss.functional.prototype_masks import prototype_mask_sum
from detloss.kernels.prototypes import PrototypeMasks


def some_masks(count: int, numbered: bool, dtype: torch.dtype = torch.float32) -> PrototypeMasks:
    """Three images, the second without objects, of 19 x 23 pixels; crops of one pixel, of one line, of everything and between."""
    generator = torch.Generator().manual_seed(count)
    coefficients, prototypes = torch.randn(20, count, generator=generator), torch.randn(3, count, 19, 23, generator=generator)
    masks = torch.randint(0, 4, (3, 19, 23), generator=generator) if numbered else torch.rand(5, 19, 23, generator=generator)
    if not numbered:
        masks[:, ::2] = (masks[:, ::2] > 0.5).float()
    crops = torch.tensor([
        [0, 0, 7, 0, 19, 0, 23, 0, 1],
        [0, 7, 8, 3, 4, 5, 6, 1, 2],
        [0, 8, 8, 3, 9, 5, 9, 1, 3],
        [2, 8, 19, 2, 3, 1, 22, 2, 1],
        [2, 19, 20, 4, 17, 6, 11, 2, 2],
    ])  # fmt: skip
    if not numbered:
        crops[:, 8], crops[:, 7] = 0, torch.arange(5)
    weight = torch.tensor([0.3, 2.0, 5.0, 0.5, 1.0])
    return PrototypeMasks(coefficients.to(dtype), prototypes.to(dtype), masks.to(dtype), crops, weight)


def value_and_slopes(masks: PrototypeMasks) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in (masks.coefficients, masks.prototypes)]
    total = prototype_mask_sum(PrototypeMasks(inputs[0], inputs[1], masks.masks, masks.crops, masks.weight))
    return [total.detach(), *torch.autograd.grad(-2 * total, inputs)]


def check_agreement(count: int, numbered: bool, asked: list[int]) -> None:
    """That value and gradients are those of float64; ``asked`` grows whenever the kernel is."""
    found = value_and_slopes(some_masks(count, numbered))
    assert asked == [1]
    expected = value_and_slopes(some_masks(count, numbered, torch.float64))
    assert asked == [1]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=3e-6, atol=2e-6)


def check_rows_and_pixels_of_no_crop() -> None:
    """That they have no gradient whatever they hold."""
    masks = some_masks(4, True)
    masks.prototypes[1] = torch.nan
    _, by_rows, by_maps = value_and_slopes(masks)
    assert by_rows.isfinite().all() and by_maps.isfinite().all() and not by_maps[1].any()
    masks.prototypes[2, :, 2, 0] = torch.inf  # beside the fourth crop
    assert all(x.isfinite().all() for x in value_and_slopes(masks))
    masks.prototypes[2, :, 2, 1] = torch.nan
    assert value_and_slopes(masks)[0].isnan()


def check_one_factor(number: int, again: bool) -> None:
    """The gradient of one factor where the other one is constant, with (``again``) or without a graph of its own."""
    masks = some_masks(4, True)
    _, *expected = value_and_slopes(masks)
    inputs = [masks.coefficients.clone(), masks.prototypes.clone()]
    inputs[number].requires_grad_()
    total = prototype_mask_sum(replace(masks, coefficients=inputs[0], prototypes=inputs[1]))
    (slope,) = torch.autograd.grad(-2 * total, inputs[number], create_graph=again)
    torch.testing.assert_close(slope.detach(), expected[number], rtol=1e-5, atol=1e-5)


def check_strided_and_low_precision() -> None:
    """Strides change nothing; bf16 is computed in fp32."""
    masks = some_masks(8, False)
    wide = masks.prototypes.contiguous(memory_format=torch.channels_last)
    strided = replace(masks, coefficients=masks.coefficients.t().contiguous().t(), prototypes=wide)
    for got, want in zip(value_and_slopes(strided), value_and_slopes(masks), strict=True):
        assert torch.equal(got, want)
    halves = some_masks(8, False, torch.bfloat16)
    exact = replace(halves, coefficients=halves.coefficients.float(), prototypes=halves.prototypes.float())
    for got, want in zip(value_and_slopes(halves), value_and_slopes(exact), strict=True):
        torch.testing.assert_close(got.float(), want, rtol=8e-3, atol=1e-6)
