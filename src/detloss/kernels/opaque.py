"""The kernels as operators that torch.compile does not look into: two forward operators and their gradients.

An operator takes the tensors and numbers of a :class:`detloss.kernels.contract.Call` one by one; the back-end is named.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detloss.kernels.contract import Call, loss_shape
from detloss.kernels.selection import fused_backend

__all__ = ["arguments_of", "opaque_elements", "opaque_total"]

_TENSORS = "Tensor? index, Tensor? target, Tensor? score, Tensor? weight, Tensor? class_weight, Tensor? alpha"
_CALL = f"Tensor pred, {_TENSORS}, str backend, str op, int ignore_index, float[] numbers"
_LIBRARY = torch.library.Library("detloss", "DEF")
_LIBRARY.define(f"total({_CALL}, Tensor divisor, bool need_grad) -> (Tensor, Tensor)")
_LIBRARY.define(f"elements({_CALL}) -> Tensor")
_LIBRARY.define(f"elements_backward({_CALL}, Tensor upstream) -> Tensor")


def _call(arguments: tuple[Any, ...]) -> tuple[str, Call]:
    """Name of the back-end and the call, from the arguments that all operators begin with."""
    pred, index, target, score, weight, class_weight, alpha, backend, op, ignore_index, numbers = arguments[:11]
    return backend, Call(
        op, pred, index, target, score, weight, class_weight, alpha, ignore_index=ignore_index, numbers=tuple(numbers)
    )


def arguments_of(name: str, call: Call) -> tuple[Any, ...]:
    """What all operators begin with."""
    return call.pred, *call.tensors(), name, call.op, call.ignore_index, list(call.numbers)


def _total(*arguments: Any) -> tuple[Tensor, Tensor]:
    name, call = _call(arguments)
    divisor, need_grad = arguments[11:]
    result = fused_backend(name).total(call, 1.0, divisor, need_grad, False)
    if result is None:
        raise RuntimeError(f"detloss::total: {name} gave no result for {call.op}")
    total, grad = result
    return total, call.pred.new_empty(0) if grad is None else grad


def _total_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    pred = arguments[0]
    return pred.new_empty((), dtype=torch.float32), torch.empty_like(pred) if arguments[12] else pred.new_empty(0)


def _elements(*arguments: Any) -> Tensor:
    name, call = _call(arguments)
    loss = fused_backend(name).elements(call, False)
    if loss is None:
        raise RuntimeError(f"detloss::elements: {name} gave no result for {call.op}")
    return loss


def _elements_fake(*arguments: Any) -> Tensor:
    _, call = _call(arguments)
    return call.pred.new_empty(loss_shape(call), dtype=torch.float32)


def _elements_backward(*arguments: Any) -> Tensor:
    name, call = _call(arguments)
    return fused_backend(name).gradient(call, arguments[11])


def _elements_backward_fake(*arguments: Any) -> Tensor:
    return torch.empty_like(arguments[0])


def _save_total(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.count = len(inputs)


def _backward_of_total(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return ((grad * upstream).to(grad.dtype), *(None,) * (ctx.count - 1))


def _save_elements(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.rest = inputs[7:]


def _backward_of_elements(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    arguments = (*ctx.saved_tensors, *ctx.rest)
    grad = torch.ops.detloss.elements_backward(*arguments, upstream)
    return (grad, *(None,) * (len(arguments) - 1))


for _name, _run, _fake in (
    ("total", _total, _total_fake),
    ("elements", _elements, _elements_fake),
    ("elements_backward", _elements_backward, _elements_backward_fake),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"detloss::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("detloss::total", _backward_of_total, setup_context=_save_total, lib=_LIBRARY)
torch.library.register_autograd("detloss::elements", _backward_of_elements, setup_context=_save_elements, lib=_LIBRARY)


def opaque_total(name: str, call: Call, factor: float, divisor: Tensor | None) -> Tensor:
    """:meth:`Backend.total` as one operator; a factor that changes between calls travels as a tensor."""
    pred = call.pred
    if divisor is None:
        divisor = torch.full((), factor, dtype=torch.float32, device=pred.device).reciprocal()
    need_grad = torch.is_grad_enabled() and pred.requires_grad
    total: Tensor = torch.ops.detloss.total(*arguments_of(name, call), divisor, need_grad)[0]
    return total


def opaque_elements(name: str, call: Call) -> Tensor:
    """:meth:`Backend.elements` as one operator."""
    loss: Tensor = torch.ops.detloss.elements(*arguments_of(name, call))
    return loss
