"""Anchors or proposals that a sampler chose, as rows of a fixed number per image: two-stage detectors learn from a sample."""

from __future__ import annotations

from typing import Any

import torch

from detloss.criteria.positives import Positives
from detloss.types import Assignment

__all__ = ["chosen_rows", "in_slots", "sample_limit"]


def sample_limit(sampler: Any, count: int) -> int:
    """How many of ``count`` priors of an image the sampler chooses at most: its ``num``; all when it has none."""
    return min(int(getattr(sampler, "num", count)), count)


def chosen_rows(sampled: Assignment, most: int) -> Positives:
    """The priors that count, in ``most`` slots per image: positives first, then negatives, each in the order of the priors.

    Nothing waits for the device: empty slots fill up.

    Args:
        sampled: of P priors; those that were not chosen are ignored.
        most: number of slots, at least as many as were chosen.
    """
    positive, negative = sampled.positive, sampled.negative
    images, count = positive.shape
    num_pos = positive.sum(1, keepdim=True)
    # Priors that were not chosen all go to one slot too many, which is cut off.
    slot = torch.where(positive, positive.cumsum(1) - 1, torch.where(negative, num_pos + negative.cumsum(1) - 1, most))
    prior = torch.arange(count, device=positive.device).expand(images, count)
    index = torch.zeros(images, most + 1, dtype=torch.long, device=positive.device)
    index = index.scatter(1, slot.clamp(max=most), prior)[:, :most]
    filled = torch.arange(most, device=positive.device) < num_pos + negative.sum(1, keepdim=True)
    return Positives(torch.where(filled, index, 0), filled)


def in_slots(slots: Positives, assignment: Assignment) -> Assignment:
    """The assignment ``[B, S]`` of the slots; empty ones are ignored."""
    gt_index = torch.where(slots.filled, slots.take(assignment.gt_index), -1)
    quality = None if assignment.quality is None else slots.take(assignment.quality)
    return Assignment(gt_index, ~slots.filled | slots.take(assignment.ignore), quality)
