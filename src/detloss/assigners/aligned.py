"""Task alignment: the pairs of an object and a prior inside it, their metric, the best of each object, and who gets what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from detloss.assigners.base import chunks
from detloss.assigners.claims import Claims
from detloss.checks import upcast
from detloss.functional.iou_costs import aspect_cost, centre_distance
from detloss.geometry.iou import overlap
from detloss.kernels.matches import AlignedMatch
from detloss.kernels.selection import match_backend

__all__ = ["OVERLAPS", "AlignedRule", "OverlapKind", "Pairs", "Problem", "inside_pairs", "match_aligned"]

OverlapKind: TypeAlias = Literal["ciou", "iou"]
OVERLAPS = ("ciou", "iou")

SIDE_BY_SIDE = 16  # priors that are tried together before one by one
IN_CACHE = 2**15  # pairs whose temporaries stay in the cache of a core
LANES = 64  # a multiple of the elements of a vector register, whatever the machine

# Bytes alive: per pair while the best of each object are chosen, per pair while its overlap is computed, per block tried.
PAIR_BYTES, OVERLAP_BYTES, BLOCK_TEST_BYTES = 180, 320, 40


class AlignedRule(NamedTuple):
    """The options of the assigner that the pairs depend on; see :class:`detloss.assigners.TaskAlignedAssigner`."""

    topk: int
    alpha: float
    beta: float
    iou: str
    eps: float
    memory_budget: int


class Pairs(NamedTuple):
    """N pairs in order of object and, within an object, of prior.

    Attributes:
        row: ``[N]`` number of the object among all of the batch, image · G + object.
        prior: ``[N]`` number of the prior among those of all images, image · P + prior.
        metric: ``[N]`` alignment, 0 where there is none or the prediction is not finite.
        overlap: ``[N]`` in [0, 1].
        chosen: ``[N]`` bool: the pair is among the topk of its object.
    """

    row: Tensor
    prior: Tensor
    metric: Tensor
    overlap: Tensor
    chosen: Tensor


class Problem(NamedTuple):
    """B images with G objects and P priors each; objects are numbered through the batch, R = B · G of them.

    Attributes:
        xy: ``[P, 2]`` or ``[B, P, 2]`` centres of priors.
        valid: ``[B, P]`` bool: the prior counts; where its predicted box is not finite it matches nothing all the same.
        region: ``[R, 4]`` corners of what a prior of the object has to lie in; NaN for padding.
        objects: ``[R, 4]`` corners.
        labels: ``[R]`` classes.
        scores: ``[B, P, C]`` logits.
        boxes: ``[B, P, 4]`` predicted corners.
    """

    xy: Tensor
    valid: Tensor
    region: Tensor
    objects: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor

    def image(self) -> Tensor:
        """``[R]`` image of every object."""
        images = torch.arange(len(self.valid), device=self.valid.device)
        return images[:, None].expand(-1, len(self.region) // max(1, len(images))).flatten()

    def of_image(self, image: int) -> Problem:
        """The problem of one image alone."""
        objects, one = len(self.region) // len(self.valid), slice(image, image + 1)
        rows = slice(image * objects, (image + 1) * objects)
        xy = self.xy[one] if self.xy.ndim == 3 else self.xy
        own = self.region[rows], self.objects[rows], self.labels[rows]
        return Problem(xy, self.valid[one], *own, self.scores[one], self.boxes[one])

    def pairs(self, rule: AlignedRule) -> Iterator[Pairs]:
        """All pairs of an object and a prior inside it, in parts that hold whole objects and fit the memory budget."""
        boxes, objects = (x.reshape(-1, 4).T.contiguous() for x in (upcast(self.boxes), self.objects))
        image_of, usable = self.image(), (self.valid & self.boxes.isfinite().all(-1)).flatten()
        for part in inside_pairs(self, rule.memory_budget):
            row = part.row + part.first
            image = image_of.index_select(0, row)
            metric, shared = _in_blocks(self, rule, usable, boxes, objects, row, image, part.position)
            prior = image * self.valid.shape[1] + part.position
            yield Pairs(row, prior, metric, shared, _best_of_each(metric, part, rule.topk))


class _Inside(NamedTuple):
    """Pairs of the objects ``first … first + rows``: object (counted from ``first``) and prior, ``longest`` or fewer of one."""

    row: Tensor
    position: Tensor
    first: int
    rows: int
    longest: int


def inside_pairs(problem: Problem, memory_budget: int) -> Iterator[_Inside]:
    """The pairs whose prior lies strictly inside the region of the object, in order of object and prior.

    Blocks of neighbouring priors are tried first, by the box around them, then the priors of those that touch the region.
    How many there are depends on the values, so here, and nowhere else, the host waits for the device: three times for
    usual batches and the default budget, and twice more for every further part.
    """
    rows, priors = len(problem.region), problem.valid.shape[1]
    if not rows or not priors:
        return
    low, high, points = _blocks(problem.xy)
    block_of_image = 0 if problem.xy.ndim == 2 else low.shape[-1]
    image = problem.image()
    limit = memory_budget // 2 // (SIDE_BY_SIDE * PAIR_BYTES)
    for part in chunks(rows, low.shape[-1] * BLOCK_TEST_BYTES, memory_budget // 4):
        region = problem.region[part].T.contiguous()
        which = image[part] if block_of_image else slice(0, 1)
        touched = _inside(low[:, which], high[:, which], region[..., None])
        counts: list[int] = touched.sum(1).tolist()
        row, block = touched.nonzero().unbind(1)
        end = [0, *accumulate(counts)]
        for group in _groups(counts, limit):
            own = slice(end[group.start], end[group.stop])
            near = points.index_select(1, block[own] + image[part].index_select(0, row[own]) * block_of_image)
            hit, lane = _inside(near, near, region.index_select(1, row[own])[..., None]).nonzero().unbind(1)
            if len(hit):
                position = block[own].index_select(0, hit) * SIDE_BY_SIDE + lane
                longest = min(priors, max(counts[group]) * SIDE_BY_SIDE)
                first, size = part.start + group.start, group.stop - group.start
                yield _Inside(row[own].index_select(0, hit) - group.start, position, first, size, longest)


def _blocks(xy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper corners ``[2, I, n]`` of blocks of priors, and the priors in them ``[2, I · n, SIDE_BY_SIDE]``.

    I is 1 for priors ``[P, 2]`` and B for ``[B, P, 2]``. What fills up the last block is NaN and so inside nothing.
    """
    axes = xy.reshape(-1, *xy.shape[-2:]).movedim(-1, 0)
    size = -xy.shape[-2] % SIDE_BY_SIDE
    low, high, points = (
        torch.cat((axes, axes.new_full((*axes.shape[:2], size), fill)), dim=-1).unflatten(-1, (-1, SIDE_BY_SIDE))
        for fill in (torch.inf, -torch.inf, torch.nan)
    )
    return low.amin(-1), high.amax(-1), points.flatten(1, 2)


