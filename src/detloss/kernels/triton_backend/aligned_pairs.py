"""What of the alignment of an object and a prior takes no function but arithmetic: kernels over dense columns of pairs.

A column holds one number for each of n objects and P priors, P padded. The columns are logit, overlap (−1 for what is no pair)
and overlap^beta. For ``"ciou"`` the third one is first the distance of the centres, and four more hold width and height of the
object, then of the prediction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from detloss.kernels.triton_backend.exact import (
    PAIR_LIMIT,
    SMALLEST,
    SMALLEST_SIDE,
    clamped,
    is_finite,
    pair_axis,
    pair_iou,
    pair_whole,
)

__all__ = ["complete_overlaps", "write_pairs"]

LEAST_SHAPE = tl.constexpr(1e-6)
LEAST_SHAPE_SIDE = tl.constexpr(1e-6 * 1e-12)
FOUR_BY_PI_SQUARED = tl.constexpr(0.4052847345693511)
PER_BATCH = ("first", "per_image", "classes")  # not worth a compilation for each kind of number


@triton.jit
def _shape_side(size: tl.tensor, enclosing: tl.tensor, unit: tl.tensor) -> tl.tensor:
    """Side of a box in units of the longer side of the enclosing one, bounded below; its angle is that of its shape."""
    return tl.div_rn(tl.maximum(tl.maximum(size, enclosing * LEAST_SHAPE), LEAST_SHAPE_SIDE), unit)


@triton.jit
def _write_columns(
    p1: tl.tensor, q1: tl.tensor, p2: tl.tensor, q2: tl.tensor, t1: tl.tensor, u1: tl.tensor, t2: tl.tensor, u2: tl.tensor,
    overlap: tl.tensor, size: tl.tensor, counts: tl.tensor, stored: tl.tensor, COMPLETE: tl.constexpr,
) -> None:  # fmt: skip
    """The columns from the second one on, of finite predictions (p1, q1, p2, q2) and an object (t1, u1, t2, u2)."""
    p1, q1, p2, q2 = clamped(p1, PAIR_LIMIT), clamped(q1, PAIR_LIMIT), clamped(p2, PAIR_LIMIT), clamped(q2, PAIR_LIMIT)
    t1, u1, t2, u2 = clamped(t1, PAIR_LIMIT), clamped(u1, PAIR_LIMIT), clamped(t2, PAIR_LIMIT), clamped(u2, PAIR_LIMIT)
    width, true_width, wide, dx, px, tx, cx, same_x = pair_axis(p1, p2, t1, t2)
    height, true_height, high, dy, py, ty, cy, same_y = pair_axis(q1, q2, u1, u2)
    common, whole = pair_whole(px, tx, cx, py, ty, cy)
    tl.store(overlap, tl.where(counts, pair_iou(common, whole, same_x & same_y), -1.0), mask=stored)
    if COMPLETE:
        unit = tl.maximum(tl.maximum(wide, high), SMALLEST_SIDE)
        cw, ch, dx, dy = tl.div_rn(wide, unit), tl.div_rn(high, unit), tl.div_rn(dx, unit), tl.div_rn(dy, unit)
        diagonal = cw * cw + ch * ch
        tl.store(overlap + size, tl.div_rn(dx * dx + dy * dy, tl.where(diagonal > 0, diagonal, 1.0)), mask=stored)
        tl.store(overlap + 2 * size, _shape_side(true_width, wide, unit), mask=stored)
        tl.store(overlap + 3 * size, _shape_side(true_height, high, unit), mask=stored)
        tl.store(overlap + 4 * size, _shape_side(width, wide, unit), mask=stored)
        tl.store(overlap + 5 * size, _shape_side(height, high, unit), mask=stored)


@triton.jit(do_not_specialize=PER_BATCH)
def write_pairs(
    columns: tl.tensor, region: tl.tensor, objects: tl.tensor, labels: tl.tensor, xy: tl.tensor, valid: tl.tensor,
    boxes: tl.tensor, scores: tl.tensor, first: tl.tensor, per_image: tl.tensor, priors: tl.tensor, xy_stride: tl.tensor,
    classes: tl.tensor, score_image: tl.tensor, score_prior: tl.tensor, score_class: tl.tensor, padded: tl.tensor,
    size: tl.tensor, COMPLETE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Columns of an object of the part that begins with ``first`` and BLOCK priors, ``size`` numbers each.

    Where none of the priors is inside, only the overlap is written. A class without a logit has no pairs.
    """
    blocks = tl.cdiv(padded, BLOCK)
    local = (tl.program_id(0) // blocks).to(tl.int64)
    lane = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, stored, size = first + local, lane < padded, size.to(tl.int64)
    image = row // per_image
    label = tl.load(labels + row)
    label = tl.where(label < 0, label + classes, label)
    known = (lane < priors) & (label >= 0) & (label < classes)
    x1, y1, x2, y2 = _corners(region + 4 * row)
    point = xy + image * xy_stride + 2 * lane
    x, y = tl.load(point, mask=known, other=0.0), tl.load(point + 1, mask=known, other=0.0)
    inside = known & (x > x1) & (x < x2) & (y > y1) & (y < y2)
    logit_at = columns + local * padded + lane
    if tl.max(inside.to(tl.int32), 0) == 0:
        tl.store(logit_at + size, tl.full([BLOCK], -1.0, tl.float32), mask=stored)
    else:
        prior = image * priors + lane
        from_logit = scores + image * score_image + lane * score_prior + label * score_class
        logit = tl.load(from_logit, mask=inside, other=0.0).to(tl.float32)
        p1, q1 = tl.load(boxes + 4 * prior, mask=inside, other=0.0), tl.load(boxes + 4 * prior + 1, mask=inside, other=0.0)
        p2, q2 = tl.load(boxes + 4 * prior + 2, mask=inside, other=0.0), tl.load(boxes + 4 * prior + 3, mask=inside, other=0.0)
        counts = inside & (tl.load(valid + prior, mask=inside, other=0) != 0) & is_finite(logit)
        counts = counts & is_finite(p1) & is_finite(q1) & is_finite(p2) & is_finite(q2)
        tl.store(logit_at, logit, mask=stored)
        t1, u1, t2, u2 = _corners(objects + 4 * row)
        _write_columns(p1, q1, p2, q2, t1, u1, t2, u2, logit_at + size, size, counts, stored, COMPLETE)


@triton.jit
def _corners(box: tl.tensor) -> tl.tensor:
    """The four corners that lie at ``box``."""
    return tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)


@triton.jit
def complete_overlaps(columns: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Makes a CIoU, not below 0, of the IoU, of BLOCK pairs whose widths have been replaced by the angles of both boxes."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at, size = columns + lane, size.to(tl.int64)
    iou = tl.load(at + size, mask=lane < size, other=0.0)
    some = iou > 0
    distance, angle = tl.load(at + 2 * size, mask=some, other=0.0), tl.load(at + 3 * size, mask=some, other=0.0)
    apart = angle - tl.load(at + 5 * size, mask=some, other=0.0)
    gap = (apart * apart) * FOUR_BY_PI_SQUARED
    alpha = tl.where(gap > 0, tl.div_rn(gap, tl.maximum((1.0 - iou) + gap, SMALLEST)), 0.0)
    overlap = (iou - distance) - alpha * gap
    tl.store(at + size, tl.where(some & (overlap > 0), overlap, 0.0), mask=lane < size)
