"""Sigmoid losses: focal, binary cross entropy, quality focal, varifocal."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from detloss.kernels.contract import Call, loss_shape
from detloss.kernels.native.layout import TYPES, Layout, as_fp32, in_layout, layout_of, pointer
from detloss.kernels.native.library import library

__all__ = ["OPS", "refuses", "run"]

_POINTERS = ("x", "index", "target", "score", "weight", "upstream", "class_weight", "alpha", "grad", "out")
_SIZES = ("outer", "classes", "inner", "ignore")
_KINDS = ("type", "target_type", "weight_spread", "upstream_spread", "out_spread", "op", "weigh_by_quality")
_REALS = ("gamma", "positive", "negative", "smoothing", "scale")


class _Sigmoid(ctypes.Structure):
    """``struct Sigmoid`` of kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_int32) for name in _KINDS),
        *((name, ctypes.c_float) for name in _REALS),
    ]


NONE, POSITION, ELEMENT = range(3)
FOCAL, QUALITY, VARIFOCAL = range(3)


def _numbers(call: Call) -> dict[str, Any]:
    """The numbers of an operation by the names of the structure."""
    if call.op == "sigmoid_focal":
        gamma, positive, negative, smoothing = call.numbers
        return {"op": FOCAL, "gamma": gamma, "positive": positive, "negative": negative, "smoothing": smoothing}
    if call.op == "binary_cross_entropy":
        return {"op": FOCAL, "gamma": 0.0, "positive": 1.0, "negative": 1.0, "smoothing": call.numbers[0]}
    if call.op == "quality_focal":
        return {"op": QUALITY, "gamma": call.numbers[0], "positive": 1.0, "negative": 1.0}
    alpha, gamma, weighted = call.numbers
    return {"op": VARIFOCAL, "gamma": gamma, "positive": 1.0, "negative": alpha, "weigh_by_quality": int(weighted)}


OPS = frozenset({"sigmoid_focal", "binary_cross_entropy", "quality_focal", "varifocal"})


def refuses(call: Call) -> str | None:
    """Every call with a checked form is taken."""
    return None


def _by_class(call: Call) -> bool:
    """Whether the class dimension matters; else the numbers are taken one by one."""
    return call.index is not None or call.op == "quality_focal" or call.class_weight is not None or call.alpha is not None


def _layout(call: Call) -> Layout:
    pred = call.pred
    if _by_class(call):
        return layout_of(pred)
    weight = call.weight
    if weight is None or weight.ndim == pred.ndim:
        order = layout_of(pred).order if pred.ndim in (2, 4) else tuple(range(pred.ndim))
        return Layout(pred.numel(), 1, 1, order)
    return Layout(weight.numel(), pred.numel() // weight.numel(), 1, tuple(range(pred.ndim)))


def _spread(values: Tensor | None, call: Call, layout: Layout) -> tuple[Tensor | None, int]:
    """Weights over leading dimensions of the loss as one number per position or per element of the layout."""
    if values is None:
        return None, NONE
    pred, shape = call.pred, loss_shape(call)
    if not _by_class(call):
        if values.ndim < pred.ndim:
            return as_fp32(values), POSITION
        return in_layout(values.to(torch.float32), layout.order), ELEMENT
    if values.ndim <= 1 or len(shape) < pred.ndim:
        positions = pred.shape[:1] + pred.shape[2:]
        full = values.reshape(*values.shape, *(1,) * (len(positions) - values.ndim)).expand(positions)
        return as_fp32(full), POSITION
    full = values.reshape(*values.shape, *(1,) * (pred.ndim - values.ndim)).expand(pred.shape)
    return in_layout(full.to(torch.float32), layout.order), ELEMENT


def _dense(target: Tensor | None, layout: Layout) -> Tensor | None:
    if target is None:
        return None
    return in_layout(target if target.dtype in TYPES else target.to(torch.float32), layout.order)


def run(call: Call, scale: float, need_grad: bool, upstream: Tensor | None, each: bool) -> tuple[float, bool, Tensor | None]:
    """Sum of the weighted losses, whether a target is outside its range, and the gradient or, with ``each``, the losses."""
    layout = _layout(call)
    pred, target = in_layout(call.pred, layout.order), _dense(call.target, layout)
    weight, weight_spread = _spread(call.weight, call, layout)
    above, upstream_spread = _spread(upstream, call, layout)
    index = None if call.index is None else call.index.to(torch.int64).contiguous()
    score, class_weight, alpha = as_fp32(call.score), as_fp32(call.class_weight), as_fp32(call.alpha)
    lost = call.op == "quality_focal"
    result = None
    if need_grad:
        result = torch.empty_like(pred)
    elif each:
        result = torch.empty(loss_shape(call) if lost else pred.shape, dtype=torch.float32)
    arguments = _Sigmoid(
        x=pointer(pred), index=pointer(index), target=pointer(target), score=pointer(score), weight=pointer(weight),
        upstream=pointer(above), class_weight=pointer(class_weight), alpha=pointer(alpha),
        grad=pointer(result) if need_grad else None, out=pointer(result) if each else None,
        outer=layout.outer, classes=layout.classes, inner=layout.inner, ignore=call.ignore_index,
        type=TYPES[pred.dtype], target_type=0 if target is None else TYPES[target.dtype],
        weight_spread=weight_spread, upstream_spread=upstream_spread, out_spread=POSITION if lost else ELEMENT,
        scale=scale, **_numbers(call),
    )  # fmt: skip
    total = ctypes.c_double()
    bad = library().detloss_sigmoid(ctypes.byref(arguments), torch.get_num_threads(), ctypes.byref(total))
    if result is not None and not (each and lost):
        result = result.permute(_inverse(layout.order))
    return total.value, bool(bad), result


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
