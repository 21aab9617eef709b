"""The FCOS assigner: a location belongs to the smallest object that contains it and fits its level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, Assigner, Priors, centre_in_regions, chunks
from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_option, check_positive
from detloss.registry import ASSIGNERS
from detloss.types import Assignment, Number, Target

__all__ = ["FCOSAssigner", "default_regress_ranges"]

RegressRanges = Sequence[tuple[float, float]]
RangeBounds = Literal["closed", "open", "half_open"]
RANGE_BOUNDS = ("closed", "open", "half_open")
TEMPORARIES = 14  # numbers per location and object alive at once: about six in tensors, as many again held by the allocator


def default_regress_ranges(strides: Sequence[Number]) -> tuple[tuple[float, float], ...]:
    """(−1, 8 s₀), (8 s₀, 8 s₁) … (8 sₙ₋₂, ∞): for strides 8…128 the ranges of the FCOS paper, 64, 128, 256, 512.

    >>> default_regress_ranges((8, 16, 32))
    ((-1.0, 64.0), (64.0, 128.0), (128.0, inf))
    """
    bounds = [-1.0, *(8.0 * stride for stride in strides[:-1]), float("inf")]
    return tuple(pairwise(bounds))


@ASSIGNERS.register_module(
    family="point",
    formula="min over objects of area, where min(l, t, r, b) > 0 and lo <= max(l, t, r, b) <= hi",
    paper="Tian et al. 2019, arXiv:1904.01355",
)
class FCOSAssigner(Assigner):
    """Assign every location to at most one object.

    A location is a candidate for an object when it lies inside its box (strictly) and the largest of its distances to
    the sides is within the range of the location's level. Among the candidates the object of the
    smallest area wins, the first one among equals. Areas are compared in float64 (where the device has it), once per
    object, so large ones do not tie by rounding. Locations in an ignore box that belong to no object count neither way.

    All images and objects go through together, in chunks of locations, within ``memory_budget``. Every location is
    decided on its own, so the result does not depend on the size of the chunks.

    Args:
        regress_ranges: (lo, hi) of every level in pixels; ``None`` takes :func:`default_regress_ranges` of the strides.
        center_sampling_radius: only locations closer to the centre of the object than this many strides, along both
            axes, are candidates; ``None`` takes the whole box.
        memory_budget: bytes that the temporaries of one chunk may take.
        range_bounds: whether the ends of a range belong to it: ``"closed"`` both (mmdet), ``"open"`` none (torchvision,
            detectron2), ``"half_open"`` the lower one.
    """

    def __init__(
        self,
        regress_ranges: RegressRanges | None = None,
        center_sampling_radius: float | None = None,
        memory_budget: int = MEMORY_BUDGET,
        range_bounds: RangeBounds = "closed",
    ) -> None:
        super().__init__(memory_budget)
        check_option("FCOSAssigner", "range_bounds", range_bounds, RANGE_BOUNDS)
        if center_sampling_radius is not None:
            check_positive("FCOSAssigner", center_sampling_radius=center_sampling_radius)
        for level in regress_ranges or ():
            if not isinstance(level, Sequence) or len(level) != 2 or not level[0] < level[1]:
                raise ValueError(f"FCOSAssigner: regress_ranges must hold (lo, hi) with lo < hi per level; got {level}")
        self.regress_ranges = None if regress_ranges is None else tuple((float(lo), float(hi)) for lo, hi in regress_ranges)
        self.center_sampling_radius = center_sampling_radius
        self.range_bounds: RangeBounds = range_bounds

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Assignment:
        """Assign the locations ``priors`` (P of them) to the objects of ``targets`` (B images). Predictions are not used."""
        padded = self.padded(targets, priors.xy)
        images, objects = padded.valid.shape
        count = priors.xy.shape[0]
        low, high = (priors.per_level(bounds) for bounds in zip(*self.ranges_of(priors), strict=True))
        order, ordered, valid = _by_area(padded)
        chosen = torch.full((images, count), -1, dtype=torch.long, device=priors.xy.device)
        for part in chunks(count if objects else 0, images * objects * TEMPORARIES * ordered.element_size(), self.memory_budget):
            candidate = valid[:, None].expand(-1, part.stop - part.start, -1)
            for passes in self._passes(priors.xy[part], priors.stride[part], low[part], high[part], ordered).values():
                candidate = candidate & passes
            first = candidate.to(torch.uint8).argmax(-1) if objects > 1 else candidate.long()[..., 0] * 0
            found = candidate.gather(-1, first.unsqueeze(-1)).squeeze(-1)
            chosen[:, part] = torch.where(found, order.gather(1, first), -1)
        ignore = centre_in_regions(priors.xy, padded, self.memory_budget)
        return Assignment(chosen, ignore & (chosen < 0))

    def conditions(
        self,
        priors: Priors,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``[G, P]`` per condition: inside the box, within the centre region, of a level whose range fits the size."""
        low, high = (priors.per_level(bounds) for bounds in zip(*self.ranges_of(priors), strict=True))
        passes = self._passes(priors.xy, priors.stride, low, high, targets.boxes[image : image + 1])
        return {sentence: mask[0].T for sentence, mask in passes.items()}

    def ranges_of(self, priors: Priors) -> tuple[tuple[float, float], ...]:
        """The regress range of every level of ``priors``; a ``ValueError`` when there are too few."""
        if self.regress_ranges is None:
            return default_regress_ranges(priors.strides)
        levels = len(priors.counts)
        if len(self.regress_ranges) < levels:
            raise ValueError(
                f"FCOSAssigner: expected a regress range for each of {levels} levels; got {len(self.regress_ranges)}"
            )
        return self.regress_ranges[:levels]

    def _passes(self, xy: Tensor, stride: Tensor, low: Tensor, high: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """``[B, P, G]`` bool per condition on a location to be responsible for an object."""
        nearest, farthest = _sides(xy, boxes)
        passes = {"location inside the box": nearest > 0}
        if self.center_sampling_radius is not None:
            reach = (stride * self.center_sampling_radius)[:, None]
            near = torch.ones_like(nearest, dtype=torch.bool)
            for axis in (0, 1):
                centre = (boxes[..., axis] + boxes[..., axis + 2])[:, None] / 2
                near &= (xy[:, axis, None] - centre).abs() < reach
            passes["location in the centre region"] = near
        lower, upper = low[:, None], high[:, None]
        above = farthest > lower if self.range_bounds == "open" else farthest >= lower
        below = farthest <= upper if self.range_bounds == "closed" else farthest < upper
        passes["location on a level whose range fits the size"] = above & below
        return passes


def _sides(xy: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest of the four distances from ``xy [P, 2]`` to the sides of ``boxes [B, G, 4]``: ``[B, P, G]`` each."""

    def distance(side: int) -> Tensor:
        ahead = xy[:, side % 2, None] - boxes[:, None, :, side]
        return ahead if side < 2 else -ahead

    nearest = farthest = distance(0)
    for side in (1, 2, 3):
        current = distance(side)
        nearest, farthest = torch.minimum(nearest, current), torch.maximum(farthest, current)
    return nearest, farthest


def _by_area(targets: PaddedTargets) -> tuple[Tensor, Tensor, Tensor]:
    """Objects in order of area, the first one first among equals: their indices, boxes and validity."""
    exact = targets.boxes if targets.boxes.device.type == "mps" else targets.boxes.double()
    area = (exact[..., 2] - exact[..., 0]) * (exact[..., 3] - exact[..., 1])
    order = area.argsort(dim=1, stable=True)
    return order, targets.boxes.gather(1, order.unsqueeze(-1).expand_as(targets.boxes)), targets.valid.gather(1, order)
