"""``effdet.loss`` and its likes here: the same numbers and gradients, and its defects mended."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compat.sides import DTYPES, assert_same, peer, random, slope_of
from torch import Tensor

from detloss.compat.effdet import loss

CLASSES, ANCHORS = 3, 2
Levels = list[Tensor]


def theirs(name: str) -> Any:
    return getattr(peer("effdet").loss, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 1.5), (0.25, 2.0), (0.6, 0.0)])
@pytest.mark.parametrize("normalizer", [1.0, 7.0, torch.tensor(4.0)])
def test_focal_losses(normalizer: float | Tensor, alpha: float, gamma: float, dtype: torch.dtype) -> None:
    for seed in range(3):
        g = random(seed)
        logits = 2 * torch.randn(2, 3, 4, 6, generator=g, dtype=torch.float64).to(dtype)
        hard, soft = torch.randint(2, logits.shape, generator=g), torch.rand(logits.shape, generator=g).to(dtype)
        options = (alpha, gamma, normalizer)
        assert_same(
            lambda x, t=hard, o=options: loss.focal_loss_legacy(x, t, *o),
            lambda x, t=hard, o=options: theirs("focal_loss_legacy")(x, t, *o), logits,
        )  # fmt: skip
        for target, smoothing in ((hard, 0.0), (hard, 0.01), (soft, 0.1)):
            assert_same(
                lambda x, t=target, s=smoothing, o=options: loss.new_focal_loss(x, t, *o, s),
                lambda x, t=target, s=smoothing, o=options: theirs("new_focal_loss")(x, t, *o, s), logits,
            )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size_average", [True, False])
@pytest.mark.parametrize("point", [1.0, 0.1, 1 / 9])
@pytest.mark.parametrize("name", ["huber_loss", "smooth_l1_loss"])
def test_box_losses(name: str, point: float, size_average: bool, dtype: torch.dtype) -> None:
    for seed in range(3):
        g = random(seed)
        pred, target = (torch.randn(6, 4, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
        for weights in (None, torch.rand(6, 4, generator=g).to(dtype), torch.rand(6, 1, generator=g).to(dtype), target > 0):
            options: tuple[Any, ...] = (point, weights, size_average)
            assert_same(
                lambda x, t=target, o=options: getattr(loss, name)(x, t, *o),
                lambda x, t=target, o=options: theirs(name)(x, t, *o), pred,
            )  # fmt: skip


def test_a_small_beta_is_l1() -> None:
    pred, target = torch.tensor([5e-6, 1.0]), torch.zeros(2)
    assert torch.equal(loss.smooth_l1_loss(pred, target, 9e-6), theirs("smooth_l1_loss")(pred, target, 9e-6))


def batch(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Levels, Levels, Levels, Levels, Tensor]:
    """Outputs and targets of two images on two levels with 2 anchors a cell; some anchors are background, some ignored."""
    g = random(seed)
    outputs: tuple[Levels, Levels, Levels, Levels] = ([], [], [], [])
    for size in ((3, 4), (2, 2)):
        outputs[0].append(2 * torch.randn(2, ANCHORS * CLASSES, *size, generator=g, dtype=torch.float64))
        outputs[1].append(torch.randn(2, ANCHORS * 4, *size, generator=g, dtype=torch.float64))
        label = torch.randint(-2, CLASSES, (2, *size, ANCHORS), generator=g)
        delta = torch.randn(2, *size, ANCHORS, 4, generator=g, dtype=torch.float64) + 0.01
        outputs[2].append(label)
        outputs[3].append(torch.where((label >= 0).unsqueeze(-1), delta, 0.0).flatten(3))
    cls, box, label, delta = ([x.to(dtype) if x.is_floating_point() else x for x in kind] for kind in outputs)
    return cls, box, label, delta, torch.stack([(x >= 0).flatten(1).sum(1) for x in label]).sum(0)


def options(**changed: Any) -> SimpleNamespace:
    made = {"num_classes": CLASSES, "alpha": 0.25, "gamma": 1.5, "delta": 0.1, "box_loss_weight": 50.0,
            "label_smoothing": 0.0, "legacy_focal": False, "jit_loss": False}  # fmt: skip
    return SimpleNamespace(**{**made, **changed})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_criterion(seed: int, strict: bool, legacy: bool, smoothing: float) -> None:
    config = options(label_smoothing=smoothing, legacy_focal=legacy, jit_loss=True)
    cls, box, *truth = batch(seed)
    mine, other = (
        loss.DetectionLoss(config, strict=strict),
        theirs("DetectionLoss")(options(**{**vars(config), "jit_loss": False})),
    )
    for part in (0, 1):  # the total and the class loss
        assert_same(
            lambda x, p=part: mine([x, *cls[1:]], box, *truth)[p], lambda x, p=part: other([x, *cls[1:]], box, *truth)[p], cls[0]
        )
    for part in (0, 2):  # the total and the box loss
        assert_same(
            lambda x, p=part: mine(cls, [x, *box[1:]], *truth)[p], lambda x, p=part: other(cls, [x, *box[1:]], *truth)[p], box[0]
        )


def test_criterion_by_hand() -> None:
    """1 anchor, 1 class, logit 0, label 0, a difference of 1 in one delta: n = 2."""
    total, cls, box = loss.loss_fn(
        [torch.zeros(1, 1, 1, 1)], [torch.tensor([1.0, 2.0, 3.0, 5.0]).view(1, 4, 1, 1)], [torch.zeros(1, 1, 1, 1).long()],
        [torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)], torch.tensor([1]), 1, 0.25, 2.0, 0.1, 50.0,
    )  # fmt: skip
    assert cls.item() == pytest.approx(0.25 * math.log(2) / 4 / 2)
    assert box.item() == pytest.approx(0.1 * (1 - 0.05) / 8)
    assert total.item() == pytest.approx(cls.item() + 50 * box.item())


# Its defects.


def test_a_delta_of_0_is_learnt() -> None:
    cls, box, label, delta, count = batch(0)
    exact = [torch.zeros_like(x) for x in delta]  # every anchor fits its object
    arguments = (CLASSES, 0.25, 1.5, 0.1, 50.0)
    assert theirs("loss_fn")(cls, box, label, exact, count, *arguments)[2] == 0
    assert loss.loss_fn(cls, box, label, exact, count, *arguments, strict=True)[2] == 0
    mine = loss.loss_fn(cls, box, label, exact, count, *arguments)[2]
    deltas = torch.cat([x.movedim(1, -1).reshape(-1, 4) for x in box])
    positive = torch.cat([x.flatten() for x in label]) >= 0
    expected = torch.nn.functional.huber_loss(deltas, 0 * deltas, reduction="none", delta=0.1)[positive].sum() / (
        4 * (count.sum() + 1)
    )
    torch.testing.assert_close(mine, expected)


def test_the_worst_logit_of_the_legacy_loss_costs_something() -> None:
    logit, one = torch.tensor([[-100.0]]), torch.ones(1, 1)
    assert theirs("focal_loss_legacy")(logit, one, 0.25, 2.0, 1.0) == 0
    assert loss.focal_loss_legacy(logit, one, 0.25, 2.0, 1.0).item() == pytest.approx(25.0)


def test_certain_logits_have_finite_gradients() -> None:
    logit, one = torch.tensor([[60.0]]), torch.ones(1, 1)
    assert slope_of(lambda x: theirs("new_focal_loss")(x, one, 0.25, 0.5, 1.0, 0.0), logit).isnan()
    assert slope_of(lambda x: loss.new_focal_loss(x, one, 0.25, 0.5, 1.0, 0.0), logit).abs() < 1e-30


def test_nothing_costs_0_and_ignored_anchors_may_be_anything() -> None:
    empty = torch.zeros(0, 4)
    assert theirs("huber_loss")(empty, empty).isnan() and loss.huber_loss(empty, empty) == 0
    cls, box, label, delta, count = batch(0)
    spoilt = cls[0].movedim(1, -1).unflatten(-1, (ANCHORS, CLASSES))
    spoilt = torch.where((label[0] == -2).unsqueeze(-1), math.nan, spoilt).flatten(3).movedim(-1, 1)
    arguments = (CLASSES, 0.25, 1.5, 0.1, 50.0)
    mine = loss.loss_fn([spoilt, cls[1]], box, label, delta, count, *arguments)[0]
    torch.testing.assert_close(mine, loss.loss_fn(cls, box, label, delta, count, *arguments)[0])
    assert theirs("loss_fn")([spoilt, cls[1]], box, label, delta, count, *arguments)[0].isnan()
