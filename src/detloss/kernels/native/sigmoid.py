"""Sigmoid losses: focal, binary cross entropy, quality focal, varifocal."""

from __future__ import annotations

import torch
from torch import Tensor

from detloss.kernels.contract import Call, loss_shape
from detloss.kernels.layout import ELEMENT, POSITION, class_layout, element_layout, in_order, restored
from detloss.kernels.native.arguments import (
    TYPES,
    as_fp32,
    as_int64,
    as_target,
    fresh,
    fresh_like,
    launch,
    packer,
    pointer,
    spread_out,
)

__all__ = ["OPS", "refuses", "run"]

_sigmoid = packer(
    ("x index target score weight upstream class_weight alpha grad out", "P"),
    ("outer classes inner ignore", "q"),
    ("type target_type weight_spread upstream_spread out_spread op weigh_by_quality", "i"),
    ("gamma positive negative smoothing scale", "f"),
)
FOCAL, QUALITY, VARIFOCAL = range(3)


def _numbers(call: Call) -> tuple[int, int, float, float, float, float]:
    """The numbers of an operation: from ``op`` to ``smoothing`` of the structure."""
    if call.op == "sigmoid_focal":
        gamma, positive, negative, smoothing = call.numbers
        return FOCAL, 0, gamma, positive, negative, smoothing
    if call.op == "binary_cross_entropy":
        return FOCAL, 0, 0.0, 1.0, 1.0, call.numbers[0]
    if call.op == "quality_focal":
        return QUALITY, 0, call.numbers[0], 1.0, 1.0, 0.0
    alpha, gamma, weighted = call.numbers
    return VARIFOCAL, int(weighted), gamma, 1.0, alpha, 0.0


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
    arguments = _sigmoid(
        pointer(pred), pointer(index), pointer(target), pointer(score), pointer(weight), pointer(above),
        pointer(class_weight), pointer(alpha), pointer(result) if need_grad else 0, pointer(result) if each else 0,
        layout.outer, layout.classes, layout.inner, as_int64(call.ignore_index),
        TYPES[pred.dtype], 0 if target is None else TYPES[target.dtype],
        weight_spread, upstream_spread, POSITION if lost else ELEMENT, *_numbers(call), scale,
    )  # fmt: skip
    total, bad = launch("detloss_sigmoid", arguments, scale)
    if result is not None and not (each and lost):
        result = restored(result, layout)
    return total, bad, result
