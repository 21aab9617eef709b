"""Softmax losses on CUDA: from a call to the launch of a kernel."""

from __future__ import annotations

import triton
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.layout import class_layout, in_order, restored, spread
from detloss.kernels.triton_backend.softmax_kernels import softmax_positions
from detloss.kernels.triton_backend.sums import fresh_results

__all__ = ["OPS", "refuses", "run", "tile_shape"]

CELLS = 1024
OPS = frozenset({"cross_entropy", "softmax_focal"})


def refuses(call: Call) -> str | None:
    """Every checked call is taken."""
    return None


def tile_shape(classes: int, planes: bool) -> tuple[int, int]:
    """Positions and classes of a tile: few classes beside each other where memory runs along the pixels."""
    block = min(triton.next_power_of_2(classes), 8 if planes else 32)
    return CELLS // block, block


def run(
    call: Call, factor: float, divisor: Tensor | None, upstream: Tensor | None, mode: str, total: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Partial sums of the weighted losses (``total``), and the gradient (mode ``"grad"``) or the losses (``"each"``)."""
    layout = class_layout(call.pred)
    planes = layout.inner > 1
    rows, block = tile_shape(layout.classes, planes)
    pred = in_order(call.pred, layout)
    weight, weight_spread = spread(call.weight, call, layout, True)
    above, upstream_spread = spread(upstream, call, layout, True)
    grid = (layout.outer * triton.cdiv(layout.inner, rows) if planes else triton.cdiv(layout.outer, rows),)
    partial, out = fresh_results(call, pred, mode, grid if total else None)
    gamma, smoothing = call.numbers if call.op == "softmax_focal" else (0.0, call.numbers[0])
    softmax_positions[grid](
        pred,
        None if call.index is None else call.index.contiguous(),
        None if call.target is None else in_order(call.target, layout),
        weight, above, call.class_weight, call.alpha, divisor, partial, out,
        layout.outer, layout.inner, factor, call.ignore_index, C=layout.classes, GAMMA=gamma, SMOOTHING=smoothing,
        W=weight_spread, U=upstream_spread, MODE=mode, PLANES=planes, ROWS=rows, BC=block,
    )  # fmt: skip
    return partial, restored(out, layout) if out is not None and mode == "grad" else out
