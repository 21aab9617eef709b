"""The losses of masks in autotimm and here: the same numbers and gradients, its published tests, and the defects mended."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from compat.sides import DTYPES, assert_same, peer, random, slope_of
from torch import Tensor

from detloss.compat.autotimm import CombinedSegmentationLoss, DiceLoss, FocalLossPixelwise, MaskLoss, TverskyLoss

REDUCTIONS = ("none", "mean", "sum")
CLASSES = 4


def theirs(name: str) -> Any:
    return getattr(peer("autotimm").losses, name)


def pixels(seed: int, dtype: torch.dtype, ignore_index: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits [2, 4, 5, 6] and class indices [2, 5, 6], a third of them ignored if so wished."""
    g = random(seed)
    logits = 2 * torch.randn(2, CLASSES, 5, 6, generator=g, dtype=torch.float64)
    target = torch.randint(CLASSES, (2, 5, 6), generator=g)
    if ignore_index is not None:
        target = torch.where(torch.rand(target.shape, generator=g) < 0.3, ignore_index, target)
    return logits.to(dtype), target


LOSSES: dict[str, tuple[type, dict[str, Any]]] = {
    "dice": (DiceLoss, {"num_classes": CLASSES}),
    "dice-smooth": (DiceLoss, {"num_classes": CLASSES, "smooth": 0.1}),
    "focal": (FocalLossPixelwise, {}),
    "focal-options": (FocalLossPixelwise, {"alpha": 0.6, "gamma": 1.5}),
    "tversky": (TverskyLoss, {"num_classes": CLASSES}),
    "tversky-options": (TverskyLoss, {"num_classes": CLASSES, "alpha": 0.3, "beta": 0.7, "smooth": 0.5}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [255, -1, None])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_classes(name: str, ignore_index: int | None, reduction: str, dtype: torch.dtype) -> None:
    make, options = LOSSES[name]
    options = {**options, "reduction": reduction, **({} if ignore_index is None else {"ignore_index": ignore_index})}
    mine, other = make(**options), theirs(make.__name__)(**options)
    for seed in range(2):
        logits, target = pixels(seed, dtype, None if "focal" in name and reduction == "none" else ignore_index)
        assert_same(lambda x, t=target: mine(x, t), lambda x, t=target: other(x, t), logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignore_index", [255, 1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("ce", "dice"), [(1.0, 1.0), (0.5, 2.0), (1.0, 0.0)])
def test_combined_loss(ce: float, dice: float, weighted: bool, ignore_index: int, dtype: torch.dtype) -> None:
    weights = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=dtype) if weighted else None
    options: dict[str, Any] = {"ce_weight": ce, "dice_weight": dice, "ignore_index": ignore_index, "class_weights": weights}
    mine, other = CombinedSegmentationLoss(CLASSES, **options), theirs("CombinedSegmentationLoss")(CLASSES, **options)
    assert list(mine.state_dict()) == list(other.state_dict())
    for seed in range(2):
        logits, target = pixels(seed, dtype, ignore_index)
        assert_same(lambda x, t=target: mine(x, t), lambda x, t=target: other(x, t), logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pos_weight", [None, 3.0])
@pytest.mark.parametrize("shape", [(3, 5, 6), (3, 1, 5, 6)])
def test_mask_loss(shape: tuple[int, ...], pos_weight: float | None, reduction: str, dtype: torch.dtype) -> None:
    mine, other = MaskLoss(reduction, pos_weight), theirs("MaskLoss")(reduction, pos_weight)
    for seed in range(2):
        g = random(seed)
        pred = 2 * torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        for target in (torch.randint(2, shape, generator=g).to(dtype), torch.rand(3, 5, 6, generator=g).to(dtype)):
            assert_same(lambda x, t=target: mine(x, t), lambda x, t=target: other(x, t), pred)


# What autotimm's own tests of these losses assert.


def test_dice_loss_of_a_perfect_prediction() -> None:
    """3 classes of 2 pixels each with a logit of 10: p of the own class is e^10/(e^10 + 2), a loss of about 2(1 − p)/5."""
    target = torch.tensor([[[0, 1, 2], [1, 2, 0]]])
    logits = 10.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    p = math.exp(10) / (math.exp(10) + 2)
    assert DiceLoss(3)(logits, target).item() == pytest.approx(1 - (4 * p + 1) / (2 + 2 + 1), rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_and_bounds(name: str) -> None:
    make, options = LOSSES[name]
    logits, target = pixels(0, torch.float32, 255)
    values = {reduction: make(**options, reduction=reduction)(logits, target) for reduction in REDUCTIONS}
    assert values["mean"].shape == values["sum"].shape == () and 0 <= values["mean"] <= (9 if "focal" in name else 1)
    assert values["none"].shape == ((60,) if "focal" in name else (2, CLASSES))
    torch.testing.assert_close(values["none"].sum(), values["sum"])


def test_a_label_beyond_the_classes_counts_as_the_last_as_there() -> None:
    logits, target = pixels(0, torch.float32)
    beyond = torch.where(target == CLASSES - 1, CLASSES + 1, target)
    torch.testing.assert_close(DiceLoss(CLASSES)(logits, beyond), theirs("DiceLoss")(CLASSES)(logits, target))
    with pytest.raises(ValueError, match="class indices must be"):
        FocalLossPixelwise()(logits, beyond)


# Its defects.


def test_a_batch_that_is_ignored_costs_0() -> None:
    logits, target = pixels(0, torch.float32)[0], torch.full((2, 5, 6), 255)
    assert theirs("FocalLossPixelwise")()(logits, target).isnan()
    assert theirs("CombinedSegmentationLoss")(CLASSES)(logits, target).isnan()
    for loss in (FocalLossPixelwise(), CombinedSegmentationLoss(CLASSES), DiceLoss(CLASSES), TverskyLoss(CLASSES)):
        assert loss(logits, target) == 0 and (slope_of(lambda x, f=loss: f(x, target), logits) == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_logits_may_be_anything(name: str) -> None:
    make, options = LOSSES[name]
    logits, target = pixels(0, torch.float32)
    target[0, 0, 0] = 255
    spoilt = logits.clone()
    spoilt[0, :, 0, 0] = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    loss = make(**options)
    torch.testing.assert_close(loss(spoilt, target), loss(logits, target))
    assert slope_of(lambda x: loss(x, target), spoilt).isfinite().all()


def test_pixelwise_focal_loss_keeps_the_pixels_that_are_ignored() -> None:
    logits, target = pixels(0, torch.float32)
    target[:, 0] = 255
    loss = FocalLossPixelwise(reduction="none")(logits, target)
    assert loss.shape == (60,) and (loss.view(2, 5, 6)[:, 0] == 0).all()
    torch.testing.assert_close(
        loss.view(2, 5, 6)[:, 1:].reshape(-1), theirs("FocalLossPixelwise")(reduction="none")(logits, target)
    )


def test_mask_loss_of_nothing_and_of_other_shapes() -> None:
    empty = torch.zeros(0, 28, 28)
    assert theirs("MaskLoss")()(empty, empty).isnan() and MaskLoss()(empty, empty) == 0
    theirs("MaskLoss")()(torch.zeros(2, 3, 4), torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="same shape"):
        MaskLoss()(torch.zeros(2, 3, 4), torch.zeros(2, 4, 3))
    assert MaskLoss()(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)).item() == pytest.approx(math.log(2))
