"""A sum over many rows of predictions whose gradient is computed with it, a part at a time: no temporaries of the full size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, chunks

__all__ = ["streamed_sum"]

CACHE_BYTES = 4 * 2**20  # parts of this size stay in the cache of a CPU between operations


def streamed_sum(loss: Callable[..., Tensor], pred: Tensor, *rows: Tensor) -> Tensor:
    """Σ loss(pred, *rows) over rows, with the memory of the gradient and of one part of the rows.

    Args:
        loss: from parts of the arguments to the sum of their losses; rows must not depend on each other.
        pred: ``[N, ...]``, the only argument that gets a gradient.
        rows: ``[N, ...]`` each.
    """
    total: Tensor = _StreamedSum.apply(pred, loss, pred.requires_grad and torch.is_grad_enabled(), *rows)
    return total


class _StreamedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred: Tensor, loss: Callable[..., Tensor], differentiate: bool, *rows: Tensor) -> Tensor:
        grad = torch.empty_like(pred) if differentiate else pred.new_zeros(0)
        budget = CACHE_BYTES if pred.device.type == "cpu" else MEMORY_BUDGET
        total = pred.new_zeros((), dtype=torch.promote_types(pred.dtype, torch.float32))
        for part in chunks(len(pred), pred[:1].numel() * total.element_size(), budget):
            with torch.set_grad_enabled(differentiate):
                own = pred[part].detach().requires_grad_(differentiate)
                value = loss(own, *(x[part] for x in rows))
            if differentiate:
                (grad[part],) = torch.autograd.grad(value, own)
            total += value.detach()
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * upstream.to(grad.dtype), *(None for _ in ctx.needs_input_grad[1:])
