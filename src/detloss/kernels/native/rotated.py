"""ProbIoU of rotated boxes: rows of (x, y, w, h, angle)."""

from __future__ import annotations

from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.native.arguments import TYPES, fresh, fresh_like, launch, packer, per_row, pointer, readable

__all__ = ["OPS", "refuses", "run"]

OPS = frozenset({"probiou"})
_rotated = packer(
    ("pred target weight upstream grad out", "P"), ("rows", "q"), ("type target_type itself", "i"), ("eps scale", "f")
)


def refuses(call: Call) -> str | None:
    """Every call with a checked form is taken."""
    return None


def run(call: Call, scale: float, need_grad: bool, upstream: Tensor | None, each: bool) -> tuple[Tensor, bool, Tensor | None]:
    """Scaled sum of the weighted losses, that no target can be out of range, and the gradient or, with ``each``, the losses."""
    pred, target = call.pred.contiguous(), call.target
    if target is None:
        raise TypeError(f"{call.op}: boxes to compare with are missing")
    target = readable(target).contiguous()
    weight, above = (None if x is None else per_row(x, pred.shape) for x in (call.weight, upstream))
    result = fresh_like(pred) if need_grad else fresh(*pred.shape[:-1]) if each else None
    eps, itself = call.numbers
    arguments = _rotated(
        pointer(pred), pointer(target), pointer(weight), pointer(above),
        pointer(result) if need_grad else 0, pointer(result) if each else 0, pred.numel() // 5,
        TYPES[pred.dtype], TYPES[target.dtype], int(itself), eps, scale,
    )  # fmt: skip
    total, bad = launch("detloss_rotated", arguments, scale)
    return total, bad, result
