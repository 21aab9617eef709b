"""Conflicts over a prior: of all objects that claim it, the one of the highest overlap gets it, the first among equals."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Claims"]


class Claims:
    """For each of ``count`` priors the best pair of all that were added.

    Pairs may come in any number of parts, as long as the objects of a prior come in order from part to part: the result
    does not depend on the parts. Nothing here has a shape that depends on values, and nothing is read by the host.

    Args:
        count: number of priors, those of all images together.
        like: tensor whose device and dtype the overlaps have.
        metrics: keep a second value of every pair.
    """

    def __init__(self, count: int, like: Tensor, metrics: bool = False) -> None:
        self.count = count
        # The last entry takes the pairs that claim nothing.
        self._overlap = like.new_full((count + 1,), -1.0)
        self._owner = torch.full((count + 1,), -1, dtype=torch.long, device=like.device)
        self._metric = like.new_zeros(count + 1 if metrics else 0)

    @property
    def overlap(self) -> Tensor:
        """``[count]`` overlap of the best pair, −1 without any."""
        return self._overlap[: self.count]

    @property
    def owner(self) -> Tensor:
        """``[count]`` int64 number of its object, −1 without any."""
        return self._owner[: self.count]

    @property
    def metric(self) -> Tensor:
        """``[count]`` metric of it, 0 without any."""
        return self._metric[: self.count]

    def add(self, prior: Tensor, owner: Tensor, overlap: Tensor, allowed: Tensor, metric: Tensor | None = None) -> None:
        """Add pairs, ``[N]`` each: numbers of priors and objects, overlaps, whether the pair claims at all, metrics."""
        place = torch.where(allowed, prior, self.count)
        higher = overlap > self._overlap.index_select(0, place)
        self._overlap.scatter_reduce_(0, place, overlap, "amax")
        higher &= overlap == self._overlap.index_select(0, place)
        place = torch.where(higher, place, self.count)
        self._owner.scatter_(0, place, torch.iinfo(torch.long).max)
        self._owner.scatter_reduce_(0, place, owner, "amin")
        if metric is not None:
            place = torch.where(owner == self._owner.index_select(0, place), place, self.count)
            self._metric.scatter_(0, place, metric)
