"""Dynamic k: every object takes as many of its cheapest priors as its best predictions overlap it in sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, Assigner, Priors, centre_in_regions, chunks
from detloss.assigners.predictions import (
    check_predictions,
    finite_predictions,
    fold_sum,
    matched_iou,
    over_classes,
    own_class,
    take,
)
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import shape_of, upcast
from detloss.geometry.iou import iou_of
from detloss.types import Assignment, Target
from detloss.values import value_checks_enabled

__all__ = ["DynamicKAssigner", "Pairs", "Places", "cheapest"]

TEMPORARIES = 24  # numbers per pair that are alive at once


class Places(NamedTuple):
    """Where B images have P priors and G objects.

    Attributes:
        xy: ``[B, P, 2]`` centres of the priors in pixels.
        stride: ``[B, P]`` pixels per cell.
        objects: ``[B, G, 4]`` corners of the objects.
    """

    xy: Tensor
    stride: Tensor
    objects: Tensor

    @classmethod
    def of(cls, priors: Priors, objects: Tensor, xy: Tensor) -> Places:
        """Of the priors, at ``xy`` in the dtype to compute in, and ``objects [B, G, 4]``."""
        images = len(objects)
        stride = priors.stride.to(xy.dtype).expand(images, -1)
        return cls(xy if xy.ndim == 3 else xy.expand(images, -1, -1), stride, objects)

    def offsets(self) -> tuple[Tensor, Tensor]:
        """(dx, dy) ``[B, G, P]`` from the centre of the object to the prior."""
        centre = (self.objects[..., :2] + self.objects[..., 2:]) / 2
        return self.xy[:, None, :, 0] - centre[..., 0, None], self.xy[:, None, :, 1] - centre[..., 1, None]

    def near_centre(self, radius: float) -> Tensor:
        """``[B, G, P]`` bool: along both axes the prior is closer to the centre of the object than ``radius`` strides."""
        dx, dy = self.offsets()
        reach = radius * self.stride.unsqueeze(1)
        return (dx.abs() < reach) & (dy.abs() < reach)

    def inside(self) -> Tensor:
        """``[B, G, P]`` bool: the prior lies strictly inside the box of the object."""
        x, y = self.xy[:, None, :, 0], self.xy[:, None, :, 1]
        x1, y1, x2, y2 = self.objects.unsqueeze(-1).unbind(2)
        return (x > x1) & (x < x2) & (y > y1) & (y < y2)


class Pairs(NamedTuple):
    """All pairs of G objects and P priors of B images, as a cost sees them.

    Attributes:
        places: where they are.
        labels: ``[B, G]`` classes.
        valid: ``[B, G]`` bool: the object counts.
        usable: ``[B, P]`` bool: the prior may be taken.
        boxes: ``[B, P, 4]`` predicted corners.
        objectness: ``[B, P]`` logits, if there are any.
        scores: ``[B, N, C]`` class logits of all priors of the image.
        kept: ``[B, P]`` which of the N priors these P are, in rising order; ``None``: all.
        rest: ``[B, P]`` what all classes cost as negatives.
    """

    places: Places
    labels: Tensor
    valid: Tensor
    usable: Tensor
    boxes: Tensor
    objectness: Tensor | None
    scores: Tensor
    kept: Tensor | None
    rest: Tensor

    def images(self, some: slice) -> Pairs:
        """The pairs of some of the images."""
        parts = (None if x is None else x[some] for x in self[1:])
        return Pairs(Places(*(x[some] for x in self.places)), *parts)  # type: ignore[arg-type]

    def objects(self, some: slice) -> Pairs:
        """The pairs with some of the objects."""
        places = self.places._replace(objects=self.places.objects[:, some])
        return self._replace(places=places, labels=self.labels[:, some], valid=self.valid[:, some])

    def priors(self, kept: Tensor) -> Pairs:
        """The pairs with some of the priors."""
        places = Places(take(self.places.xy, kept), take(self.places.stride, kept), self.places.objects)
        objectness = None if self.objectness is None else take(self.objectness, kept)
        usable, boxes = take(self.usable, kept), take(self.boxes, kept)
        return self._replace(places=places, usable=usable, boxes=boxes, objectness=objectness, kept=kept)

    def own_class(self) -> Tensor:
        """``[B, G, P]`` the logit of the object's class."""
        return own_class(self.scores, self.labels, self.kept)


