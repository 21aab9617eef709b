"""Samplers choose exactly as many priors as they say, each as often as the others, and never one that is ignored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fcos_cases import HostReads
from torch import Tensor

from detloss.assigners.samplers import (
    BalancedSampler,
    HardExampleSampler,
    HardNegativeSampler,
    PseudoSampler,
    RandomSampler,
    Sampler,
)
from detloss.types import Assignment

SAMPLERS = [
    PseudoSampler(),
    RandomSampler(12, 0.5),
    BalancedSampler(12, 0.5),
    HardExampleSampler(12, 0.5),
    HardNegativeSampler(2.0),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_assignment(images: int = 3, priors: int = 60, objects: int = 4, seed: int = 0) -> Assignment:
    """Positives of some objects, ignored ones and negatives, with a quality."""
    kind = torch.rand(images, priors, generator=seeded(seed))
    owner = torch.randint(objects, (images, priors), generator=seeded(seed + 1))
    quality = torch.rand(images, priors, generator=seeded(seed + 2))
    return Assignment(torch.where(kind < 0.3, owner, -1), (kind > 0.7) & (kind >= 0.3), quality)


def one_image(gt_index: list[int], quality: list[float] | None = None, images: int = 1) -> Assignment:
    """No prior is ignored but those of gt_index −2; the same for all ``images``."""
    index = torch.tensor([gt_index]).expand(images, -1)
    return Assignment(index.clamp(min=-1), index == -2, None if quality is None else torch.tensor([quality]))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_a_sample_is_a_part_of_the_assignment(sampler: Sampler, seed: int) -> None:
    given = random_assignment(seed=seed)
    before = [x.clone() for x in (given.gt_index, given.ignore)]
    got = sampler(given, torch.rand(3, 60, generator=seeded(seed)))
    assert not bool((got.positive & ~given.positive).any()) and not bool((got.negative & ~given.negative).any())
    assert bool((got.positive | got.negative | got.ignore).all()) and not bool((got.positive & got.ignore).any())
    assert torch.equal(got.gt_index[got.positive], given.gt_index[got.positive])
    assert got.quality is given.quality
    assert all(torch.equal(a, b) for a, b in zip(before, (given.gt_index, given.ignore), strict=True))


@pytest.mark.parametrize("kind", [RandomSampler, BalancedSampler, HardExampleSampler])
@pytest.mark.parametrize("num", [1, 2, 8, 25, 60, 1000])
@pytest.mark.parametrize("fraction", [0, 0.25, 0.5, 1])
def test_counts_are_those_of_torchvision(kind: type[Sampler], num: int, fraction: float) -> None:
    utils = pytest.importorskip("torchvision.models.detection._utils")
    given = random_assignment(5, seed=num)
    codes = torch.where(given.ignore, -1, (given.gt_index + 1).clamp(0, 1))
    positive, negative = utils.BalancedPositiveNegativeSampler(num, fraction)(list(codes))
    got = kind(num, fraction)(given, torch.rand(5, 60))  # type: ignore[call-arg]
    assert got.positive.sum(1).tolist() == [int(mask.sum()) for mask in positive]
    assert got.negative.sum(1).tolist() == [int(mask.sum()) for mask in negative]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_reads_no_value_on_the_host(sampler: Sampler) -> None:
    given, losses = random_assignment(), torch.rand(3, 60)
    with HostReads() as reads:
        sampler(given, losses)
    assert reads.found == []


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_no_images_no_priors_and_only_one_kind(sampler: Sampler) -> None:
    for shape in ((0, 5), (2, 0)):
        empty = Assignment(torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool), torch.zeros(shape))
        assert sampler(empty, torch.zeros(shape)).gt_index.shape == shape
    for code, name in ((-2, "ignore"), (-1, "negative"), (0, "positive")):
        got = sampler(one_image([code] * 40, [0.0] * 40), torch.zeros(1, 40))
        assert name == "positive" or got.num_pos == 0
        assert name == "negative" or not bool(got.negative.any())


@pytest.mark.parametrize("options", [{}, {"by_object": False, "iou_bins": 1}], ids=["random", "balanced without balance"])
def test_every_prior_is_equally_likely(options: dict[str, Any]) -> None:
    images, positives, negatives = 40000, 8, 24
    index = torch.tensor([0, 1, 0, 0, 0, 0, 2, 0] + [-1] * negatives).expand(images, -1)
    given = Assignment(index, torch.zeros_like(index, dtype=torch.bool), torch.rand(images, 32))
    sampler = BalancedSampler(10, 0.4, generator=seeded(), **options) if options else RandomSampler(10, 0.4, seeded())
    got = sampler(given)
    for mask, count, size in ((got.positive[:, :positives], positives, 4), (got.negative[:, positives:], negatives, 6)):
        share = size / count
        tolerance = 5 * math.sqrt(share * (1 - share) / images)  # five standard deviations
        assert (mask.double().mean(0) - share).abs().max() < tolerance
        # Two priors together as often as without replacement.
        together = (mask[:, 0] & mask[:, 1]).double().mean()
        pair = share * (size - 1) / (count - 1)
        assert (together - pair).abs() < 5 * math.sqrt(pair * (1 - pair) / images)


def test_a_generator_repeats_the_sample() -> None:
    given = random_assignment(8, 500)
    first, again, other = (RandomSampler(64, 0.5, seeded(s))(given) for s in (3, 3, 4))
    assert torch.equal(first.gt_index, again.gt_index) and torch.equal(first.ignore, again.ignore)
    assert not torch.equal(first.ignore, other.ignore)
    sampler = RandomSampler(64, 0.5, seeded(3))
    assert not torch.equal(sampler(given).ignore, sampler(given).ignore)


def test_images_are_sampled_differently() -> None:
    index = torch.full((2, 1000), -1)
    got = RandomSampler(100, 0.5, seeded())(Assignment(index, index > 0))
    assert not torch.equal(got.ignore[0], got.ignore[1])


def test_positives_are_spread_over_objects() -> None:
    counts = (50, 7, 2, 1)  # positives per object; 12 places: 5 + 4 + 2 + 1 or 4 + 5 + 2 + 1
    index = [g for g, n in enumerate(counts) for _ in range(n)]
    images = 4000
    got = BalancedSampler(24, 0.5, iou_bins=1, generator=seeded())(one_image(index + [-1] * 30, images=images))
    assert bool((got.negative.sum(1) == 12).all())
    per_object = torch.stack([(got.gt_index == g).sum(1) for g in range(4)], dim=1)
    five_four = (per_object == torch.tensor([5, 4, 2, 1])).all(1)
    assert bool((five_four | (per_object == torch.tensor([4, 5, 2, 1])).all(1)).all())
    assert abs(five_four.double().mean() - 0.5) < 5 * math.sqrt(0.25 / images)


def test_within_an_object_every_positive_is_equally_likely() -> None:
    images = 20000
    given = one_image([0] * 10 + [1] * 4 + [-1], images=images)
    share = BalancedSampler(8, 0.5, iou_bins=1, generator=seeded())(given).positive.double().mean(0)
    assert (share[:10] - 2 / 10).abs().max() < 5 * math.sqrt(0.16 / images)
    assert (share[10:14] - 2 / 4).abs().max() < 5 * math.sqrt(0.25 / images)


def test_every_object_is_equally_likely_to_come_first() -> None:
    images = 20000
    got = BalancedSampler(2, 0.5, iou_bins=1, generator=seeded())(one_image([0] * 20 + [1, 2, 2, 2, -1], images=images))
    chosen = torch.bincount(got.gt_index[got.positive], minlength=3).double() / images
    assert (chosen - 1 / 3).abs().max() < 5 * math.sqrt(2 / 9 / images)


def test_negatives_are_spread_over_bins_of_iou() -> None:
    # Bins of [0, 0.1), [0.1, 0.2) and [0.2, 0.3]: 80, 10 and 3 negatives for 15 places: 6 + 6 + 3.
    quality = torch.cat(
        (torch.linspace(0, 0.09, 80), torch.linspace(0.11, 0.19, 10), torch.tensor([0.25, 0.29, 0.3]), torch.ones(5))
    )
    given = one_image([-1] * 93 + [0] * 3 + [-2] * 2, quality.tolist())
    got = BalancedSampler(18, 3 / 18, generator=seeded())(given).negative[0]
    assert [int(part.sum()) for part in got.split((80, 10, 8))] == [6, 6, 3]
    even = BalancedSampler(18, 3 / 18, iou_bins=1, generator=seeded())(given).negative[0]
    assert even[:80].sum() > 9 and even.sum() == 15


def test_bins_of_iou_need_a_quality() -> None:
    with pytest.raises(ValueError, match="BalancedSampler: iou_bins > 1 needs an assignment with quality"):
        BalancedSampler()(one_image([0, -1]))


def ssd_negatives(losses: Tensor, positive: Tensor, ratio: int) -> Tensor:
    """The negatives of SSD image by image: sorted losses, as many as ``ratio`` times the positives."""
    chosen = torch.zeros_like(positive)
    for image, own in enumerate(positive.tolist()):
        by_loss = sorted((p for p, is_pos in enumerate(own) if not is_pos), key=lambda p: -float(losses[image, p]))
        for p in by_loss[: ratio * sum(own)]:
            chosen[image, p] = True
    return chosen


@pytest.mark.parametrize("ratio", [1, 3, 100])
@pytest.mark.parametrize("step", [None, 0.25], ids=["no ties", "ties"])
def test_hard_negatives_are_those_of_ssd(ratio: int, step: float | None) -> None:
    for seed in range(5):
        given = random_assignment(seed=seed)
        given = Assignment(given.gt_index, torch.zeros_like(given.ignore))
        losses = torch.rand(3, 60, generator=seeded(seed))
        losses = losses if step is None else (losses / step).round() * step
        got = HardNegativeSampler(ratio)(given, losses)
        assert torch.equal(got.positive, given.positive)
        assert torch.equal(got.negative, ssd_negatives(losses, given.positive, ratio))


def test_hard_negatives_of_an_image_without_positives() -> None:
    given, losses = one_image([-1, -1, -2, -1]), torch.tensor([[1.0, 3.0, 9.0, 2.0]])
    assert not bool(HardNegativeSampler()(given, losses).negative.any())
    assert HardNegativeSampler(min_negatives=2)(given, losses).negative.tolist() == [[False, True, False, True]]


def test_hard_examples_have_the_largest_losses_and_nan_the_smallest() -> None:
    nan, inf = float("nan"), float("inf")
    given = one_image([0, 1, 0, -1, -1, -1, -1, -2])
    losses = torch.tensor([[-2.0, nan, -1.0, 5.0, nan, inf, -inf, inf]], requires_grad=True)
    got = HardExampleSampler(4, 0.5)(given, losses)
    assert got.positive.tolist() == [[True, False, True, *[False] * 5]]
    assert got.negative.tolist() == [[False, False, False, True, False, True, False, False]]
    assert HardExampleSampler(8, 0.5)(given, losses).negative.sum() == 4


@pytest.mark.parametrize("sampler", [HardNegativeSampler(), HardExampleSampler()], ids=repr)
def test_hard_samplers_need_losses_of_every_prior(sampler: Sampler) -> None:
    name = type(sampler).__name__
    with pytest.raises(TypeError, match=f"{name}: losses"):
        sampler(one_image([0, -1]))
    with pytest.raises(ValueError, match=rf"{name}: losses must have the shape .* \[1, 2\]; got \[2\]"):
        sampler(one_image([0, -1]), torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomSampler(0), "RandomSampler: num must be a finite number >= 1; got 0"),
        (lambda: RandomSampler(pos_fraction=-0.5), "RandomSampler: pos_fraction must be a finite number >= 0"),
        (lambda: BalancedSampler(pos_fraction=1.5), r"BalancedSampler: pos_fraction must be a number in \[0, 1\]; got 1.5"),
        (lambda: BalancedSampler(iou_bins=0), "BalancedSampler: iou_bins must be a finite number >= 1; got 0"),
        (lambda: HardNegativeSampler(-1), "HardNegativeSampler: neg_pos_ratio must be a finite number >= 0; got -1"),
    ],
)
def test_wrong_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
