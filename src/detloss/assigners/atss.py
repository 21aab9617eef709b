"""The ATSS assigner: the IoU that makes an anchor positive is chosen per object, from the anchors nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, Assigner, Priors, centre_in_regions, chunks, covered_by_regions
from detloss.assigners.claims import Claims
from detloss.assigners.predictions import fold_sum
from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_at_least, check_non_negative, check_positive, upcast
from detloss.geometry.anchors import Anchors
from detloss.geometry.iou import overlap
from detloss.kernels.matches import ATSSMatch
from detloss.kernels.selection import match_backend
from detloss.registry import ASSIGNERS
from detloss.types import Assignment, Target

__all__ = ["ATSSAssigner"]

BLOCK = 16  # points of which first only the nearest is looked at
TILE = 2**20  # bytes of distances that stay in the cache of a core
PAIR_BYTES = 400  # what is alive per candidate while its overlap and its claim are computed


@ASSIGNERS.register_module(
    family="anchor",
    formula="IoU >= mean + std of the IoU of the topk nearest anchors of every level, centre inside the box",
    paper="Zhang et al. 2020, arXiv:1912.02424",
)
class ATSSAssigner(Assigner):
    """Assign every anchor to at most one object.

    The candidates of an object are the ``topk`` anchors of every level whose centres are nearest to the centre of its box,
    all of a level with fewer. A candidate is positive when its IoU reaches mean + standard deviation (unbiased) of the IoU
    of the object's candidates and its centre lies more than ``margin`` pixels inside the box. An anchor that several
    objects claim goes to the one of the highest IoU, the first one among equals; the quality of a match is its IoU.

    Squared distances are compared in float32; among equal ones the anchors that come first are the candidates. A single
    candidate has a deviation of 0. Anchors that belong to no object count neither way when their centre lies in an ignore
    box (or, with ``ignore_iof_thr``, when ignore boxes cover more than that share of them).

    Args:
        topk: candidates per level and object.
        margin: how far inside the box the centre of a positive must be at least, in pixels.
        anchor_scale: points instead of anchors stand for squares with sides of this many strides.
        ignore_iof_thr: share of an anchor that one ignore box has to cover; ``None``: its centre decides.
        memory_budget: bytes that the temporaries of one chunk may take.
    """

    def __init__(
        self,
        topk: int = 9,
        margin: float = 0.01,
        anchor_scale: float = 8.0,
        ignore_iof_thr: float | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(memory_budget)
        check_at_least("ATSSAssigner", 1, topk=topk)
        check_non_negative("ATSSAssigner", margin=margin)
        check_positive("ATSSAssigner", anchor_scale=anchor_scale)
        if ignore_iof_thr is not None:
            check_non_negative("ATSSAssigner", ignore_iof_thr=ignore_iof_thr)
        self.topk = int(topk)
        self.margin = margin
        self.anchor_scale = anchor_scale
        self.ignore_iof_thr = ignore_iof_thr

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Assignment:
        """Assign the anchors ``priors`` (P of them) to the objects of ``targets`` (B images). Predictions are not used."""
        anchors = self.anchors_of(priors)
        padded = self.padded(targets, anchors.boxes)
        match = self._match(anchors, padded)
        backend = match_backend(match)
        owner, quality = self._by_chunks(anchors, padded) if backend is None else backend.match(match)
        return Assignment(owner, self._in_regions(anchors, padded) & (owner < 0), quality)

    def _match(self, anchors: Anchors, padded: PaddedTargets) -> ATSSMatch:
        """The rule for a kernel."""
        objects = padded.boxes.to(anchors.boxes.dtype)
        rule = self.topk, self.margin, self.memory_budget // 2
        return ATSSMatch(anchors.boxes, anchors.valid, objects, padded.valid, anchors.counts, *rule)

    def _by_chunks(self, anchors: Anchors, padded: PaddedTargets) -> tuple[Tensor, Tensor]:
        """Object and quality of every anchor, by operations of torch: what every kernel has to find."""
        images, objects = padded.valid.shape
        count = anchors.boxes.shape[-2]
        claims = Claims(images * count, anchors.boxes)
        first, number = _ranges(images, count, objects, padded.boxes.device)
        bytes_each = images * self.topk * len(anchors.counts) * PAIR_BYTES
        for part in chunks(objects if count else 0, bytes_each, self.memory_budget // 2):
            found = self._candidates(anchors, padded.boxes[:, part])
            allowed = found.reached & found.inside & padded.valid[:, part, None]
            prior, owner = found.anchor + first, number[part].expand_as(found.anchor)
            claims.add(prior.flatten(), owner.flatten(), found.iou.flatten(), allowed.flatten())
        return claims.owner.view(images, count), claims.overlap.clamp(min=0).view(images, count)

    def conditions(
        self,
        priors: Priors,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``[G, P]`` per condition: candidate, IoU that reaches the threshold, centre inside the box."""
        anchors = self.anchors_of(priors)
        if anchors.boxes.ndim == 3:
            valid = None if anchors.valid is None else anchors.valid[image : image + 1]
            anchors = replace(anchors, boxes=anchors.boxes[image : image + 1], valid=valid)
        found = self._candidates(anchors, targets.boxes[image : image + 1])
        empty = torch.zeros(targets.valid.shape[1], anchors.boxes.shape[-2], dtype=torch.bool, device=found.anchor.device)

        def spread(passes: Tensor) -> Tensor:
            return empty.scatter(1, found.anchor[0], passes[0])

        return {
            f"anchor among the {self.topk} nearest of a level": spread(found.usable),
            "candidate whose IoU reaches mean + std of all candidates": spread(found.reached),
            f"candidate with its centre more than {self.margin:g} px inside the box": spread(found.inside),
        }

    def anchors_of(self, priors: Priors) -> Anchors:
        """Anchors as they are; for points the squares around them."""
        if isinstance(priors, Anchors):
            return replace(priors, boxes=upcast(priors.boxes))
        half = upcast(priors.stride * (self.anchor_scale / 2))[..., None]
        xy = upcast(priors.xy)
        return Anchors(torch.cat((xy - half, xy + half), dim=-1), priors.stride, priors.counts, priors.strides)

    def _candidates(self, anchors: Anchors, objects: Tensor) -> _Candidates:
        """The candidates of ``objects [B, G, 4]`` and which conditions they pass."""
        index = self._nearest(anchors, (objects[..., :2] + objects[..., 2:]) / 2)
        images, count = len(objects), anchors.boxes.shape[-2]
        first, _ = _ranges(images, count, 0, index.device)
        usable = torch.ones_like(index, dtype=torch.bool) if anchors.valid is None else anchors.valid.flatten()[index + first]
        own = anchors.boxes.reshape(-1, 4)[index + first if anchors.boxes.ndim == 3 else index]
        iou = overlap(own, objects[:, :, None]).iou
        centre = (own[..., :2] + own[..., 2:]) / 2
        low, high = objects[:, :, None, :2], objects[:, :, None, 2:]
        inside = (torch.minimum(centre - low, high - centre) > self.margin).all(-1)
        return _Candidates(index, iou, usable, usable & (iou >= _threshold(iou, usable)), usable & inside)

    def _nearest(self, anchors: Anchors, centre: Tensor) -> Tensor:
        """``[B, G, K]`` indices of the anchors of all levels nearest to ``centre [B, G, 2]``, ``topk`` of each level."""
        tile = self.memory_budget // 2
        if centre.device.type == "cpu" and not torch.compiler.is_compiling():
            tile = min(tile, TILE)
        # What is not a number is nearest to nothing; nan_to_num changes no other centre.
        points = anchors.xy.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        points = points if anchors.valid is None else torch.where(anchors.valid[..., None], points, torch.inf)
        found = []
        for stop, size in zip(accumulate(anchors.counts), anchors.counts, strict=True):
            found.append(nearest(points[..., stop - size : stop, :], centre, min(self.topk, size), tile) + (stop - size))
        return torch.cat(found, dim=-1)

    def _in_regions(self, anchors: Anchors, targets: PaddedTargets) -> Tensor:
        """``[B, P]`` bool: anchors in an ignore box."""
        if self.ignore_iof_thr is None:
            return centre_in_regions(anchors.xy, targets, self.memory_budget)
        return covered_by_regions(anchors.boxes, targets, self.ignore_iof_thr, self.memory_budget)


