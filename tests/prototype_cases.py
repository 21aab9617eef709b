"""Masks that are linear in prototypes, and what their cross entropy gives."""

from __future__ import annotations

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
