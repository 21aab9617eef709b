"""Who gets what by task alignment: the best pairs of each object, what they claim, and the qualities.

A pair of metric m > 0 and prior p has the key (bits of m) · 2^32 + 2^31 − 1 − p: the order of keys is that of metrics, the first
prior before its equals, and no two keys of an object are equal. A pair is chosen when its key is at least the bar of its object.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["choose_best", "claim_priors", "settle_priors", "write_quality"]

LAST_PRIOR = tl.constexpr(2**31 - 1)
NO_KEY = tl.constexpr(-(2**62))  # below those of empty places
TOP_KEY = tl.constexpr(2**62)
PER_BATCH = ("first", "last", "per_image")  # not worth a compilation for each kind of number


@triton.jit
def _alignment(at: tl.tensor, size: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Metric, 0 where nothing overlaps, and overlap of the pairs at ``at``."""
    overlap = tl.load(at + size, mask=mask, other=0.0)
    some = overlap > 0
    score, power = tl.load(at, mask=some, other=0.0), tl.load(at + 2 * size, mask=some, other=0.0)
    return tl.where(some, score * power, 0.0), overlap


@triton.jit
def _key(metric: tl.tensor, prior: tl.tensor) -> tl.tensor:
    """Keys of pairs, ``NO_KEY`` without a metric above 0."""
    key = (metric.to(tl.int32, bitcast=True).to(tl.int64) << 32) - prior + LAST_PRIOR
    return tl.where(metric > 0, key, NO_KEY)


