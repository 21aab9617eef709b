"""From an element-wise formula and its fused twin to the reduced loss: the one autograd function of all kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detloss.checks import check_same_device, upcast
from detloss.kernels.contract import POSITION_OPS, ROW_OPS, Backend, Call, loss_shape
from detloss.kernels.selection import choose, constant_while_compiling, fused_backend
from detloss.reduction import check_reduction, check_weight, mute, reduce_loss, scale_of
from detloss.types import Number, Reduction

__all__ = ["fused_loss"]

Formula = Callable[[Tensor], Tensor]


def fused_loss(
    formula: Formula,
    call: Call,
    *,
    where: str,
    avg_factor: Number | Tensor | None,
    reduction: Reduction,
    fusible: bool = True,
) -> Tensor:
    """Weigh and reduce a loss, by a kernel where one takes the call, else by its formula; see :func:`reduce_loss`.

    Args:
        formula: the reference: predictions (at least fp32, those of weight 0 replaced by 0) to the unweighted element-wise
            loss. It also checks the values of the targets, and is what double backward differentiates.
        call: the same loss for a kernel; its weight is the weight of both.
        where: name of the loss, for error messages.
        avg_factor: as for :func:`reduce_loss`.
        reduction: as for :func:`reduce_loss`.
        fusible: ``False`` when an option of this call has no kernel.
    """
    check_reduction(where, reduction, avg_factor)
    shape, weight = loss_shape(call), call.weight
    if weight is not None:
        check_weight(where, weight, shape)
        check_same_device(where, call.pred, "weight", weight)

    def reference(pred: Tensor) -> Tensor:
        lost = 1 if call.op in POSITION_OPS else -1 if call.op in ROW_OPS else None
        loss = formula(mute(where, upcast(pred), weight, shape, reduced_dim=lost))
        return reduce_loss(loss, weight=weight, avg_factor=avg_factor, reduction=reduction, where=where)

    if not fusible or (isinstance(avg_factor, Tensor) and avg_factor.requires_grad):
        return reference(call.pred)
    compiling = torch.compiler.is_compiling()
    name, problem = choose(call, compiling)
    if problem:
        return reference(call.pred)
    if compiling:
        return _compiled(name, call, avg_factor, reduction)
    if reduction == "none":
        loss = _elements(name, call, reference)
    else:
        factor, divisor = scale_of(reduction, avg_factor, math.prod(shape))
        loss = _total(name, call, factor, divisor, reference)
    return reference(call.pred) if loss is None else loss


@constant_while_compiling
def _register_operators() -> bool:
    """Load the operators for torch.compile, while it traces and only then: they are slow to register."""
    from detloss.kernels import opaque

    return bool(opaque.__all__)


def _compiled(name: str, call: Call, avg_factor: Number | Tensor | None, reduction: Reduction) -> Tensor:
    _register_operators()
    from detloss.kernels.opaque import opaque_elements, opaque_total

    if reduction == "none":
        return opaque_elements(name, call)
    factor, divisor = scale_of(reduction, avg_factor, math.prod(loss_shape(call)))
    return opaque_total(name, call, factor, divisor)


def _total(name: str, call: Call, factor: float, divisor: Tensor | None, reference: Formula) -> Tensor | None:
    backend = fused_backend(name)
    need_grad = torch.is_grad_enabled() and call.pred.requires_grad
    result = backend.total(call, factor, divisor, need_grad, True)
    if result is None or not need_grad:
        return None if result is None else result[0]
    total: Tensor = _apply(call.pred, result, backend, reference)
    return total


def _elements(name: str, call: Call, reference: Formula) -> Tensor | None:
    backend = fused_backend(name)
    loss = backend.elements(call, True)
    if loss is None or not (torch.is_grad_enabled() and call.pred.requires_grad):
        return loss
    elements: Tensor = _Elements.apply(call.pred, (loss,), backend, call, reference)
    return elements


# Whether the graph that is being differentiated will be used again (``retain_graph=True``).
_kept_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph


def _differentiable_gradient(pred: Tensor, upstream: Tensor, reference: Formula) -> Tensor:
    """Gradient with a graph of its own, by differentiating the reference."""
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(reference(pred), pred, upstream, create_graph=True)
    return grad


class _Total(torch.autograd.Function):
    """Scaled sum whose gradient was written in the forward pass."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, result: tuple[Tensor, Tensor], backend: Backend, reference: Formula) -> Tensor:
        total, ctx.grad = result
        ctx.save_for_backward(pred)
        ctx.backend, ctx.reference = backend, reference
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (pred,) = ctx.saved_tensors  # an error where it was changed, or where an earlier pass gave the graph away
        if torch.is_grad_enabled():
            return _differentiable_gradient(pred, upstream[0], ctx.reference), None, None, None
        grad = ctx.grad
        if _kept_graph():
            grad = grad.clone()  # what is kept for the next pass is in nobody else's hands: gradients are changed in place
        else:
            ctx.grad = ctx.reference = None
        return ctx.backend.rescale(grad, upstream[0], True), None, None, None


# What apply() of a function does once it has found no transform of functorch; choose() has found none.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Total).apply


class _Elements(torch.autograd.Function):
    """Element-wise loss; the backward pass computes the gradient from the predictions."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, loss: tuple[Tensor], backend: Backend, call: Call, reference: Formula) -> Tensor:
        ctx.save_for_backward(pred)
        ctx.backend, ctx.call, ctx.reference = backend, call, reference
        return loss[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (pred,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_gradient(pred, upstream[0], ctx.reference), None, None, None, None
        grad = ctx.backend.gradient(replace(ctx.call, pred=pred), upstream[0])
        if not _kept_graph():
            ctx.call = ctx.reference = None
        return grad, None, None, None, None
