"""The IoU family: rows of aligned boxes."""

from __future__ import annotations

from torch import Tensor

from detloss.kernels.contract import BOX_OPS, Call
from detloss.kernels.native.arguments import TYPES, fresh, fresh_like, launch, packer, per_row, pointer, readable

__all__ = ["OPS", "refuses", "run"]

OPS = BOX_OPS
_KINDS = {"giou": 3, "diou": 4, "ciou": 5, "eiou": 6, "siou": 7}


_boxes = packer(
    ("pred target weight upstream grad out", "P"), ("rows", "q"), ("type target_type kind format", "i"), ("eps extra scale", "f")
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
    weight = None if call.weight is None else per_row(call.weight, pred.shape)
    above = None if upstream is None else per_row(upstream, pred.shape)
    result = fresh_like(pred) if need_grad else fresh(*pred.shape[:-1]) if each else None
    address = pointer(result)
    eps, box_format, *extra = call.numbers
    kind = int(extra[0]) if call.op == "iou" else _KINDS[call.op]
    arguments = _boxes(
        pred.data_ptr(), target.data_ptr(), pointer(weight), pointer(above), address if need_grad else 0,
        address if each else 0, pred.numel() // 4, TYPES[pred.dtype], TYPES[target.dtype], kind, int(box_format),
        eps, extra[0] if extra else 0.0, scale,
    )  # fmt: skip
    total, bad = launch("detloss_boxes", arguments, scale)
    return total, bad, result