def cheapest(cost: Tensor, k: Tensor, most: int) -> Tensor:
    """``[..., P]`` bool: the ``k [...]`` cheapest of ``cost [..., P]``, the first ones among equals, none that is infinite.

    Args:
        cost: ``[..., P]``, no NaN.
        k: how many, int64 in 1 … ``most``.
        most: upper bound of ``k``, at most P.
    """
    lowest = cost.topk(most, largest=False).values
    limit = lowest.gather(-1, (k - 1).unsqueeze(-1))
    room = k.unsqueeze(-1) - (lowest < limit).sum(-1, keepdim=True)
    level = (cost == limit) & (limit < torch.inf)
    return (cost < limit) | (level & (level.cumsum(-1, dtype=torch.int32) <= room))


class _Cheapest(NamedTuple):
    """For every prior the cheapest object so far: cost ``[B, P]``, infinite where there is none, and index ``gt``, −1 there."""

    cost: Tensor
    gt: Tensor

    @classmethod
    def none(cls, like: Tensor) -> _Cheapest:
        return cls(torch.full_like(like, torch.inf), torch.full_like(like, -1, dtype=torch.long))

    def or_one_of(self, cost: Tensor, first: int) -> _Cheapest:
        """Compared with objects ``first …`` of cost ``[B, G, P]``; the earlier object stays among equals."""
        low = cost.amin(1)
        number = torch.arange(cost.shape[1], dtype=torch.int32, device=cost.device)[:, None]
        gt = torch.where(cost == low.unsqueeze(1), number, cost.shape[1]).amin(1) + first
        better = low < self.cost
        return _Cheapest(torch.where(better, low, self.cost), torch.where(better, gt.long(), self.gt))


