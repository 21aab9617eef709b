"""Element-wise losses of coordinates: L1, smooth L1, Huber, squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.layout import element_layout, in_order, restored
from detloss.kernels.native.arguments import TYPES, as_target, fresh, fresh_like, launch, packer, pointer, spread_out

__all__ = ["OPS", "refuses", "run"]

_KINDS = {"l1": 0, "smooth_l1": 1, "mse": 2, "huber": 3}
OPS = frozenset(_KINDS)


_coordinates = packer(
    ("pred target weight upstream grad out", "P"), ("count per_weight", "q"), ("type target_type op", "i"), ("beta scale", "f")
)


def refuses(call: Call) -> str | None:
    """Every call with a checked form is taken."""
    return None


def run(call: Call, scale: float, need_grad: bool, upstream: Tensor | None, each: bool) -> tuple[Tensor, bool, Tensor | None]:
    """Scaled sum of the weighted losses, that no target can be out of range, and the gradient or, with ``each``, the losses."""
    layout = element_layout(call)
    pred, target = in_order(call.pred, layout), as_target(call.target, layout)
    if target is None:
        raise TypeError(f"{call.op}: the target is missing")
    weight, _ = spread_out(call.weight, call, layout, False)
    above = None if upstream is None else in_order(upstream.to(torch.float32), layout)
    result = fresh_like(pred) if need_grad else fresh(*pred.shape) if each else None
    per_weight = 1 if weight is None else pred.numel() // weight.numel()
    arguments = _coordinates(
        pointer(pred), pointer(target), pointer(weight), pointer(above),
        pointer(result) if need_grad else 0, pointer(result) if each else 0, pred.numel(), per_weight,
        TYPES[pred.dtype], TYPES[target.dtype], _KINDS[call.op], call.numbers[0] if call.numbers else 1.0, scale,
    )  # fmt: skip
    total, bad = launch("detloss_coordinates", arguments, scale)
    return total, bad, None if result is None else restored(result, layout)