@triton.jit
def choose_best(
    columns: tl.tensor, bar: tl.tensor, padded: tl.tensor, size: tl.tensor, topk: tl.tensor,
    PLACES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """``bar`` of an object: the least of its ``topk`` highest keys; negative where there are fewer."""
    local, size, place = tl.program_id(0).to(tl.int64), size.to(tl.int64), tl.arange(0, PLACES).to(tl.int64)
    best = tl.where(place < topk, place - PLACES, TOP_KEY)  # empty places differ, so that one is filled at a time
    least = tl.min(best, 0)
    for start in range(0, padded, BLOCK):
        prior = start + tl.arange(0, BLOCK).to(tl.int64)
        metric, _ = _alignment(columns + local * padded + prior, size, prior < padded)
        key = _key(metric, prior)
        highest = tl.max(key, 0)
        while highest > least:
            best = tl.where(best == least, highest, best)
            least = tl.min(best, 0)
            key = tl.where(key == highest, NO_KEY, key)
            highest = tl.max(key, 0)
    tl.store(bar + local, least)


@triton.jit(do_not_specialize=PER_BATCH)
def claim_priors(
    columns: tl.tensor, bars: tl.tensor, whole: tl.tensor, real: tl.tensor, first: tl.tensor, last: tl.tensor,
    per_image: tl.tensor, priors: tl.tensor, padded: tl.tensor, size: tl.tensor, ROWS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Takes the objects ``first`` … ``last`` − 1 into account, for an image and BLOCK of its priors, ROWS objects at a time.

    ``whole [B · P, 3]``: number of objects that chose the prior, the last of them, and its rival: the one of the largest overlap
    of all that contain the prior, the first among equals. ``real [B · P, 4]``: overlap and metric of the last one, then of the
    rival.
    """
    blocks, size = tl.cdiv(priors, BLOCK), size.to(tl.int64)
    image = first // per_image + (tl.program_id(0) // blocks).to(tl.int64)
    begin, end = tl.maximum(first, image * per_image), tl.minimum(last, (image + 1) * per_image)
    prior = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    counts = prior < priors
    begun = counts & (begin > image * per_image)
    whole, real = whole + 3 * (image * priors + prior), real + 4 * (image * priors + prior)
    number, owner, rival = _kept(whole, begun, 0), _kept(whole + 1, begun, -1), _kept(whole + 2, begun, -1)
    overlap, metric = _kept(real, begun, 0.0), _kept(real + 1, begun, 0.0)
    most, rival_metric = _kept(real + 2, begun, 0.0), _kept(real + 3, begun, 0.0)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        some = (row < end)[:, None] & counts[None, :]
        metrics, overlaps = _alignment(columns + (row - first)[:, None] * padded + prior[None, :], size, some)
        bar = tl.load(bars + (row - first), mask=row < end, other=TOP_KEY)
        own = (row - image * per_image).to(tl.int32)[:, None]
        chosen = (metrics > 0) & (_key(metrics, prior[None, :]) >= bar[:, None])
        number += tl.sum(chosen.to(tl.int32), 0)
        chooser = tl.max(tl.where(chosen, own, -1), 0)
        by_chooser = own == chooser[None, :]
        owner = tl.where(chooser >= 0, chooser, owner)
        overlap = tl.where(chooser >= 0, tl.max(tl.where(by_chooser, overlaps, 0.0), 0), overlap)
        metric = tl.where(chooser >= 0, tl.max(tl.where(by_chooser, metrics, 0.0), 0), metric)
        largest = tl.max(tl.where(overlaps > 0, overlaps, 0.0), 0)
        best = tl.min(tl.where(overlaps == largest[None, :], own, LAST_PRIOR), 0)
        higher = largest > most
        most, rival = tl.where(higher, largest, most), tl.where(higher, best, rival)
        rival_metric = tl.where(higher, tl.max(tl.where(own == best[None, :], metrics, 0.0), 0), rival_metric)
    tl.debug_barrier()  # several threads may hold a prior: all have read what is written over
    tl.store(whole, number, mask=counts)
    tl.store(whole + 1, owner, mask=counts)
    tl.store(whole + 2, rival, mask=counts)
    tl.store(real, overlap, mask=counts)
    tl.store(real + 1, metric, mask=counts)
    tl.store(real + 2, most, mask=counts)
    tl.store(real + 3, rival_metric, mask=counts)


@triton.jit
def _kept(at: tl.tensor, begun: tl.tensor, fresh: tl.constexpr) -> tl.tensor:
    """What earlier parts have found, ``fresh`` where there were none."""
    return tl.load(at, mask=begun, other=fresh)


@triton.jit(do_not_specialize=PER_BATCH)
def settle_priors(
    whole: tl.tensor, real: tl.tensor, largest: tl.tensor, index: tl.tensor, per_image: tl.tensor, priors: tl.tensor,
    count: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """``index`` of BLOCK priors, their metrics in place of those of the last choosers, and ``largest [R, 2]``.

    A prior that several objects chose goes to the rival. ``largest`` holds the bits of the largest overlap and metric of an
    object: those of positive numbers are in the order of the numbers.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    conflict = tl.load(whole + 3 * place, mask=mask, other=0) > 1
    owner = tl.load(whole + 3 * place + tl.where(conflict, 2, 1), mask=mask, other=-1)
    source = real + 4 * place + tl.where(conflict, 2, 0)
    overlap, metric = tl.load(source, mask=mask, other=0.0), tl.load(source + 1, mask=mask, other=0.0)
    tl.debug_barrier()  # as above
    tl.store(index + place, owner.to(tl.int64), mask=mask)
    tl.store(real + 4 * place + 1, metric, mask=mask)
    most = largest + 2 * (place // priors * per_image + owner)
    taken = mask & (owner >= 0)
    tl.atomic_max(most, overlap.to(tl.int32, bitcast=True), mask=taken)
    tl.atomic_max(most + 1, metric.to(tl.int32, bitcast=True), mask=taken)


@triton.jit(do_not_specialize=PER_BATCH)
def write_quality(
    index: tl.tensor, real: tl.tensor, largest: tl.tensor, quality: tl.tensor, per_image: tl.tensor, priors: tl.tensor,
    count: tl.tensor, eps: tl.tensor, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """``quality`` = metric · (largest overlap) / (largest metric + eps) of the object, 0 without one."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    owner = tl.load(index + place, mask=mask, other=-1)
    taken = owner >= 0
    most = largest + 2 * (place // priors * per_image + owner)
    overlap = tl.load(most, mask=taken, other=0).to(tl.float32, bitcast=True)
    metric = tl.load(most + 1, mask=taken, other=0).to(tl.float32, bitcast=True)
    own = tl.load(real + 4 * place + 1, mask=taken, other=0.0)
    tl.store(quality + place, tl.where(taken, tl.div_rn(own * overlap, metric + eps), 0.0), mask=mask)
