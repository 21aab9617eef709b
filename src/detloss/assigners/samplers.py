"""Samplers: a part of an assignment to learn from, so that a few positives are not lost among many thousand negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from detloss.checks import check_at_least, check_float, check_non_negative, shape_of
from detloss.registry import options
from detloss.types import Assignment

__all__ = [
    "BalancedSampler",
    "HardExampleSampler",
    "HardNegativeSampler",
    "PseudoSampler",
    "QuotaSampler",
    "RandomSampler",
    "Sampler",
]

# Random numbers are multiples of 1 / RESOLUTION.
RESOLUTION = 2**24


class Sampler:
    """Base of all samplers: ``sampled = sampler(assignment, losses)``.

    The result is an assignment in which everything that was not chosen is ignored. Nothing that the assigner ignored is
    ever chosen. Images are sampled one by one, in tensors of a fixed shape, and no value is read by the host.
    """

    def __call__(self, assignment: Assignment, losses: Tensor | None = None) -> Assignment:
        """Choose from ``assignment`` (B images, P priors).

        Args:
            assignment: what an assigner decided.
            losses: ``[B, P]``, how hard each prior is, for samplers that look for hard ones.
        """
        raise TypeError(f"{type(self).__name__} must implement __call__(assignment, losses)")

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in options(type(self)))
        return f"{type(self).__name__}({shown})"


class PseudoSampler(Sampler):
    """Chooses everything: the assignment as it is."""

    def __call__(self, assignment: Assignment, losses: Tensor | None = None) -> Assignment:
        """``assignment`` itself."""
        return assignment


class QuotaSampler(Sampler):
    """Base of samplers that choose at most int(num · pos_fraction) positives and fill up to ``num`` with negatives.

    Fewer positives make room for more negatives, as in torchvision's ``BalancedPositiveNegativeSampler``; fewer negatives
    leave the sample smaller.

    Args:
        num: size of the sample of an image.
        pos_fraction: largest share of positives in it, in [0, 1].
    """

    def __init__(self, num: int, pos_fraction: float) -> None:
        where = type(self).__name__
        check_at_least(where, 1, num=num)
        check_non_negative(where, pos_fraction=pos_fraction)
        if pos_fraction > 1:
            raise ValueError(f"{where}: pos_fraction must be a number in [0, 1]; got {pos_fraction!r}")
        self.num = int(num)
        self.pos_fraction = pos_fraction

    def _sample(self, assignment: Assignment, order: Tensor, most: int | None = None) -> Assignment:
        """The positives of the largest ``order [B, P]`` up to their share, then the negatives of the largest up to ``num``."""
        positive = _largest(assignment.positive, order, int(self.num * self.pos_fraction), most)
        negative = _largest(assignment.negative, order, self.num - positive.sum(1, keepdim=True), most)
        return _only(assignment, positive | negative)


class RandomSampler(QuotaSampler):
    """At most int(num · pos_fraction) positives and as many negatives as fill up to ``num``, per image, at random.

    All positives of an image are equally likely, and all negatives, without replacement. Fewer positives make room for
    more negatives, as in torchvision's ``BalancedPositiveNegativeSampler``; fewer negatives leave the sample smaller.
    Source: Ren et al. 2015, arXiv:1506.01497.

    Args:
        num: size of the sample of an image.
        pos_fraction: largest share of positives in it, in [0, 1].
        generator: source of the random numbers, for samples that can be repeated; ``None``: torch's own. One on the CPU
            gives the same sample on every device.
    """

    def __init__(self, num: int = 256, pos_fraction: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__(num, pos_fraction)
        self.generator = generator

    @torch.no_grad()
    def __call__(self, assignment: Assignment, losses: Tensor | None = None) -> Assignment:
        """A sample of ``assignment``; ``losses`` are not used."""
        return self._sample(assignment, self._order(assignment), self.num)

    def _order(self, assignment: Assignment) -> Tensor:
        """``[B, P]`` numbers, the largest of which are chosen among positives and among negatives."""
        return self._uniform(assignment)

    def _uniform(self, assignment: Assignment) -> Tensor:
        """``[B, P]`` random numbers in [0, 1)."""
        device = assignment.gt_index.device
        source = device if self.generator is None else self.generator.device
        return torch.rand(assignment.gt_index.shape, generator=self.generator, device=source).to(device)


class BalancedSampler(RandomSampler):
    """As many of both kinds as :class:`RandomSampler`, but spread: positives over objects, negatives over IoUs.

    Positives are dealt out to the objects of an image in turn, one each until none is left, so that a large object with
    hundreds of anchors does not take the whole sample. Negatives are dealt out likewise to ``iou_bins`` bins of equal width
    between 0 and the largest ``quality`` of a negative of the image, so that those which overlap an object a little are
    not lost among those far away. Within an object and within a bin all are equally likely.

    Source: Pang et al. 2019, arXiv:1904.02701 (mmdet's ``InstanceBalancedPosSampler`` and ``IoUBalancedNegSampler``).

    Args:
        num: see :class:`RandomSampler`.
        pos_fraction: see :class:`RandomSampler`.
        by_object: spread positives over objects; else uniform.
        iou_bins: number of bins; 1 samples negatives uniformly. More than 1 needs an assignment with ``quality``.
        generator: see :class:`RandomSampler`.
    """

    def __init__(
        self,
        num: int = 256,
        pos_fraction: float = 0.5,
        by_object: bool = True,
        iou_bins: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(num, pos_fraction, generator)
        check_at_least("BalancedSampler", 1, iou_bins=iou_bins)
        self.by_object = by_object
        self.iou_bins = int(iou_bins)

    def _order(self, assignment: Assignment) -> Tensor:
        own = assignment.gt_index if self.by_object else torch.zeros_like(assignment.gt_index)
        bins = self._iou_bin(assignment) if self.iou_bins > 1 else torch.zeros_like(own)
        # Negatives are in the groups from 0, objects in those after them.
        group = torch.where(assignment.positive, own + self.iou_bins, bins)
        group = torch.where(assignment.positive | assignment.negative, group, -1)
        # Who comes first in a turn is drawn anew: the number that decided the turn is the smaller, the larger the group.
        return self._uniform(assignment) - _turn(group, self._uniform(assignment))

    def _iou_bin(self, assignment: Assignment) -> Tensor:
        """``[B, P]`` int64 bin of the quality of every negative."""
        if assignment.quality is None:
            raise ValueError(
                "BalancedSampler: iou_bins > 1 needs an assignment with quality, such as that of MaxIoUAssigner; got None"
            )
        quality = torch.where(assignment.negative, assignment.quality, 0.0)
        largest = quality.amax(1, keepdim=True) if quality.shape[1] else quality[:, :1]
        share = quality / torch.where(largest > 0, largest, 1.0)
        return (share * self.iou_bins).long().clamp(0, self.iou_bins - 1)


class HardExampleSampler(QuotaSampler):
    """As many of both kinds as :class:`RandomSampler`, but those of the largest losses; the first ones among equals.

    A loss that is NaN counts as the smallest. Source: OHEM, Shrivastava et al. 2016, arXiv:1604.03540.

    Args:
        num: size of the sample of an image.
        pos_fraction: largest share of positives in it, in [0, 1].
    """

    def __init__(self, num: int = 256, pos_fraction: float = 0.5) -> None:
        super().__init__(num, pos_fraction)

    @torch.no_grad()
    def __call__(self, assignment: Assignment, losses: Tensor | None = None) -> Assignment:
        """The priors of the largest ``losses [B, P]``."""
        return self._sample(assignment, _hardness("HardExampleSampler", assignment, losses))


class HardNegativeSampler(Sampler):
    """All positives, and ``neg_pos_ratio`` times as many negatives per image: those of the largest losses.

    The first ones win among equals; a loss that is NaN counts as the smallest. Source: SSD, Liu et al. 2016,
    arXiv:1512.02325.

    Args:
        neg_pos_ratio: negatives per positive; the product is rounded down.
        min_negatives: at least so many in every image where there are so many. With 0 (SSD, torchvision) an image without
            positives teaches nothing.
    """

    def __init__(self, neg_pos_ratio: float = 3.0, min_negatives: int = 0) -> None:
        check_non_negative("HardNegativeSampler", neg_pos_ratio=neg_pos_ratio, min_negatives=min_negatives)
        self.neg_pos_ratio = neg_pos_ratio
        self.min_negatives = int(min_negatives)

    @torch.no_grad()
    def __call__(self, assignment: Assignment, losses: Tensor | None = None) -> Assignment:
        """All positives and the negatives of the largest ``losses [B, P]``."""
        hard = _hardness("HardNegativeSampler", assignment, losses)
        positive = assignment.positive
        wanted = (positive.sum(1, keepdim=True) * self.neg_pos_ratio).floor().clamp(min=self.min_negatives)
        return _only(assignment, positive | _largest(assignment.negative, hard, wanted))


def _only(assignment: Assignment, chosen: Tensor) -> Assignment:
    """The assignment of the ``chosen [B, P]`` positives and negatives; all others are ignored."""
    gt_index = torch.where(chosen, assignment.gt_index, -1)
    return Assignment(gt_index, ~chosen, assignment.quality)


def _largest(candidate: Tensor, order: Tensor, limit: Tensor | int, most: int | None = None) -> Tensor:
    """``[B, P]`` bool: per image the candidates of the largest finite ``order``, at most ``limit`` (an int or ``[B, 1]``).

    The first ones win among equals. Where no limit is above ``most``, saying so saves the sorting, and any win among equals.
    """
    order = torch.where(candidate, order, float("-inf"))
    if most is None:
        index = order.argsort(dim=1, descending=True, stable=True)
    else:
        index = order.topk(min(most, order.shape[1]), dim=1).indices
    within = torch.arange(index.shape[1], device=index.device) < limit
    return torch.zeros_like(candidate).scatter(1, index, within.expand_as(index)) & candidate


def _hardness(where: str, assignment: Assignment, losses: Tensor | None) -> Tensor:
    """``losses`` checked, without gradient, and finite."""
    if losses is None:
        raise TypeError(f"{where}: losses [B, P] are needed to know which priors are hard; got None")
    check_float(where, "losses", losses)
    if losses.shape != assignment.gt_index.shape:
        expected = shape_of(assignment.gt_index)
        raise ValueError(f"{where}: losses must have the shape [B, P] of the assignment, {expected}; got {shape_of(losses)}")
    return losses.detach().nan_to_num(nan=torch.finfo(losses.dtype).min)


def _turn(group: Tensor, random: Tensor) -> Tensor:
    """``[B, P]`` how many of the same ``group`` come before, in random order: the turn in which each is dealt out."""
    shuffled = (group * RESOLUTION + (random * RESOLUTION).long()).argsort(dim=1)
    sorted_group = group.gather(1, shuffled)
    place = torch.arange(group.shape[1], device=group.device).expand_as(group)
    new = torch.ones_like(group, dtype=torch.bool)
    new[:, 1:] = sorted_group[:, 1:] != sorted_group[:, :-1]
    start = torch.where(new, place, 0).cummax(1).values if group.shape[1] else place
    return torch.zeros_like(group).scatter(1, shuffled, place - start)