def _inside(low: Tensor, high: Tensor, region: Tensor) -> Tensor:
    """Boxes from ``low`` to ``high``, (x, y) first, reach into ``region``, (x1, y1, x2, y2) first, further than its sides."""
    found = high[0] > region[0]
    found &= low[0] < region[2]
    found &= high[1] > region[1]
    found &= low[1] < region[3]
    return found


def _groups(counts: list[int], limit: int) -> Iterator[slice]:
    """Slices of the objects, each with at most ``limit`` blocks, the memory to pad them included, or with a single object."""
    start, total, longest = 0, 0, 0
    for stop, count in enumerate(counts):
        total, longest = total + count, max(longest, count)
        if stop > start and total + (stop + 1 - start) * longest // 16 > limit:
            yield slice(start, stop)
            start, total, longest = stop, count, count
    yield slice(start, len(counts))


def _in_blocks(
    problem: Problem,
    rule: AlignedRule,
    usable: Tensor,
    boxes: Tensor,
    objects: Tensor,
    row: Tensor,
    image: Tensor,
    position: Tensor,
) -> tuple[Tensor, Tensor]:
    """Metric and overlap ``[N]`` of pairs, with ``usable [B · P]``, ``boxes [4, B · P]`` and ``objects [4, R]``, by blocks.

    The length of every block is a multiple of that of vector registers: ATen rounds some functions otherwise in the
    elements that are left over, and the value of a pair must not depend on its place.
    """
    count, priors = len(row), problem.valid.shape[1]
    row, image, position = (pad(index, (0, -count % LANES)) for index in (row, image, position))
    step = max(LANES, rule.memory_budget // 4 // OVERLAP_BYTES // LANES * LANES)
    step = min(step, IN_CACHE) if row.device.type == "cpu" else step
    parts = []
    for start in range(0, len(row), step):
        own, at, where = (index[start : start + step] for index in (row, image, position))
        prior = at * priors + where
        shared = _overlap(boxes.index_select(1, prior).T, objects.index_select(1, own).T, rule.iou)
        logit = problem.scores[at, where, problem.labels.index_select(0, own)].to(shared.dtype)
        shared = torch.where(logit.isfinite() & usable.index_select(0, prior), shared, 0.0)
        metric = torch.where(shared > 0, logit.sigmoid().pow(rule.alpha) * shared.pow(rule.beta), 0.0)
        parts.append((metric, shared))
    metric, shared = (torch.cat(part)[:count] for part in zip(*parts, strict=True))
    return metric, shared


def _overlap(boxes: Tensor, objects: Tensor, kind: str) -> Tensor:
    """``[N]`` IoU, or CIoU = IoU − ρ²/c² − αv without what is below 0, of aligned pairs."""
    pair = overlap(boxes, objects)
    return pair.iou if kind == "iou" else (pair.iou - centre_distance(pair) - aspect_cost(pair, 1e-6)).clamp(min=0)


def _best_of_each(metric: Tensor, part: _Inside, topk: int) -> Tensor:
    """``[N]`` bool: the pair is among the ``topk`` of its object with the highest metric above 0, the first ones among equals."""
    if part.longest <= topk:
        return metric > 0
    place_of_row = torch.arange(part.rows, device=metric.device) * part.longest
    start = torch.searchsorted(part.row, torch.arange(part.rows, device=metric.device))
    place = torch.arange(len(metric), device=metric.device) + (place_of_row - start).index_select(0, part.row)
    table = metric.new_zeros(part.rows * part.longest).scatter_(0, place, metric).view(part.rows, part.longest)
    highest = table.topk(topk, dim=1).values
    least = highest[:, -1]
    room = topk - (highest > least[:, None]).sum(1)
    # Which of several equal ones topk takes is not defined: of those at the limit the first ones fill the room that is left.
    bar = least.index_select(0, part.row)
    equal = (metric == bar) & (metric > 0)
    rank = pad(equal.cumsum(0), (1, 0))
    last = rank.index_select(0, start) + room
    return (metric > bar) | (equal & (rank[1:] <= last.index_select(0, part.row)))


def match_aligned(problem: Problem, rule: AlignedRule) -> tuple[Tensor, Tensor]:
    """Index of the object in its image, −1 for none, and quality, ``[B, P]`` each."""
    match = _match(problem, rule)
    backend = match_backend(match)
    if backend is None:
        return _by_parts(problem, rule)
    index, quality = backend.match(match)
    return index, quality


def _match(problem: Problem, rule: AlignedRule) -> AlignedMatch:
    """The problem for a kernel."""
    xy, valid, region, objects, labels, scores, boxes = problem
    options = rule.topk, rule.alpha, rule.beta, rule.iou, rule.eps, rule.memory_budget // 2
    return AlignedMatch(upcast(boxes), scores, xy, valid, region, objects, labels, *options)


def _by_parts(problem: Problem, rule: AlignedRule) -> tuple[Tensor, Tensor]:
    """The match by operations of torch: what every kernel has to find."""
    images, priors = problem.valid.shape
    objects = len(problem.region) // max(1, images)
    like, count = upcast(problem.boxes), images * priors
    # What chose a prior, as long as that is one object; the last entry takes the pairs that are not chosen.
    number = torch.zeros(count + 1, dtype=torch.int32, device=like.device)
    row, metric, shared = number.long() - 1, like.new_zeros(count + 1), like.new_zeros(count + 1)
    containing = Claims(count, like, metrics=True)
    for pairs in problem.pairs(rule):
        containing.add(pairs.prior, pairs.row, pairs.overlap, torch.ones_like(pairs.chosen), pairs.metric)
        taken = torch.where(pairs.chosen, pairs.prior, count)
        number.index_add_(0, taken, pairs.chosen.int())
        for kept, value in ((row, pairs.row), (metric, pairs.metric), (shared, pairs.overlap)):
            kept.scatter_(0, taken, value)
    conflict = number[:count] > 1
    row = torch.where(conflict, containing.owner, row[:count])
    metric = torch.where(conflict, containing.metric, metric[:count])
    shared = torch.where(conflict, containing.overlap, shared[:count])
    slot = torch.where(row >= 0, row, len(problem.region))

    def largest(values: Tensor) -> Tensor:
        """The largest value of all priors of the same object."""
        return like.new_zeros(len(problem.region) + 1).scatter_reduce(0, slot, values, "amax").index_select(0, slot)

    quality = torch.where(row >= 0, metric * largest(shared) / (largest(metric) + rule.eps), 0.0)
    index = torch.where(row >= 0, row % max(1, objects), -1)
    return index.view(images, priors), quality.view(images, priors)
