"""Cross entropy of instance masks that are linear in prototypes (YOLACT, YOLOv8), inside the boxes of the objects.

The masks of all rows, ``[R, H, W]``, exist one object at a time, and their gradients go into those of the two factors at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import upcast
from detloss.kernels.prototypes import Crop, PrototypeMasks
from detloss.kernels.selection import match_backend

__all__ = ["prototype_mask_sum"]


def prototype_mask_sum(masks: PrototypeMasks) -> Tensor:
    """Σ weight · BCE(coefficients · prototypes, target) over the pixels of all crops, 0-dim.

    Differentiable any number of times in coefficients and prototypes; nothing but their gradients is kept for the backward
    pass. fp16 and bf16 are computed in fp32.
    """
    return cast(Tensor, _Sum.apply(masks.coefficients, masks.prototypes, masks))


def _crops(masks: PrototypeMasks) -> Iterator[tuple[Crop, float, tuple[Any, ...], Tensor]]:
    """Of each crop: where it is, the weight of its pixels, its part of ``[B, K, H, W]``, its targets ``[h * w]``."""
    for places, weight in zip(masks.crops.tolist(), masks.weight.tolist(), strict=True):
        crop = Crop(*places)
        window = (slice(crop.y1, crop.y2), slice(crop.x1, crop.x2))
        target = masks.masks[(crop.mask, *window)]
        target = target == crop.number if crop.number else target
        yield crop, weight, (crop.image, slice(None), *window), target.flatten()


def _sum_of_products(masks: PrototypeMasks, rows: Tensor, maps: Tensor) -> Tensor:
    """The sum by operations that can be differentiated."""
    total = rows.new_zeros(())
    for crop, weight, window, target in _crops(masks):
        logits = rows[crop.first : crop.last] @ maps[window].flatten(1)
        truth = target.to(rows.dtype).expand_as(logits)
        total = total + weight * torch_f.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    return total


def _sum_and_gradients(masks: PrototypeMasks, need_grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sum and the gradients of coefficients and prototypes, crop by crop."""
    rows, maps = masks.coefficients, masks.prototypes
    total = rows.new_zeros((), dtype=torch.float64)
    by_rows, by_maps = (torch.zeros_like(x) if need_grad else None for x in (rows, maps))
    for crop, weight, window, target in _crops(masks):
        own, flat = rows[crop.first : crop.last], maps[window].flatten(1)
        logits = own @ flat
        truth = target.to(rows.dtype).expand_as(logits)
        total += weight * torch_f.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        if by_rows is not None and by_maps is not None:
            slope = logits.sigmoid_().sub_(truth).mul_(weight)
            by_rows[crop.first : crop.last] = slope @ flat.T
            by_maps[window] += (own.T @ slope).view_as(maps[window])
    return total.to(rows.dtype), by_rows, by_maps


class _Sum(torch.autograd.Function):
    """Gradients are made in the forward pass and scaled by the upstream gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, prototypes: Tensor, masks: PrototypeMasks) -> Tensor:
        ctx.masks = PrototypeMasks(
            upcast(coefficients.detach()), upcast(prototypes.detach()), masks.masks, masks.crops, masks.weight
        )
        need_grad = any(ctx.needs_input_grad[:2])
        backend = match_backend(ctx.masks)
        run = _sum_and_gradients if backend is None else backend.masks
        total, *gradients = run(ctx.masks, need_grad)
        ctx.save_for_backward(coefficients, prototypes, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, prototypes, *gradients = ctx.saved_tensors
        inputs, needs = (coefficients, prototypes), ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() and len(ctx.masks.crops):
            total = _sum_of_products(ctx.masks, upcast(coefficients), upcast(prototypes))
            wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
            found = iter(torch.autograd.grad(total, wanted, upstream[0], create_graph=True))
        else:
            found = iter(gradient * upstream[0] for gradient, need in zip(gradients, needs, strict=True) if need)
        return (*(next(found).to(x.dtype) if need else None for x, need in zip(inputs, needs, strict=True)), None)
