"""Losses of a softmax: cross entropy, softmax focal, distribution focal, divergence from a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from detloss.kernels.contract import Call, loss_shape
from detloss.kernels.layout import Layout, class_layout, in_order, restored
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
    readable,
    spread_out,
)

__all__ = ["OPS", "refuses", "run"]

OPS = frozenset({"cross_entropy", "softmax_focal", "distribution_focal", "kl_divergence"})
CLASSES, DISTRIBUTION, DIVERGENCE = range(3)
_FORMS = {"distribution_focal": DISTRIBUTION, "kl_divergence": DIVERGENCE}


_softmax = packer(
    ("x index target weight upstream class_weight alpha grad out", "P"),
    ("outer classes inner ignore", "q"),
    ("type target_type op", "i"),
    ("gamma smoothing temperature scale", "f"),
)


def refuses(call: Call) -> str | None:
    """Softmax focal loss is taken for class indices without label smoothing only."""
    if call.op == "softmax_focal" and (call.index is None or call.numbers[1] != 0):
        return "softmax focal loss with dense targets or label smoothing has no native kernel"
    return None


def _numbers(call: Call) -> tuple[float, float, float]:
    """γ, label smoothing and temperature of a call."""
    if call.op == "softmax_focal":
        return call.numbers[0], call.numbers[1], 1.0
    if call.op == "kl_divergence":
        return 0.0, 0.0, call.numbers[0]
    return 0.0, (*call.numbers, 0.0)[0], 1.0


def _bins(pred: Tensor) -> Layout:
    """Layout of logits of bins ``[..., R + 1]``."""
    return Layout(pred.numel() // pred.shape[-1], pred.shape[-1], 1, tuple(range(pred.ndim)))


def run(call: Call, scale: float, need_grad: bool, upstream: Tensor | None, each: bool) -> tuple[Tensor, bool, Tensor | None]:
    """Scaled sum of the weighted losses, whether a target is out of range, and the gradient or, with ``each``, the losses."""
    bins = call.op == "distribution_focal"
    layout = _bins(call.pred) if bins else class_layout(call.pred)
    pred = in_order(call.pred, layout)
    target = readable(call.target).contiguous() if bins and call.target is not None else as_target(call.target, layout)
    weight, _ = spread_out(call.weight, call, layout, True)
    above, _ = spread_out(upstream, call, layout, True)
    index = None if call.index is None else call.index.to(torch.int64).contiguous()
    class_weight, alpha = as_fp32(call.class_weight), as_fp32(call.alpha)
    result = fresh_like(pred) if need_grad else fresh(*loss_shape(call)) if each else None
    arguments = _softmax(
        pointer(pred), pointer(index), pointer(target), pointer(weight), pointer(above), pointer(class_weight), pointer(alpha),
        pointer(result) if need_grad else 0, pointer(result) if each else 0,
        layout.outer, layout.classes, layout.inner, as_int64(call.ignore_index),
        TYPES[pred.dtype], 0 if target is None else TYPES[target.dtype], _FORMS.get(call.op, CLASSES),
        *_numbers(call), scale,
    )  # fmt: skip
    total, bad = launch("detloss_softmax", arguments, scale)
    return total, bad, restored(result, layout) if result is not None and need_grad else result
