"""The positives of a batch as rows of a fixed number per image, so that terms over positives alone cost no more than those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detloss.types import Assignment

__all__ = ["Positives", "select_positives"]


@dataclass(frozen=True)
class Positives:
    """K slots per image, the positives first, in the order of the priors.

    Attributes:
        index: ``[B, K]`` int64, the prior of every slot; 0 in empty slots.
        filled: ``[B, K]`` bool.
    """

    index: Tensor
    filled: Tensor

    def take(self, values: Tensor) -> Tensor:
        """The rows ``[B, K, D]`` of ``values [B, P, D]``, or ``[B, K]`` of ``[B, P]``; 0 in empty slots, with gradient 0."""
        index, filled = self.index, self.filled
        if values.ndim == 3:
            index, filled = index.unsqueeze(-1).expand(-1, -1, values.shape[2]), filled.unsqueeze(-1)
        return torch.where(filled, values.gather(1, index), torch.zeros((), dtype=values.dtype, device=values.device))

    def take_maps(self, maps: Sequence[Tensor]) -> Tensor:
        """``take(rows(maps))``, ``[B, K, D]``, from the maps ``[B, D, H, W]`` themselves, which saves a copy of them all."""
        found = maps[0].new_zeros(len(self.index), maps[0].shape[1], self.index.shape[1])
        for x, cell, here in self.per_level(maps):
            index = cell.unsqueeze(1).expand(-1, x.shape[1], -1)
            own = x.flatten(2).gather(2, index) if x.shape[2] * x.shape[3] else x.sum()
            found = found + torch.where(here.unsqueeze(1), own, torch.zeros((), dtype=x.dtype, device=x.device))
        return found.transpose(1, 2)

    def per_level(self, maps: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(map, cell, here) of every level: number of the slots' cell in the map and whether it is there; 0 elsewhere."""
        start = 0
        for x in maps:
            count = x.shape[2] * x.shape[3]
            here = self.filled & (self.index >= start) & (self.index < start + count)
            yield x, torch.where(here, self.index - start, 0), here
            start += count

    def scatter(self, values: Tensor, count: int) -> Tensor:
        """``[B, count]``: the numbers ``values [B, K]`` of the slots at their priors, 0 elsewhere."""
        return values.new_zeros(len(values), count).scatter_add(1, self.index, torch.where(self.filled, values, 0))


def select_positives(assignment: Assignment, most: int | None = None) -> Positives:
    """The positives of every image in ``min(most, P)`` slots. Nothing waits for the device: empty slots fill up.

    Args:
        assignment: of P priors.
        most: upper bound of the positives of an image that the assigner guarantees; ``None``: there is none but P.
    """
    positive = assignment.positive
    images, count = positive.shape
    slots = count if most is None else min(most, count)
    rank = positive.cumsum(1)
    # Negatives all go to one slot too many, which is cut off.
    slot = torch.where(positive, rank - 1, slots)
    prior = torch.arange(count, device=positive.device).expand(images, count)
    index = torch.zeros(images, slots + 1, dtype=torch.long, device=positive.device).scatter(1, slot, prior)[:, :slots]
    filled = torch.arange(slots, device=positive.device) < positive.sum(1, keepdim=True)
    return Positives(torch.where(filled, index, 0), filled)
