"""The IoU rule of anchors and proposals on CUDA: a pass for the best IoUs, one for who claims what; see ``MaxIoUMatch``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detloss.kernels.match_checks import refuses_match as refuses
from detloss.kernels.matches import MaxIoUMatch
from detloss.kernels.triton_backend.exact import EXACT, SMALLEST, clamped, is_finite

__all__ = ["OPS", "match", "refuses"]

OPS = frozenset({MaxIoUMatch.op})
ANCHORS, OBJECTS = 128, 8  # of a tile
MOST_PIXELS = tl.constexpr(1e15)  # areas stay finite up to here
NOBODY = tl.constexpr(2**31 - 1)
NOTHING = tl.constexpr(2.0)  # an IoU that nothing has


@triton.jit
def _corners(boxes: tl.tensor, at: tl.tensor, counts: tl.tensor) -> tl.tensor:
    """x1, y1, x2, y2 and area of boxes ``[n, 4]``, all 0 where one does not count or is not finite; which are left."""
    x1 = tl.load(boxes + 4 * at, mask=counts, other=0.0)
    y1 = tl.load(boxes + 4 * at + 1, mask=counts, other=0.0)
    x2 = tl.load(boxes + 4 * at + 2, mask=counts, other=0.0)
    y2 = tl.load(boxes + 4 * at + 3, mask=counts, other=0.0)
    usable = counts & is_finite(x1) & is_finite(y1) & is_finite(x2) & is_finite(y2)
    x1 = tl.where(usable, clamped(x1, MOST_PIXELS), 0.0)
    y1 = tl.where(usable, clamped(y1, MOST_PIXELS), 0.0)
    x2 = tl.where(usable, clamped(x2, MOST_PIXELS), 0.0)
    y2 = tl.where(usable, clamped(y2, MOST_PIXELS), 0.0)
    return x1, y1, x2, y2, (x2 - x1) * (y2 - y1), usable


@triton.jit
def _anchors_of(
    boxes: tl.tensor, valid: tl.tensor, image: tl.tensor, box_step: tl.tensor, valid_step: tl.tensor, place: tl.tensor,
    inside: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """What :func:`_corners` gives of the anchors at ``place`` of an image; ``valid`` may be ``None``."""
    counts = inside
    if valid is not None:
        counts = counts & (tl.load(valid + image * valid_step + place, mask=inside, other=0) != 0)
    return _corners(boxes, image * box_step + place, counts)


@triton.jit
def _tile_iou(
    truth: tl.tensor, present: tl.tensor, row: tl.tensor, inside: tl.tensor,
    x1: tl.tensor, y1: tl.tensor, x2: tl.tensor, y2: tl.tensor, area: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """``[objects, anchors]`` IoU of the objects in some rows with anchors; 0 for boxes without area."""
    counts = inside & (tl.load(present + row, mask=inside, other=0) != 0)
    left, top, right, bottom, own_area, _ = _corners(truth, row, counts)
    width = tl.minimum(right[:, None], x2[None, :]) - tl.maximum(left[:, None], x1[None, :])
    height = tl.minimum(bottom[:, None], y2[None, :]) - tl.maximum(top[:, None], y1[None, :])
    common = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    return tl.div_rn(common, tl.maximum((own_area[:, None] + area[None, :]) - common, SMALLEST))


@triton.jit(do_not_specialize=["objects"])
def max_iou_best(
    boxes: tl.tensor, valid: tl.tensor, truth: tl.tensor, present: tl.tensor, whose: tl.tensor, quality: tl.tensor,
    near: tl.tensor, priors: tl.tensor, objects: tl.tensor, box_step: tl.tensor, valid_step: tl.tensor,
    ANCHORS: tl.constexpr, OBJECTS: tl.constexpr,
) -> None:  # fmt: skip
    """Of a block of anchors: their largest IoU, whose it is, and the largest of every object, ``near`` or ``None``."""
    image, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    place = block * ANCHORS + tl.arange(0, ANCHORS)
    inside = place < priors
    x1, y1, x2, y2, area, _ = _anchors_of(boxes, valid, image, box_step, valid_step, place, inside)
    top, own = tl.zeros([ANCHORS], tl.float32), tl.zeros([ANCHORS], tl.int32)
    for start in range(0, objects, OBJECTS):
        number = start + tl.arange(0, OBJECTS)
        there = number < objects
        iou = _tile_iou(truth, present, image * objects + number, there, x1, y1, x2, y2, area)
        if near is not None:
            here = near + (image * tl.num_programs(0) + block) * objects
            tl.store(here + number, tl.max(iou, 1), mask=there)
        most = tl.max(iou, 0)
        first = tl.min(tl.where(iou == most[None, :], number[:, None], NOBODY), 0)
        own = tl.where(most > top, first, own)
        top = tl.maximum(most, top)
    tl.store(quality + image * priors + place, top, mask=inside)
    tl.store(whose + image * priors + place, own, mask=inside)


@triton.jit(do_not_specialize=["objects"])
def max_iou_decide(
    boxes: tl.tensor, valid: tl.tensor, truth: tl.tensor, present: tl.tensor, whose: tl.tensor, quality: tl.tensor,
    index: tl.tensor, ignore: tl.tensor, near: tl.tensor, best: tl.tensor, some: tl.tensor, priors: tl.tensor,
    objects: tl.tensor, box_step: tl.tensor, valid_step: tl.tensor, positive: tl.tensor, low: tl.tensor, high: tl.tensor,
    least: tl.tensor, LAST_CLAIMS: tl.constexpr, ANCHORS: tl.constexpr, OBJECTS: tl.constexpr,
) -> None:  # fmt: skip
    """From the best IoUs to the assignment; ``some``: the images whose negatives ``low`` bounds, ``None``: none.

    Without ``near`` no object claims anchors. With it, the last object that claims an anchor is looked for only where the
    best IoU of an object was found.
    """
    image, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    place = block * ANCHORS + tl.arange(0, ANCHORS)
    inside = place < priors
    x1, y1, x2, y2, area, usable = _anchors_of(boxes, valid, image, box_step, valid_step, place, inside)
    last = tl.full([ANCHORS], -1, tl.int32)
    if near is not None:
        here = near + (image * tl.num_programs(0) + block) * objects
        for start in range(0, objects, OBJECTS):
            number = start + tl.arange(0, OBJECTS)
            there = number < objects
            most = tl.load(best + image * objects + number, mask=there, other=0.0)
            wanted = tl.where((most > 0) & (most >= least), most, NOTHING)
            hit = tl.load(here + number, mask=there, other=0.0) == wanted
            if tl.max(hit.to(tl.int32), 0) != 0:
                iou = _tile_iou(truth, present, image * objects + number, there, x1, y1, x2, y2, area)
                claimed = tl.where(iou == wanted[:, None], number[:, None], -1)
                last = tl.maximum(last, tl.max(claimed, 0))
    iou = tl.load(quality + image * priors + place, mask=inside, other=0.0)
    own = tl.load(whose + image * priors + place, mask=inside, other=0)
    found = tl.where(iou >= positive, own, -1)
    found = tl.where(last >= 0, last if LAST_CLAIMS else own, found)
    negative = usable & (iou < high)
    if some is not None:
        negative = negative & ((iou >= low) | (tl.load(some + image) == 0))
    tl.store(index + image * priors + place, found.to(tl.int64), mask=inside)
    tl.store(ignore + image * priors + place, (negative == 0) & (found < 0), mask=inside)


def _step(values: Tensor | None, dimensions: int) -> int:
    """Priors from one image to the next: 0 where all share them."""
    return 0 if values is None or values.ndim < dimensions or len(values) == 1 else values.shape[1]


def match(match: MaxIoUMatch) -> tuple[Tensor, Tensor, Tensor]:
    """Index, quality and ignore ``[B, P]``. Temporaries: the best IoU of every object in every block, 1/32 byte a pair."""
    (images, objects), priors, device = match.present.shape, match.boxes.shape[-2], match.boxes.device
    boxes, truth, present = (x.contiguous() for x in (match.boxes, match.objects, match.present))
    valid = None if match.valid is None else match.valid.contiguous()
    whose = torch.empty(images, priors, dtype=torch.int32, device=device)
    index = torch.empty(images, priors, dtype=torch.long, device=device)
    quality = torch.empty(images, priors, dtype=torch.float32, device=device)
    ignore = torch.empty(images, priors, dtype=torch.bool, device=device)
    grid = triton.cdiv(priors, ANCHORS), images
    near = torch.empty(images, grid[0], objects, dtype=torch.float32, device=device) if match.claims else None
    steps = _step(boxes, 3), _step(valid, 2)
    given, sizes, tile = (boxes, valid, truth, present, whose, quality), (priors, objects, *steps), (ANCHORS, OBJECTS)
    max_iou_best[grid](*given, near, *sizes, *tile, **EXACT)
    low, high = match.negative
    some = present.any(1) if low > 0 else None
    best = None if near is None else near.amax(1)
    max_iou_decide[grid](
        *given, index, ignore, near, best, some, *sizes, match.positive, low, high, match.least, match.last_claims,
        *tile, **EXACT,
    )  # fmt: skip
    return index, quality, ignore
