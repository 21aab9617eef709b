"""The interface that all assigners share, and what they do with regions that are to be ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import check_positive
from detloss.registry import options
from detloss.types import Assignment, Number, Target

__all__ = ["MEMORY_BUDGET", "Assigner", "Priors", "centre_in_regions", "chunks", "covered_by_regions"]

MEMORY_BUDGET = 64 * 2**20


class Priors(Protocol):
    """What is matched with objects: :class:`detloss.geometry.Points` or :class:`detloss.geometry.Anchors`."""

    @property
    def xy(self) -> Tensor:
        """``[P, 2]`` centres in pixels."""

    @property
    def stride(self) -> Tensor:
        """``[P]`` pixels per cell of the level."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number per level."""

    @property
    def strides(self) -> tuple[Number, ...]:
        """Stride of every level."""

    def per_level(self, values: Sequence[float]) -> Tensor:
        """``[P]``: one number per level, repeated."""


class Assigner:
    """Base of all assigners: ``assignment = assigner(priors, targets, scores, boxes)``.

    An assigner decides for all images of a batch at once, without gradient, within ``memory_budget`` bytes of temporaries,
    with a result that does not depend on the size of the chunks. Predictions that are not finite never match.

    ``needs_predictions`` says whether ``scores`` and ``boxes`` are used.

    Args:
        memory_budget: bytes that the temporaries of one chunk may take.
    """

    needs_predictions: ClassVar[bool] = False

    def __init__(self, memory_budget: int = MEMORY_BUDGET) -> None:
        check_positive(type(self).__name__, memory_budget=memory_budget)
        self.memory_budget = int(memory_budget)

    def __call__(
        self,
        priors: Any,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Assignment:
        """Assign ``priors`` (P of them) to the objects of ``targets`` (B images).

        Args:
            priors: points or anchors of all levels; ``None`` for assigners that match predictions alone.
            targets: one mapping per image, or what :func:`detloss.assigners.pad_targets` made of them.
            scores: class logits ``[B, P, C]``, for assigners that look at predictions.
            boxes: predicted corners in pixels ``[B, P, 4]``, likewise.
        """
        raise TypeError(f"{type(self).__name__} must implement __call__(priors, targets, scores, boxes)")

    def conditions(
        self,
        priors: Any,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Mapping[str, Tensor]:
        """Why an object of one image may get nothing: sentence → ``[G, P]`` bool, which priors pass that condition.

        The conditions are in the order in which they apply. The reason for an object without positives is the first
        sentence at which no prior is left that passes it and all before, read after "no" ("no location inside the box");
        when some pass all, others took them. An assigner without conditions gives no reasons.
        """
        return {}

    def padded(self, targets: Sequence[Target] | PaddedTargets, like: Tensor) -> PaddedTargets:
        """``targets`` checked and padded, with the device and dtype of ``like``."""
        return targets if isinstance(targets, PaddedTargets) else pad_targets(targets, like)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in options(type(self)))
        return f"{type(self).__name__}({shown})"


def chunks(count: int, bytes_each: int, budget: int) -> list[slice]:
    """Slices of ``range(count)`` whose temporaries, ``bytes_each`` per element, stay within ``budget`` bytes."""
    step = max(1, budget // max(1, bytes_each))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def centre_in_regions(xy: Tensor, targets: PaddedTargets, memory_budget: int = MEMORY_BUDGET) -> Tensor:
    """``[B, P]`` bool: the point ``xy [P, 2]`` (or ``[B, P, 2]``) lies strictly inside an ignore box of its image."""
    images, regions = targets.ignore_valid.shape
    found = torch.zeros(images, xy.shape[-2], dtype=torch.bool, device=xy.device)
    low, high = targets.ignore_boxes[:, None, :, :2], targets.ignore_boxes[:, None, :, 2:]
    for part in chunks(xy.shape[-2] if regions else 0, images * regions * 6, memory_budget):
        point = xy[..., part, None, :]
        inside = ((point > low) & (point < high)).all(-1)
        found[:, part] = (inside & targets.ignore_valid[:, None]).any(-1)
    return found


def covered_by_regions(boxes: Tensor, targets: PaddedTargets, share: float, memory_budget: int = MEMORY_BUDGET) -> Tensor:
    """``[B, P]`` bool: an ignore box covers more than ``share`` of the area of the box (``[P, 4]`` or ``[B, P, 4]``)."""
    images, regions = targets.ignore_valid.shape
    found = torch.zeros(images, boxes.shape[-2], dtype=torch.bool, device=boxes.device)
    if not regions:
        return found
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    for part in chunks(boxes.shape[-2], images * regions * 10 * boxes.element_size(), memory_budget):
        own, region = boxes[..., part, None, :], targets.ignore_boxes[:, None]
        low, high = torch.maximum(own[..., :2], region[..., :2]), torch.minimum(own[..., 2:], region[..., 2:])
        common = (high - low).clamp(min=0).prod(-1)
        over = (common > share * area[..., part, None]) & targets.ignore_valid[:, None]
        found[:, part] = over.any(-1)
    return found
