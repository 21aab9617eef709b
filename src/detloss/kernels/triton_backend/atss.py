"""ATSS on CUDA: the nearest anchors of every object, who claims which, and who gets them; see ``ATSSMatch``."""

from __future__ import annotations

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.match_checks import refuses_match
from detloss.kernels.matches import ATSSMatch
from detloss.kernels.triton_backend.exact import EXACT, PAIR_LIMIT, clamped, pair_axis, pair_iou, pair_whole

__all__ = ["OPS", "match", "refuses"]

OPS = frozenset({ATSSMatch.op})
ANCHORS = 1024  # looked through at once
UNPACKED = 1024  # anchors of a program that unpacks
MOST_OF_LEVEL = 64  # candidates; they are found one by one
PLACE_BYTES = 4  # of a candidate between the kernels
FARTHEST = tl.constexpr(2**63 - 1)
NUMBER = tl.constexpr(2**32 - 1)
LAST_OBJECT = tl.constexpr(2**31 - 1)
VARYING = ["objects", "first_object", "group", "first", "count", "k", "first_place", "candidates"]  # from call to call
NOT_A_NUMBER = tl.constexpr(0x7FC00000)


@triton.jit
def _centres(boxes: tl.tensor, at: tl.tensor, counts: tl.tensor) -> tl.tensor:
    """x and y of the centres of boxes ``[n, 4]``; infinite for what does not count or is not a number."""
    x1 = tl.load(boxes + 4 * at, mask=counts, other=float("inf"))
    y1 = tl.load(boxes + 4 * at + 1, mask=counts, other=float("inf"))
    x2 = tl.load(boxes + 4 * at + 2, mask=counts, other=float("inf"))
    y2 = tl.load(boxes + 4 * at + 3, mask=counts, other=float("inf"))
    x, y = (x1 + x2) * 0.5, (y1 + y2) * 0.5
    return tl.where(x == x, x, float("inf")), tl.where(y == y, y, float("inf"))


@triton.jit(do_not_specialize=VARYING)
def atss_nearest(
    boxes: tl.tensor, valid: tl.tensor, truth: tl.tensor, present: tl.tensor, places: tl.tensor, priors: tl.tensor,
    objects: tl.tensor, first_object: tl.tensor, group: tl.tensor, box_step: tl.tensor, first: tl.tensor, count: tl.tensor,
    k: tl.tensor, first_place: tl.tensor, candidates: tl.tensor, ANCHORS: tl.constexpr, KEPT: tl.constexpr,
) -> None:  # fmt: skip
    """``places [B, group, candidates]``: numbers of the ``k`` of ``count`` anchors of a level nearest to each object, in order.

    A key holds the bits of the squared distance, which are in the order of the values, above the number of the anchor, so
    that no two are equal. The lanes of ``kept`` beyond ``k`` hold a key that none replaces.
    """
    row = tl.program_id(0).to(tl.int64)
    image = row // group
    own = image * objects + first_object + row % group
    if tl.load(present + own) != 0:
        x = (tl.load(truth + 4 * own) + tl.load(truth + 4 * own + 2)) * 0.5
        y = (tl.load(truth + 4 * own + 1) + tl.load(truth + 4 * own + 3)) * 0.5
        lane = tl.arange(0, KEPT)
        kept = tl.where(lane < k, FARTHEST - lane.to(tl.int64), -1)
        worst = tl.max(kept, 0)
        for start in range(0, count, ANCHORS):
            step = start + tl.arange(0, ANCHORS)
            place, inside = first + step, step < count
            counts = inside
            if valid is not None:
                counts = counts & (tl.load(valid + image * priors + place, mask=inside, other=0) != 0)
            px, py = _centres(boxes, image * box_step + place, counts)
            dx, dy = px - x, py - y
            distance = dx * dx + dy * dy
            bits = tl.where(distance == distance, distance.to(tl.int32, bitcast=True), NOT_A_NUMBER)
            key = tl.where(inside, (bits.to(tl.int64) << 32) | place, FARTHEST)
            least = tl.min(key, 0)
            while least < worst:
                kept = tl.where(kept == worst, least, kept)
                worst = tl.max(kept, 0)
                key = tl.where(key == least, FARTHEST, key)
                least = tl.min(key, 0)
        kept = tl.where(lane < k, kept, FARTHEST)
        for nth in range(0, k):
            least = tl.min(kept, 0)
            tl.store(places + row * candidates + first_place + nth, (least & NUMBER).to(tl.int32))
            kept = tl.where(kept == least, FARTHEST, kept)


