"""Proposals of a batch, each with the object it is responsible for: what the heads of a two-stage detector learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import check_float, shape_of, upcast
from detloss.criteria.levels import check_images, matched_labels, matched_rows
from detloss.criteria.positives import Positives, select_positives
from detloss.criteria.sampled import chosen_rows, in_slots, sample_limit
from detloss.geometry.anchors import Anchors
from detloss.types import Assignment, Target

__all__ = ["RoISamples", "assign_proposals", "sample_proposals"]


@dataclass(frozen=True)
class RoISamples:
    """Proposals to learn from, N of them in the whole batch, without gradient.

    Give :attr:`proposals` to RoIAlign and the head, and the samples with the head's N rows of predictions to the
    criterion. ``samples.positives`` are the samples that are responsible for an object, for the mask head.

    Attributes:
        priors: the proposals ``[B, S, 4]``, padded to S per image.
        truth: the objects.
        assignment: which proposal is responsible for which object, ``[B, S]``.
        counts: proposals of every image; they come before the padding.
        num_classes: number of classes C.
        positive_counts: how many of them, the first ones, are responsible for an object; ``None``: not known to the host.
    """

    priors: Anchors
    truth: PaddedTargets
    assignment: Assignment
    counts: tuple[int, ...]
    num_classes: int
    positive_counts: tuple[int, ...] | None = None

    @property
    def proposals(self) -> list[Tensor]:
        """Per image corners ``[R_i, 4]`` in pixels, ready for RoIAlign."""
        return [boxes[:count] for boxes, count in zip(self.priors.boxes, self.counts, strict=True)]

    @property
    def labels(self) -> Tensor:
        """``[N]`` int64 class of the object of each proposal, 0…C−1; background C."""
        return self.flat(matched_labels(self.truth, self.assignment, self.num_classes))

    @property
    def gt_index(self) -> Tensor:
        """``[N]`` int64 index of the object in its image; −1 for background."""
        return self.flat(self.assignment.gt_index)

    @property
    def gt_boxes(self) -> Tensor:
        """``[N, 4]`` corners of the object; 0 for background."""
        return self.flat(matched_rows(self.truth.boxes, self.assignment))

    @property
    def ignore(self) -> Tensor:
        """``[N]`` bool: counts neither as an object nor as background."""
        return self.flat(self.assignment.ignore)

    @property
    def boxes(self) -> Tensor:
        """``[N, 4]`` the proposals of all images, one after the other."""
        return self.flat(self.priors.boxes)

    @cached_property
    def positives(self) -> RoISamples:
        """The samples that are responsible for an object. Where their number is not known, the host waits for it once."""
        if self.positive_counts is not None:
            most, counts = max(self.positive_counts, default=0), self.positive_counts
            slots = select_positives(self.assignment, most)
        else:
            slots = select_positives(self.assignment)
            (counts,) = counts_on_host(slots.filled.sum(1))
        assignment = in_slots(slots, self.assignment)
        return RoISamples(_taken(slots, self.priors), self.truth, assignment, counts, self.num_classes, counts)

    def flat(self, values: Tensor) -> Tensor:
        """``[N, …]``: the rows of ``values [B, S, …]`` without the padding."""
        if not self.counts:
            return values.flatten(0, 1)
        return torch.cat([rows[:count] for rows, count in zip(values, self.counts, strict=True)])


def counts_on_host(*counts: Tensor) -> list[tuple[int, ...]]:
    """Numbers per image ``[B]`` as integers, all in one transfer: the host must know how many rows a head is to compute."""
    return [tuple(values) for values in torch.stack(counts).tolist()]


def assign_proposals(
    where: str, proposals: Sequence[Tensor], targets: Sequence[Target] | PaddedTargets, assigner: Any, num_classes: int
) -> RoISamples:
    """All proposals as samples, in their order. Those that are not finite, or lie in ignore boxes, are ignored.

    Args:
        where: name of the criterion, for messages.
        proposals: per image corners ``[R_i, 4]`` in pixels.
        targets: per image ``boxes`` and ``labels``.
        assigner: decides which proposal is responsible for which object.
        num_classes: number of classes.
    """
    boxes, valid = _pad_proposals(where, proposals)
    truth = targets if isinstance(targets, PaddedTargets) else pad_targets(targets, boxes, num_classes)
    check_images(where, truth, len(proposals))
    priors, assignment = _assign(assigner, boxes, valid, truth)
    return RoISamples(priors, truth, assignment, tuple(len(own) for own in proposals), num_classes)


def sample_proposals(
    where: str,
    proposals: Sequence[Tensor],
    targets: Sequence[Target],
    assigner: Any,
    sampler: Callable[[Assignment], Assignment],
    num_classes: int,
    append_ground_truth: bool,
) -> RoISamples:
    """A sample of the proposals of every image, positives first. The host waits once for the number of rows.

    Arguments as for :func:`assign_proposals`, and:

    Args:
        sampler: chooses from an assignment.
        append_ground_truth: the boxes of the objects are proposals too.
    """
    boxes, valid = _pad_proposals(where, proposals)
    truth = pad_targets(targets, boxes, num_classes)
    check_images(where, truth, len(proposals))
    if append_ground_truth:
        boxes, valid = torch.cat((boxes, truth.boxes), dim=1), torch.cat((valid, truth.valid), dim=1)
    priors, assignment = _assign(assigner, boxes, valid, truth)
    slots = chosen_rows(sampler(assignment), sample_limit(sampler, boxes.shape[1]))
    assignment = in_slots(slots, assignment)
    counts, positive_counts = counts_on_host(slots.filled.sum(1), assignment.positive.sum(1))
    return RoISamples(_taken(slots, priors), truth, assignment, counts, num_classes, positive_counts)


def _pad_proposals(where: str, proposals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Corners ``[B, P, 4]`` without gradient and which of them are proposals with finite corners."""
    if isinstance(proposals, Tensor) or not isinstance(proposals, Sequence):
        raise TypeError(f"{where}: proposals must be a list of boxes [R, 4], one per image; got {type(proposals).__name__}")
    for image, own in enumerate(proposals):
        check_float(where, f"proposals[{image}]", own)
        if own.ndim != 2 or own.shape[1] != 4:
            raise ValueError(f"{where}: proposals[{image}] must have shape [R, 4]; got {shape_of(own)}")
    if not proposals:
        return torch.zeros(0, 0, 4), torch.zeros(0, 0, dtype=torch.bool)
    boxes = pad_sequence([upcast(own.detach()) for own in proposals], batch_first=True)
    there = pad_sequence([own.new_ones(len(own), dtype=torch.bool) for own in proposals], batch_first=True)
    valid = there & torch.isfinite(boxes).all(-1)
    return torch.where(valid.unsqueeze(-1), boxes, 0.0), valid


def _assign(assigner: Any, boxes: Tensor, valid: Tensor, truth: PaddedTargets) -> tuple[Anchors, Assignment]:
    """The proposals as priors, and what is responsible for what; padding is ignored."""
    priors = Anchors.of(boxes, valid=valid)
    found = assigner(priors, truth)
    assignment = Assignment(torch.where(valid, found.gt_index, -1), found.ignore | ~valid, found.quality)
    return priors, assignment


def _taken(slots: Positives, priors: Anchors) -> Anchors:
    """The proposals in the slots."""
    boxes = priors.boxes
    return Anchors.of(slots.take(boxes), valid=slots.filled)
