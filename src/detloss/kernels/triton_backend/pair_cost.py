"""What boxes cost as partners of objects on CUDA, by the operations of :mod:`detloss.assigners.hungarian` in their order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.match_checks import refuses_match as refuses
from detloss.kernels.matches import PairCostMatch
from detloss.kernels.triton_backend.exact import EXACT, PAIR_LIMIT, SMALLEST_SIDE, clamped, pair_axis, pair_iou, pair_whole

__all__ = ["OPS", "match", "refuses"]

OPS = frozenset({PairCostMatch.op})
BLOCK_SIZE = 256


@triton.jit
def _turned(length: tl.tensor, enclosing: tl.tensor) -> tl.tensor:
    """How far an interval is turned inside out, in units of the enclosing length."""
    return tl.div_rn(tl.maximum(-length, 0.0), tl.maximum(enclosing, SMALLEST_SIDE))


@triton.jit
def _corners(box: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Corners of boxes within the limit of a coordinate."""
    low_x, low_y = tl.load(box, mask=mask, other=0.0), tl.load(box + 1, mask=mask, other=0.0)
    high_x, high_y = tl.load(box + 2, mask=mask, other=0.0), tl.load(box + 3, mask=mask, other=0.0)
    return clamped(low_x, PAIR_LIMIT), clamped(low_y, PAIR_LIMIT), clamped(high_x, PAIR_LIMIT), clamped(high_y, PAIR_LIMIT)


@triton.jit(do_not_specialize=("per_image",))
def add_box_costs(
    boxes: tl.tensor, objects: tl.tensor, units: tl.tensor, usable: tl.tensor, valid: tl.tensor, cost: tl.tensor,
    per_image: tl.tensor, queries: tl.tensor, l1_weight: tl.tensor, iou_weight: tl.tensor,
    HULL: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Adds to ``cost`` what BLOCK boxes cost for an object, within ±LIMIT; infinite where the pair is not allowed."""
    blocks = tl.cdiv(queries, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    query = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image, mask = row // per_image, query < queries
    prediction, at = image * queries + query, cost + row * queries + query
    allowed = mask & (tl.load(usable + prediction, mask=mask, other=0) != 0) & (tl.load(valid + row) != 0)
    height, width = tl.load(units + 2 * image), tl.load(units + 2 * image + 1)
    p1, q1, p2, q2 = _corners(boxes + 4 * prediction, allowed)
    t1, u1, t2, u2 = _corners(objects + 4 * row + tl.zeros([BLOCK], tl.int64), allowed)
    own_x, true_x, wide, dx, px, tx, cx, same_x = pair_axis(p1, p2, t1, t2)
    own_y, true_y, high, dy, py, ty, cy, same_y = pair_axis(q1, q2, u1, u2)
    common, whole = pair_whole(px, tx, cx, py, ty, cy)
    apart = 1.0 - pair_iou(common, whole, same_x & same_y)
    if HULL:
        enclosed = (tl.minimum(wide, high) > 0) & ~(same_x & same_y)
        apart += tl.where(enclosed, tl.maximum(1.0 - whole, 0.0), 0.0)
    across = tl.div_rn(tl.abs(dx) + tl.abs(own_x - true_x), width)
    along = tl.div_rn(tl.abs(dy) + tl.abs(own_y - true_y), height)
    of_box = l1_weight * (across + along) + iou_weight * (apart + (_turned(own_x, wide) + _turned(own_y, high)))
    total = tl.load(at, mask=allowed, other=0.0) + of_box
    tl.store(at, tl.where(allowed, clamped(total, LIMIT), float("inf")), mask=mask)


def match(match: PairCostMatch) -> tuple[Tensor]:
    """The costs, in the memory of those of the classes; see :class:`detloss.kernels.matches.PairCostMatch`."""
    cost = match.cost.contiguous()
    images, objects, queries = cost.shape
    given = (x.contiguous() for x in (match.boxes, match.objects, match.units, match.usable, match.valid))
    grid = (images * objects * triton.cdiv(queries, BLOCK_SIZE),)
    if cost.numel():
        add_box_costs[grid](
            *given, cost, objects, queries, match.l1_weight, match.iou_weight, HULL=match.iou == "giou", LIMIT=match.limit,
            BLOCK=BLOCK_SIZE, **EXACT,
        )  # fmt: skip
    return (cost,)
