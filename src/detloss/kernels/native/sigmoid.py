"""Sigmoid losses: focal, binary cross entropy, quality focal, varifocal."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from detloss.kernels.contract import Call, loss_shape
from detloss.kernels.layout import ELEMENT, POSITION, class_layout, element_layout, in_order, restored
from detloss.kernels.native.arguments import TYPES, as_fp32, as_target, fresh, fresh_like, launch, pointer, spread_out

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


def run(call: Call, scale: float, need_grad: bool, upstream: Tensor | None, each: bool) -> tuple[Tensor, bool, Tensor | None]:
    """Scaled sum of the weighted losses, whether a target is out of range, and the gradient or, with ``each``, the losses."""
    by_class = _by_class(call)
    layout = class_layout(call.pred) if by_class else element_layout(call)
    pred, target = in_order(call.pred, layout), as_target(call.target, layout)
    weight, weight_spread = spread_out(call.weight, call, layout, by_class)
    above, upstream_spread = spread_out(upstream, call, layout, by_class)
    index = None if call.index is None else call.index.to(torch.int64).contiguous()
    score, class_weight, alpha = as_fp32(call.score), as_fp32(call.class_weight), as_fp32(call.alpha)
    lost = call.op == "quality_focal"
    result = None
    if need_grad:
        result = fresh_like(pred)
    elif each:
        result = fresh(*(loss_shape(call) if lost else pred.shape))
    arguments = _Sigmoid(
        x=pointer(pred), index=pointer(index), target=pointer(target), score=pointer(score), weight=pointer(weight),
        upstream=pointer(above), class_weight=pointer(class_weight), alpha=pointer(alpha),
        grad=pointer(result) if need_grad else None, out=pointer(result) if each else None,
        outer=layout.outer, classes=layout.classes, inner=layout.inner, ignore=call.ignore_index,
        type=TYPES[pred.dtype], target_type=0 if target is None else TYPES[target.dtype],
        weight_spread=weight_spread, upstream_spread=upstream_spread, out_spread=POSITION if lost else ELEMENT,
        scale=scale, **_numbers(call),
    )  # fmt: skip
    total, bad = launch("detloss_sigmoid", arguments, scale)
    if result is not None and not (each and lost):
        result = restored(result, layout)
    return total, bad, result
