"""Conflicts over a prior: of all objects that claim it, the one of the highest overlap gets it, the first among equals."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Claims"]


class Claims:
    """For each of ``count`` priors the best pair of all that were added.

    Pairs may come in any number of parts, as long as their objects come in order: the result does not depend on the
    parts. Nothing here has a shape that depends on values, and nothing is read by the host.

    Args:
        count: number of priors, those of all images together.
        like: tensor whose device and dtype the overlaps have.

    Attributes:
        overlap: ``[count]`` overlap of the best pair, −1 without any.
        owner: ``[count]`` int64 number of its object, −1 without any.
        metric: ``[count]`` what was added as its metric, 0 without any.
    """

    def __init__(self, count: int, like: Tensor) -> None:
        self.overlap = like.new_full((count,), -1.0)
        self.owner = torch.full((count,), -1, dtype=torch.long, device=like.device)
        self.metric = like.new_zeros(count)

    def add(self, prior: Tensor, owner: Tensor, overlap: Tensor, allowed: Tensor, metric: Tensor | None = None) -> None:
        """Add N ≥ 1 pairs, ``[N]`` each: indices of priors and objects, overlaps, and whether the pair claims at all."""
        count, pairs = len(self.overlap), len(prior)
        nowhere = torch.where(allowed, prior, count)
        top = overlap.new_full((count + 1,), -1.0).scatter_reduce(0, nowhere, overlap, "amax")
        highest = torch.where(overlap == top[nowhere], nowhere, count)
        order = torch.arange(pairs, device=prior.device)
        first = torch.full((count + 1,), pairs - 1, device=prior.device).scatter_reduce(0, highest, order, "amin")[:count]
        better = top[:count] > self.overlap
        self.overlap = torch.where(better, top[:count], self.overlap)
        self.owner = torch.where(better, owner[first], self.owner)
        if metric is not None:
            self.metric = torch.where(better, metric[first], self.metric)