@triton.jit
def _fold_order(count: tl.tensor, DEPTH: tl.constexpr) -> tl.tensor:
    """Which of ``count`` numbers each of 2^DEPTH lanes holds, −1: 0, so that adding neighbours adds halves to halves.

    Halves added to halves leave ⌈n/2⌉ of n numbers: number i and ⌊n/2⌋ + i become number i, and an odd last one stays the last.
    Read backwards, from the sum: number i of a pair of neighbours comes from these two.
    """
    lane = tl.arange(0, 2**DEPTH)
    number = tl.zeros([2**DEPTH], tl.int32)
    for level in tl.static_range(DEPTH - 1, -1, -1):
        half = ((count + (2**level - 1)) >> level) // 2
        second, alone = (lane >> level) & 1, ((count + (2**level - 1)) >> level) % 2
        paired = tl.where(number < half, number + second * half, -1)
        single = tl.where((number == half) & (alone == 1) & (second == 0), 2 * half, paired)
        number = tl.where(number >= 0, single, -1)
    return number


@triton.jit
def _fold_sum(x: tl.tensor, DEPTH: tl.constexpr) -> tl.tensor:
    """Sum of 2^DEPTH numbers, neighbours added to neighbours."""
    for level in tl.static_range(DEPTH - 1, 0, -1):
        a, b = tl.split(tl.reshape(x, [2**level, 2]))
        x = a + b
    return tl.sum(x, 0)


@triton.jit
def _threshold(iou: tl.tensor, usable: tl.tensor, DEPTH: tl.constexpr) -> tl.tensor:
    """Mean plus unbiased deviation of the usable ones, in the order of :func:`_fold_order`."""
    number = tl.sum(usable.to(tl.int32), 0).to(tl.float32)
    values = tl.where(usable, iou, 0.0)
    mean, top = tl.div_rn(_fold_sum(values, DEPTH), tl.maximum(number, 1.0)), tl.max(values, 0)
    mean = tl.where(mean > top, top, mean)
    apart = tl.where(usable, iou - mean, 0.0)
    return mean + tl.sqrt_rn(tl.div_rn(_fold_sum(apart * apart, DEPTH), tl.maximum(number - 1.0, 1.0)))


@triton.jit(do_not_specialize=["objects", "first_object", "group", "candidates"])
def atss_claim(
    boxes: tl.tensor, valid: tl.tensor, truth: tl.tensor, present: tl.tensor, places: tl.tensor, claims: tl.tensor,
    priors: tl.tensor, objects: tl.tensor, first_object: tl.tensor, group: tl.tensor, box_step: tl.tensor,
    candidates: tl.tensor, margin: tl.tensor, DEPTH: tl.constexpr,
) -> None:  # fmt: skip
    """The largest claim on every anchor, ``claims [B, P]``: bits of the IoU above, below a number larger for earlier objects."""
    row = tl.program_id(0).to(tl.int64)
    image, object_number = row // group, first_object + row % group
    own = image * objects + object_number
    if tl.load(present + own) != 0:
        lane = _fold_order(candidates, DEPTH)
        there = lane >= 0
        place = tl.load(places + row * candidates + lane, mask=there, other=0)
        usable = there
        if valid is not None:
            usable = usable & (tl.load(valid + image * priors + place, mask=there, other=0) != 0)
        at = boxes + 4 * (image * box_step + place)
        x1, y1 = tl.load(at, mask=there, other=0.0), tl.load(at + 1, mask=there, other=0.0)
        x2, y2 = tl.load(at + 2, mask=there, other=0.0), tl.load(at + 3, mask=there, other=0.0)
        left, top, right, bottom = (
            tl.load(truth + 4 * own), tl.load(truth + 4 * own + 1), tl.load(truth + 4 * own + 2), tl.load(truth + 4 * own + 3),
        )  # fmt: skip
        iou = _iou(x1, y1, x2, y2, left, top, right, bottom)
        x, y = (x1 + x2) * 0.5, (y1 + y2) * 0.5
        inside = (x - left > margin) & (right - x > margin) & (y - top > margin) & (bottom - y > margin)
        allowed = usable & inside & (iou >= _threshold(iou, usable, DEPTH))
        bits = tl.where(iou > 0, iou, 0.0).to(tl.int32, bitcast=True).to(tl.int64)
        tl.atomic_max(claims + image * priors + place, (bits << 32) | (LAST_OBJECT - object_number), mask=allowed, sem="relaxed")


