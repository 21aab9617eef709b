"""The IoU family on CUDA: IoU, GIoU, DIoU, CIoU, EIoU and SIoU loss with their gradients, in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.triton_backend.box_axis import axis_back, axis_facts, corner_gradients, corners, inverted_share
from detloss.kernels.triton_backend.box_costs import aspect, distance, iou_term, scylla, side_differences
from detloss.kernels.triton_backend.maths import scale_of
from detloss.kernels.triton_backend.sums import rows_of

__all__ = ["OPS", "refuses", "run"]

BLOCK_SIZE = 256
OPS = frozenset({"iou", "giou", "diou", "ciou", "eiou", "siou"})
POSITION = tl.constexpr(1)
ONE = tl.constexpr(3)


@triton.jit
def _sides(boxes: tl.tensor, at: tl.tensor, mask: tl.tensor, FORMAT: tl.constexpr) -> tl.tensor:
    """x1, x2, y1, y2 of boxes ``[n, 4]``."""
    first = tl.load(boxes + 4 * at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(boxes + 4 * at + 1, mask=mask, other=0.0).to(tl.float32)
    third = tl.load(boxes + 4 * at + 2, mask=mask, other=0.0).to(tl.float32)
    fourth = tl.load(boxes + 4 * at + 3, mask=mask, other=0.0).to(tl.float32)
    x1, x2 = corners(first, third, FORMAT)
    y1, y2 = corners(second, fourth, FORMAT)
    return x1, x2, y1, y2


@triton.jit
def box_rows(
    pred: tl.tensor, boxes: tl.tensor, weight: tl.tensor, upstream: tl.tensor, divisor: tl.tensor, partial: tl.tensor,
    out: tl.tensor, n: tl.tensor, factor: tl.tensor, eps: tl.tensor,
    extra: tl.tensor, OP: tl.constexpr, IOU_MODE: tl.constexpr, FORMAT: tl.constexpr, W: tl.constexpr, U: tl.constexpr,
    MODE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """pred[n, 4] against boxes[n, 4], BLOCK pairs a program; ``extra`` is the threshold of α or θ."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    px1, px2, py1, py2 = _sides(pred, at, mask, FORMAT)
    tx1, tx2, ty1, ty2 = _sides(boxes, at, mask, FORMAT)
    pw, tw, cw, dx, ax, bx, ox, same_x = axis_facts(px1, px2, tx1, tx2)
    ph, th, ch, dy, ay, by, oy, same_y = axis_facts(py1, py2, ty1, ty2)

    common = ox * oy
    union = ax * ay + bx * by - common
    inverse = 1.0 / tl.maximum(union, eps)
    ratio, identical = common * inverse, same_x & same_y
    iou = tl.where(identical, 1.0, tl.minimum(ratio, 1.0))
    loss, g_iou = iou_term(iou, eps, IOU_MODE)
    g_iou = tl.where(identical | (ratio >= 1), 0.0, g_iou)
    g_union = tl.where(union > eps, -g_iou * ratio * inverse, 0.0)
    turned_x, g_pw = inverted_share(pw, tw, cw)
    turned_y, g_ph = inverted_share(ph, th, ch)
    loss += turned_x + turned_y
    g_dx, g_dy, g_cw, g_ch = dx * 0.0, dx * 0.0, dx * 0.0, dx * 0.0
    if OP == "giou":
        hollow = (cw > 0) & (ch > 0) & (identical == 0) & (union < 1)
        loss += tl.where(hollow, 1.0 - union, 0.0)
        g_union -= tl.where(hollow, 1.0, 0.0)
    elif OP == "siou":
        value, g_dx, g_dy, g_cw, g_ch, g_w, g_h = scylla(dx, dy, cw, ch, pw, ph, tw, th, eps, extra)
        loss, g_pw, g_ph = loss + value, g_pw + g_w, g_ph + g_h
    elif OP != "iou":
        value, g_dx, g_dy, g_cw, g_ch = distance(dx, dy, cw, ch)
        loss += value
        if OP == "ciou":
            value, g_w, g_h = aspect(pw, ph, tw, th, cw, ch, iou, eps, extra)
            loss, g_pw, g_ph = loss + value, g_pw + g_w, g_ph + g_h
        elif OP == "eiou":
            value, g_w, g_c = side_differences(pw, tw, cw)
            loss, g_pw, g_cw = loss + value, g_pw + g_w, g_cw + g_c
            value, g_h, g_c = side_differences(ph, th, ch)
            loss, g_ph, g_ch = loss + value, g_ph + g_h, g_ch + g_c

    # Minimum and maximum drop NaN on some devices; this sum of finite numbers is 0, of a NaN it is NaN.
    broken = ((px1 + px2 + py1 + py2) + (tx1 + tx2 + ty1 + ty2)) * 0.0
    w, up, counts = tl.full([BLOCK], 1.0, tl.float32), tl.full([BLOCK], 1.0, tl.float32), mask
    if W == POSITION:
        w = tl.load(weight + at, mask=mask, other=0.0)
        counts = counts & (w != 0)
    loss = tl.where(counts, (loss + broken) * w, 0.0)
    if MODE == "each":
        tl.store(out + at, loss, mask=mask)
    if partial is not None:
        tl.store(partial + tl.program_id(0), tl.sum(loss, 0))
    if MODE == "grad":
        if U == POSITION:
            up = tl.load(upstream + at, mask=mask, other=0.0)
        elif U == ONE:
            up = up * tl.load(upstream)
        scale = scale_of(factor, divisor)
        g_common = g_iou * inverse - g_union
        gx1, gx2 = axis_back(
            px1, px2, tx1, tx2, ax, bx, ox, g_union * ay, g_union * by, g_common * oy, g_pw, g_cw, g_dx
        )  # fmt: skip
        gy1, gy2 = axis_back(
            py1, py2, ty1, ty2, ay, by, oy, g_union * ax, g_union * bx, g_common * ox, g_ph, g_ch, g_dy
        )  # fmt: skip
        first, third = corner_gradients(px1, px2, gx1, gx2, FORMAT)
        second, fourth = corner_gradients(py1, py2, gy1, gy2, FORMAT)
        w = w * up * scale
        kind = out.dtype.element_ty
        tl.store(out + 4 * at, tl.where(scale == 0, 0.0, tl.where(counts, (first + broken) * w, 0.0)).to(kind), mask=mask)
        tl.store(out + 4 * at + 1, tl.where(scale == 0, 0.0, tl.where(counts, (second + broken) * w, 0.0)).to(kind), mask=mask)
        tl.store(out + 4 * at + 2, tl.where(scale == 0, 0.0, tl.where(counts, (third + broken) * w, 0.0)).to(kind), mask=mask)
        tl.store(out + 4 * at + 3, tl.where(scale == 0, 0.0, tl.where(counts, (fourth + broken) * w, 0.0)).to(kind), mask=mask)


def refuses(call: Call) -> str | None:
    """Every checked call is taken."""
    return None


def run(
    call: Call, factor: float, divisor: Tensor | None, upstream: Tensor | None, mode: str, total: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Partial sums of the weighted losses (``total``), and the gradient (mode ``"grad"``) or the losses (``"each"``)."""
    rows = rows_of(call, upstream, mode, total, BLOCK_SIZE)
    eps, box_format, *rest = call.numbers
    box_rows[rows.grid](
        *rows.tensors, divisor, rows.partial, rows.out, rows.number, factor, eps, rest[0] if rest else 0.0, OP=call.op,
        IOU_MODE=int(rest[0]) if call.op == "iou" else 0, FORMAT=int(box_format), W=rows.spreads[0], U=rows.spreads[1], MODE=mode,
        BLOCK=BLOCK_SIZE,
    )  # fmt: skip
    return rows.partial, rows.out
