"""Sigmoid losses on CUDA: from a call to the launch of a kernel."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from detloss.kernels.contract import Call, loss_shape
from detloss.kernels.layout import Layout, class_layout, element_layout, in_order, restored, spread
from detloss.kernels.triton_backend.sigmoid_kernels import sigmoid_planes, sigmoid_rows

__all__ = ["OPS", "refuses", "run"]

ROW_BLOCK, PLANE_BLOCK, CLASS_BLOCK = 1024, 256, 8
OPS = frozenset({"sigmoid_focal", "binary_cross_entropy", "quality_focal", "varifocal"})


def refuses(call: Call) -> str | None:
    """Every checked call is taken."""
    return None


def _numbers(call: Call) -> dict[str, Any]:
    """The numbers of an operation by the names of the kernels' arguments."""
    numbers: dict[str, Any] = {
        "OP": "focal",
        "GAMMA": 0.0,
        "positive": 1.0,
        "negative": 1.0,
        "SMOOTHING": 0.0,
        "BY_QUALITY": False,
    }
    if call.op == "sigmoid_focal":
        given: dict[str, Any] = dict(zip(("GAMMA", "positive", "negative", "SMOOTHING"), call.numbers, strict=True))
    elif call.op == "binary_cross_entropy":
        given = {"SMOOTHING": call.numbers[0]}
    elif call.op == "quality_focal":
        given = {"OP": "quality", "GAMMA": call.numbers[0]}
    else:
        alpha, gamma, by_quality = call.numbers
        given = {"OP": "varifocal", "negative": alpha, "GAMMA": gamma, "BY_QUALITY": bool(by_quality)}
    return numbers | given


def _by_class(call: Call) -> bool:
    """Whether the class dimension matters; else the numbers are taken one by one."""
    return call.index is not None or call.op == "quality_focal" or call.class_weight is not None or call.alpha is not None


def _grid(call: Call, layout: Layout) -> tuple[Any, int, tuple[int, ...]]:
    """The kernel for a layout, the size of its blocks, and its programs."""
    if layout.inner == 1:
        # Targets other than class indices need about twice the registers.
        block = ROW_BLOCK if call.index is not None and call.score is None else ROW_BLOCK // 2
        return sigmoid_rows, block, (triton.cdiv(layout.outer * layout.classes, block),)
    programs = layout.outer * triton.cdiv(layout.inner, PLANE_BLOCK), triton.cdiv(layout.classes, CLASS_BLOCK)
    return sigmoid_planes, PLANE_BLOCK, programs


def run(
    call: Call, factor: float, divisor: Tensor | None, upstream: Tensor | None, mode: str, total: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Partial sums of the weighted losses (``total``), and the gradient (mode ``"grad"``) or the losses (``"each"``)."""
    by_class = _by_class(call)
    layout = class_layout(call.pred) if by_class else element_layout(call)
    kernel, block, grid = _grid(call, layout)
    pred = in_order(call.pred, layout)
    weight, weight_spread = spread(call.weight, call, layout, by_class)
    above, upstream_spread = spread(upstream, call, layout, by_class)
    out = None
    if mode != "none":
        out = torch.empty_like(pred, dtype=pred.dtype if mode == "grad" else torch.float32)
    partial = torch.empty(grid, dtype=torch.float32, device=pred.device) if total else None
    kernel[grid](
        pred,
        None if call.index is None else call.index.contiguous(),
        None if call.target is None else in_order(call.target, layout),
        None if call.score is None else call.score.contiguous(),
        weight, above, call.class_weight, call.alpha, divisor, partial, out,
        layout.outer, layout.inner, factor, ignore=call.ignore_index, C=layout.classes, W=weight_spread, U=upstream_spread,
        MODE=mode, BLOCK=block, CLASS_BLOCK=CLASS_BLOCK, **_numbers(call),
    )  # fmt: skip
    if out is None:
        return partial, None
    result = restored(out, layout)
    return partial, result.sum(1) if mode == "each" and len(loss_shape(call)) < call.pred.ndim else result