class _Candidates(NamedTuple):
    """Candidates ``[B, G, K]``: their indices, IoU, whether they are anchors at all, and the two conditions."""

    anchor: Tensor
    iou: Tensor
    usable: Tensor
    reached: Tensor
    inside: Tensor


def _ranges(images: int, count: int, objects: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of the first of the ``count`` priors of every image ``[B, 1, 1]``, and the numbers of the objects ``[G, 1]``."""
    return (torch.arange(images, device=device) * count)[:, None, None], torch.arange(objects, device=device)[:, None]


def _threshold(iou: Tensor, usable: Tensor) -> Tensor:
    """``[..., 1]``: mean + unbiased standard deviation over the usable ones; no rounding takes the mean above the largest."""
    number = usable.sum(-1).to(iou.dtype)
    values = torch.where(usable, iou, 0.0)
    mean = torch.minimum(fold_sum(values) / number.clamp(min=1), values.amax(-1))[..., None]
    squares = torch.where(usable, iou - mean, 0.0).square()
    return mean + (fold_sum(squares) / (number - 1).clamp(min=1)).sqrt()[..., None]


def nearest(points: Tensor, centre: Tensor, k: int, tile_bytes: int) -> Tensor:
    """``[B, G, k]`` indices of the ``k`` of n ``points`` nearest to ``centre [B, G, 2]``, the first ones among equals.

    Points are dealt with in blocks of neighbours: the ``k`` nearest lie in the ``k`` blocks whose nearest points are the
    nearest, the first blocks among equals, so only these few are looked at one by one.

    Args:
        points: ``[n, 2]``, or ``[B, n, 2]`` for other points in every image.
        centre: ``[B, G, 2]``.
        k: number of points; at most n.
        tile_bytes: objects go through in parts whose distances take that many bytes.
    """
    count = points.shape[-2]
    block = BLOCK if count >= 2 * BLOCK * k else 1
    blocks = -(-count // block)
    far = points.new_full((*points.shape[:-2], blocks * block - count, 2), torch.inf)
    # [.., 1, block, blocks]: one place within its block after the other, so that the minimum runs over whole rows.
    x, y = torch.cat((points, far), dim=-2).unflatten(-2, (blocks, block)).transpose(-2, -3).contiguous().unbind(-1)
    number = torch.arange(blocks, device=points.device)
    place = torch.arange(block, device=points.device)[:, None]
    found = [torch.zeros(*centre.shape[:1], 0, k, dtype=torch.long, device=points.device)]
    for part in chunks(centre.shape[1], centre.shape[0] * blocks * block * 3 * points.element_size(), tile_bytes):
        at = centre[:, part, None, None]
        distance = ((x.unsqueeze(-3) - at[..., 0]).square_() + (y.unsqueeze(-3) - at[..., 1]).square_()).float()
        best = _smallest(distance.amin(2), number, k)[:, :, None]
        close = distance.gather(3, best.expand(-1, -1, block, -1))
        found.append(_smallest(close.flatten(2), (best * block + place).flatten(2), k))
    return torch.cat(found, dim=1).clamp(max=count - 1)


def _smallest(distance: Tensor, index: Tensor, k: int) -> Tensor:
    """The ``index`` of the ``k`` smallest float32 ``distance >= 0`` along the last dimension, of equal ones the smallest index.

    The bits of floats that are not negative are in the order of their values; with the index below them no two are equal.
    """
    key = (distance.view(torch.int32).long() << 32) | index
    return key.topk(k, dim=-1, largest=False).values & (2**32 - 1)
