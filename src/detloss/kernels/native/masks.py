"""Losses of whole masks: Tversky, and Dice, which is one of them."""

from __future__ import annotations

from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.native.arguments import TYPES, fresh, fresh_like, launch, packer, per_row, pointer, readable

__all__ = ["OPS", "refuses", "run"]

OPS = frozenset({"tversky"})
_masks = packer(
    ("x target weight upstream grad out", "P"),
    ("rows pixels", "q"),
    ("type target_type squared", "i"),
    ("alpha beta smooth scale", "f"),
)


def refuses(call: Call) -> str | None:
    """Every call with a checked form is taken."""
    return None


def run(call: Call, scale: float, need_grad: bool, upstream: Tensor | None, each: bool) -> tuple[Tensor, bool, Tensor | None]:
    """Scaled sum of the weighted losses, whether a target is out of range, and the gradient or, with ``each``, the losses."""
    pred, target = call.pred.contiguous(), call.target
    if target is None:
        raise TypeError(f"{call.op}: the masks to compare with are missing")
    target = readable(target).contiguous()
    rows, pixels = pred.shape
    weight, above = (None if x is None else per_row(x, pred.shape) for x in (call.weight, upstream))
    result = fresh_like(pred) if need_grad else fresh(rows) if each else None
    alpha, beta, smooth, squared = call.numbers
    arguments = _masks(
        pointer(pred), pointer(target), pointer(weight), pointer(above),
        pointer(result) if need_grad else 0, pointer(result) if each else 0, rows, pixels,
        TYPES[pred.dtype], TYPES[target.dtype], int(squared), alpha, beta, smooth, scale,
    )  # fmt: skip
    total, bad = launch("detloss_masks", arguments, scale)
    return total, bad, result