@triton.jit
def _iou(
    x1: tl.tensor, y1: tl.tensor, x2: tl.tensor, y2: tl.tensor,
    left: tl.tensor, top: tl.tensor, right: tl.tensor, bottom: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """IoU of boxes with an object; NaN where a coordinate is, which minimum and maximum drop on some devices."""
    x1, y1, x2, y2 = clamped(x1, PAIR_LIMIT), clamped(y1, PAIR_LIMIT), clamped(x2, PAIR_LIMIT), clamped(y2, PAIR_LIMIT)
    left, top = clamped(left, PAIR_LIMIT), clamped(top, PAIR_LIMIT)
    right, bottom = clamped(right, PAIR_LIMIT), clamped(bottom, PAIR_LIMIT)
    _, _, _, _, px, tx, cx, same_x = pair_axis(x1, x2, left, right)
    _, _, _, _, py, ty, cy, same_y = pair_axis(y1, y2, top, bottom)
    common, whole = pair_whole(px, tx, cx, py, ty, cy)
    lost = ((x1 + x2 + y1 + y2) + (left + right + top + bottom)) * 0.0
    return pair_iou(common, whole, same_x & same_y) + lost


@triton.jit
def atss_settle(claims: tl.tensor, index: tl.tensor, quality: tl.tensor, n: tl.tensor, BLOCK: tl.constexpr) -> None:
    """From the largest claims to the objects and the IoUs of n anchors; −1 and 0 where there is no claim."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    claim = tl.load(claims + at, mask=at < n, other=-1)
    tl.store(index + at, tl.where(claim >= 0, LAST_OBJECT - (claim & NUMBER), -1), mask=at < n)
    iou = (claim >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(quality + at, tl.where(claim >= 0, iou, 0.0), mask=at < n)


def refuses(match: ATSSMatch) -> str | None:
    """See :func:`refuses_match`; a level with more candidates than are found one by one in reasonable time."""
    return refuses_match(match, MOST_OF_LEVEL)


def match(match: ATSSMatch) -> tuple[Tensor, Tensor]:
    """Index and quality ``[B, P]``; objects go through in parts whose candidates take the memory that is allowed."""
    (images, objects), priors = match.present.shape, match.boxes.shape[-2]
    boxes, truth, present = (x.contiguous() for x in (match.boxes, match.objects, match.present))
    valid = None if match.valid is None else match.valid.contiguous()
    claims = torch.full((images, priors), -1, dtype=torch.long, device=boxes.device)
    index = torch.empty_like(claims)
    quality = torch.empty(images, priors, dtype=torch.float32, device=boxes.device)
    found = [min(match.topk, count) for count in match.counts]
    candidates = sum(found)
    most = max(1, min(objects, match.memory // max(1, images * candidates * PLACE_BYTES)))
    places = torch.empty(images * most * candidates, dtype=torch.int32, device=boxes.device)
    depth = max(1, (candidates - 1).bit_length())
    given, box_step = (boxes, valid, truth, present, places), priors if boxes.ndim == 3 else 0
    for begin in range(0, objects, most):
        group = min(most, objects - begin)
        grid, part = (images * group,), (priors, objects, begin, group, box_step)
        for count, k, stop, last in zip(match.counts, found, accumulate(match.counts), accumulate(found), strict=True):
            if k:
                level = stop - count, count, k, last - k, candidates
                atss_nearest[grid](*given, *part, *level, ANCHORS, triton.next_power_of_2(k), **EXACT)
        atss_claim[grid](*given, claims, *part, candidates, match.margin, depth, **EXACT)
    atss_settle[(triton.cdiv(claims.numel(), UNPACKED),)](claims, index, quality, claims.numel(), UNPACKED, **EXACT)
    return index, quality