class DynamicKAssigner(Assigner):
    """Base of SimOTA and dynamic soft label assignment, which differ in candidates and cost.

    The pool of an image holds the priors that are a candidate of at least one object, with finite predictions. With the n
    largest IoUs of an object with the boxes of the pool, k = max(⌊Σ IoU⌋, 1), and the object claims the k priors of the
    pool that cost it least. A prior with one claim goes there; one with several goes to the object of the image that it
    costs least. Among equals the first prior and the first object win.

    Objects go through in chunks, each with all priors of some images. Nothing is decided before all have passed, so the
    result does not depend on the chunks. Where values can be read without waiting (on the CPU), the priors outside the
    pool are left out beforehand.

    Args:
        memory_budget: bytes that the temporaries of one chunk may take.
        **count: the option that holds n, by its name.
    """

    needs_predictions: ClassVar[bool] = True

    def __init__(self, memory_budget: int = MEMORY_BUDGET, **count: int) -> None:
        super().__init__(memory_budget)
        ((name, most),) = count.items()
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise ValueError(f"{type(self).__name__}: {name} must be an integer >= 1; got {most!r}")
        self._most = most

    @property
    def _budget(self) -> int:
        """What tensors may take: the allocator keeps about as much again."""
        return self.memory_budget // 2

    def pooled(self, places: Places) -> Tensor:
        """``[B, G, P]`` bool: the prior is a candidate of the object."""
        raise TypeError(f"{type(self).__name__} must implement pooled(places)")

    def negative(self, logits: Tensor, objectness: Tensor | None) -> Tensor:
        """What a class costs as a negative; ``objectness`` broadcasts to the logits."""
        raise TypeError(f"{type(self).__name__} must implement negative(logits, objectness)")

    def cost(self, pairs: Pairs, iou: Tensor) -> Tensor:
        """``[B, G, P]`` what it costs the object to take the prior; ``iou`` is that of its predicted box."""
        raise TypeError(f"{type(self).__name__} must implement cost(pairs, iou)")

    def assign(
        self,
        priors: Priors,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None,
        boxes: Tensor | None,
        objectness: Tensor | None = None,
    ) -> Assignment:
        """What ``__call__`` does."""
        where, count = type(self).__name__, priors.xy.shape[-2]
        scores, boxes = check_predictions(where, scores, boxes, count)
        boxes = upcast(boxes)
        xy = priors.xy.to(torch.promote_types(priors.xy.dtype, boxes.dtype))
        padded = targets if isinstance(targets, PaddedTargets) else pad_targets(targets, xy, scores.shape[-1])
        images, objects = padded.valid.shape
        if images != len(scores):
            raise ValueError(f"{where}: expected one target per image, {len(scores)}; got {images}")
        if objectness is not None and objectness.shape != (images, count):
            raise ValueError(f"{where}: objectness must have shape {[images, count]}; got {shape_of(objectness)}")
        counted = getattr(priors, "valid", None)
        counted = torch.ones_like(boxes[..., 0], dtype=torch.bool) if counted is None else counted
        seen = None if objectness is None else upcast(objectness.detach())
        valid = padded.valid & padded.boxes.isfinite().all(-1)
        rest = torch.zeros_like(boxes[..., 0])
        pairs = Pairs(Places.of(priors, padded.boxes, xy), padded.labels, valid, counted, boxes, seen, scores, None, rest)
        gt_index = torch.full_like(counted, -1, dtype=torch.long)
        for some in chunks(images if objects and count else 0, self._bytes_each(pairs), self._budget):
            gt_index[some] = self._match(pairs.images(some))
        ignore = centre_in_regions(priors.xy, padded, self._budget) & (gt_index < 0)
        return Assignment(gt_index, ignore | ~counted, matched_iou(boxes, padded, gt_index, self._budget))

    def places(self, priors: Priors, targets: PaddedTargets, image: int) -> Places:
        """The priors and the objects of one image."""
        xy = priors.xy[image : image + 1] if priors.xy.ndim == 3 else priors.xy
        return Places.of(priors, targets.boxes[image : image + 1], xy)

    def finite(self, objects: int, image: int, scores: Tensor | None, boxes: Tensor | None) -> dict[str, Tensor]:
        """The condition that all share: a prediction that can be compared."""
        if scores is None or boxes is None:
            return {}
        usable = finite_predictions(scores[image : image + 1], boxes[image : image + 1], self._budget)
        return {"location with finite predictions": usable.expand(objects, -1)}

    def _bytes_each(self, pairs: Pairs) -> int:
        """Temporaries of one object with the priors of one image."""
        return pairs.usable.shape[1] * TEMPORARIES * pairs.boxes.element_size()

    def _parts(self, pairs: Pairs) -> list[slice]:
        images, objects = pairs.valid.shape
        return chunks(objects, images * self._bytes_each(pairs), self._budget)

    def _match(self, pairs: Pairs) -> Tensor:
        """``[B, P]`` index of the object of every prior, −1 for none."""
        pool = torch.zeros_like(pairs.usable)
        for some in self._parts(pairs):
            part = pairs.objects(some)
            pool |= (self.pooled(part.places) & part.valid.unsqueeze(-1)).any(1)
        pool &= pairs.usable
        kept = _only(pool)
        pairs = pairs._replace(usable=pool)
        if kept is None:
            return self._compete(self._prepared(pairs))
        matched = self._compete(self._prepared(pairs.priors(kept)))
        return torch.full_like(pool, -1, dtype=torch.long).scatter(1, kept, matched)

    def _prepared(self, pairs: Pairs) -> Pairs:
        """With what all classes cost as negatives, and without the priors whose predictions are not finite."""

        def total(logits: Tensor, part: slice) -> Tensor:
            return fold_sum(self.negative(logits, None if pairs.objectness is None else pairs.objectness[:, part, None]))

        usable = pairs.usable & finite_predictions(pairs.scores, pairs.boxes, self._budget, pairs.kept)
        if pairs.objectness is not None:
            usable = usable & pairs.objectness.isfinite()
        return pairs._replace(usable=usable, rest=over_classes(pairs.scores, total, self._budget, pairs.kept))

    def _compete(self, pairs: Pairs) -> Tensor:
        most = min(self._most, pairs.usable.shape[1])
        claims = torch.zeros_like(pairs.usable, dtype=torch.long)
        of_all = claimant = _Cheapest.none(pairs.boxes[..., 0])
        for some in self._parts(pairs):
            part = pairs.objects(some)
            allowed = part.usable.unsqueeze(1) & part.valid.unsqueeze(-1)
            iou = torch.where(allowed, iou_of(part.boxes.unsqueeze(1), part.places.objects.unsqueeze(2)), 0.0)
            cost = torch.where(allowed, self.cost(part, iou), torch.inf)
            claimed = cheapest(cost, fold_sum(iou.topk(most).values).long().clamp(1, most), most)
            claims += claimed.sum(1)
            of_all = of_all.or_one_of(cost, some.start)
            claimant = claimant.or_one_of(torch.where(claimed, cost, torch.inf), some.start)
        return torch.where(claims > 1, of_all.gt, claimant.gt)


def _only(pool: Tensor) -> Tensor | None:
    """``[B, M]`` the first M priors, those of the pool ahead, each in rising order; M is the size of the largest pool.

    ``None`` where the size cannot be read without waiting, or is more than half of all priors.
    """
    if not value_checks_enabled(pool):
        return None
    size = max(1, int(pool.sum(1).max()))
    return pool.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size] if 2 * size <= pool.shape[1] else None
