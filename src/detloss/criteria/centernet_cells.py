"""Where CenterNet puts its objects: the level, the cell under the centre, and which object owns a cell that several share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, Assigner, centre_in_regions
from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_option
from detloss.geometry.points import Points
from detloss.types import Assignment, Number, Target

__all__ = ["CellOwner", "CenterAssigner", "Centres", "SizeRanges", "default_size_ranges"]

SizeRanges = Sequence[tuple[float, float]]
CellOwner = Literal["smallest", "last"]
CELL_OWNERS = ("smallest", "last")


@dataclass(frozen=True)
class Centres:
    """The centres of all objects on their level.

    Attributes:
        cell: ``[B, G]`` int64 index of the cell among those of all levels; 0 for objects without one.
        column_row: ``[B, G, 2]`` int64 place of the cell on its level.
        offset: ``[B, G, 2]`` where in its cell the centre lies, in [0, 1).
        level: ``[B, G]`` int64 level of the object.
        stride: ``[B, G]`` of that level.
        fits: ``[B, G]`` bool: a level has the object's size in its range.
        found: ``[B, G]`` bool: it fits, the object counts, and its centre lies on the map.
    """

    cell: Tensor
    column_row: Tensor
    offset: Tensor
    level: Tensor
    stride: Tensor
    fits: Tensor
    found: Tensor


def default_size_ranges(strides: Sequence[Number]) -> tuple[tuple[float, float], ...]:
    """(−1, 16 s₀), (16 s₀, 16 s₁) … (.., ∞) pixels of the longer side; one level takes all objects.

    >>> default_size_ranges((4,)), default_size_ranges((8, 16))
    (((-1.0, inf),), ((-1.0, 128.0), (128.0, inf)))
    """
    return tuple(pairwise([-1.0, *(16.0 * stride for stride in strides[:-1]), float("inf")]))


class CenterAssigner(Assigner):
    """The cell under the centre of an object is responsible for it.

    An object belongs to the first level with lo < longer side ≤ hi. Of several objects with one cell, one owns it: the
    ``"smallest"``, the first among equals (areas in the dtype of the targets), or the ``"last"`` of the image. Cells whose
    centre lies in an ignore box and that no object owns count neither way.

    Args:
        size_ranges: (lo, hi) of every level in pixels of the longer side.
        cell_owner: which object owns a cell that several share.
        memory_budget: bytes that the temporaries of one chunk may take.
    """

    def __init__(self, size_ranges: SizeRanges, cell_owner: CellOwner = "smallest", memory_budget: int = MEMORY_BUDGET) -> None:
        super().__init__(memory_budget)
        check_option("CenterAssigner", "cell_owner", cell_owner, CELL_OWNERS)
        for lo, hi in size_ranges:
            if not lo < hi:
                raise ValueError(f"CenterAssigner: size_ranges must be (lo, hi) with lo < hi per level; got {(lo, hi)}")
        self.size_ranges = tuple((float(lo), float(hi)) for lo, hi in size_ranges)
        self.cell_owner: CellOwner = cell_owner

    @torch.no_grad()
    def __call__(
        self,
        priors: Points,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Assignment:
        """Assign every cell, see :meth:`detloss.assigners.Assigner.__call__`; predictions play no part."""
        truth = self.padded(targets, priors.xy)
        gt_index = self.owners(priors, truth, self.centres(priors, truth))
        ignore = centre_in_regions(priors.xy, truth, self.memory_budget) & (gt_index < 0)
        return Assignment(gt_index, ignore)

    def centres(self, priors: Points, truth: PaddedTargets) -> Centres:
        """Level and cell of every object."""
        middle = (truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2
        side = (truth.boxes[..., 2:] - truth.boxes[..., :2]).amax(-1)
        fits, found = torch.zeros_like(truth.valid), torch.zeros_like(truth.valid)
        cell, level, stride = torch.zeros_like(truth.labels), torch.zeros_like(truth.labels), torch.ones_like(side)
        start = 0
        for k, ((height, width), step) in enumerate(zip(priors.sizes, priors.strides, strict=True)):
            lo, hi = self.size_ranges[k]
            here = ~fits & (side > lo) & (side <= hi)
            column, row = (middle / step).floor().unbind(-1)
            on_map = here & truth.valid & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = torch.where(on_map, row, 0.0).long() * width + torch.where(on_map, column, 0.0).long()
            cell = torch.where(on_map, start + place, cell)
            level, stride = torch.where(here, k, level), torch.where(here, float(step), stride)
            fits, found = fits | here, found | on_map
            start += height * width
        exact = middle / stride.unsqueeze(-1)
        corner = torch.where(found.unsqueeze(-1), exact.floor(), 0.0)
        offset = torch.where(found.unsqueeze(-1), exact - corner, 0.0)
        return Centres(cell, corner.long(), offset, level, stride, fits, found)

    def owners(self, priors: Points, truth: PaddedTargets, centres: Centres) -> Tensor:
        """``[B, P]`` int64: the object that owns each cell, −1 for none."""
        images, objects = truth.valid.shape
        count = sum(priors.counts)
        if not objects:
            return torch.full((images, count), -1, dtype=torch.long, device=truth.labels.device)
        order = torch.arange(objects - 1, -1, -1, device=truth.labels.device).expand(images, objects)
        if self.cell_owner == "smallest":
            area = (truth.boxes[..., 2:] - truth.boxes[..., :2]).prod(-1)
            order = area.sort(dim=1, stable=True).indices
        place = torch.empty_like(order).scatter(1, order, torch.arange(objects, device=order.device).expand_as(order))
        cell = torch.where(centres.found, centres.cell, count)  # one more cell for objects without any
        first = torch.full((images, count + 1), objects, device=order.device)
        first = first.scatter_reduce(1, cell, place, "amin")[:, :count]
        owner = order.gather(1, first.clamp(max=objects - 1))
        return torch.where(first < objects, owner, -1)

    def conditions(
        self,
        priors: Any,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Size in the range of a level, centre on its map, and the cell not taken by another object."""
        centres = self.centres(priors, targets)
        count, objects = sum(priors.counts), targets.valid.shape[1]
        cells = torch.arange(count, device=centres.cell.device)
        under = centres.found[image, :, None] & (cells == centres.cell[image, :, None])
        own = self.owners(priors, targets, centres)[image] == torch.arange(objects, device=cells.device)[:, None]
        return {
            "level with its size in the range": centres.fits[image, :, None].expand(objects, count),
            "cell of the map under its centre": under,
            f"cell of its own, another object has the same centre ({self.cell_owner} wins)": under & own,
        }
