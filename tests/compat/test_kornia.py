"""``kornia.losses`` and their likes here: the same numbers and gradients, what its own tests assert, and its defects mended."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_f
from compat.sides import DTYPES, assert_same, peer, random, slope_of
from torch import Tensor, nn

from detloss.compat.kornia import losses

REDUCTIONS = ("none", "mean", "sum")
CLASSES = 4
SHAPES = ((12, CLASSES), (3, CLASSES, 7), (2, CLASSES, 5, 6), (2, CLASSES, 2, 3, 4))


def theirs(name: str) -> Any:
    return getattr(peer("kornia").losses, name)


def sample(seed: int, shape: tuple[int, ...], dtype: torch.dtype, ignore_index: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits [B, C, …] and class indices [B, …], a third of them ignored if so wished."""
    g = random(seed)
    logits = 2 * torch.randn(shape, generator=g, dtype=torch.float64)
    target = torch.randint(shape[1], shape[:1] + shape[2:], generator=g)
    if ignore_index is not None:
        target = torch.where(torch.rand(target.shape, generator=g) < 0.3, ignore_index, target)
    return logits.to(dtype), target


def class_weights(dtype: torch.dtype) -> Tensor:
    return torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("alpha", "gamma"), [(None, 2.0), (0.25, 2.0), (0.6, 0.0), (1.0, 1.5)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_focal_loss(
    shape: tuple[int, ...], weighted: bool, alpha: float | None, gamma: float, reduction: str, dtype: torch.dtype
) -> None:
    weight = class_weights(dtype) if weighted else None
    for seed, ignore_index in enumerate((-100, 255, None)):
        logits, target = sample(seed, shape, dtype, ignore_index)
        options: tuple[Any, ...] = (alpha, gamma, reduction, weight, ignore_index)
        assert_same(
            lambda x, t=target, o=options: losses.focal_loss(x, t, *o),
            lambda x, t=target, o=options: theirs("focal_loss")(x, t, *o),
            logits,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("alpha", "gamma"), [(None, 0.0), (0.25, 2.0), (0.6, 1.5)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_binary_focal_loss(
    shape: tuple[int, ...], weighted: bool, alpha: float | None, gamma: float, reduction: str, dtype: torch.dtype
) -> None:
    weights = (class_weights(dtype).flip(0).unsqueeze(-1), class_weights(dtype)) if weighted else (None, None)
    for seed, ignore_index in enumerate((-100, 255, None)):
        logits, _ = sample(seed, shape, dtype)
        soft = torch.rand(shape, generator=random(seed), dtype=torch.float64).to(dtype)
        target = soft if seed else soft.round()
        if ignore_index is not None:
            target = torch.where(soft < 0.2, float(ignore_index), target)
        options: tuple[Any, ...] = (alpha, gamma, reduction, *weights, ignore_index)
        assert_same(
            lambda x, t=target, o=options: losses.binary_focal_loss_with_logits(x, t, *o),
            lambda x, t=target, o=options: theirs("binary_focal_loss_with_logits")(x, t, *o),
            logits,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("average", ["micro", "macro"])
@pytest.mark.parametrize("eps", [1e-8, 0.5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [(5, 6), (100, 100)])
def test_dice_loss(size: tuple[int, int], weighted: bool, eps: float, average: str, dtype: torch.dtype) -> None:
    weight = class_weights(dtype) if weighted else None
    for seed, ignore_index in enumerate((-100, 255, None)):
        logits, target = sample(seed, (2, CLASSES, *size), dtype, ignore_index)
        target[1] = torch.where(target[1] == 2, 0, target[1])  # a class is absent
        options: tuple[Any, ...] = (average, eps, weight, ignore_index)
        assert_same(
            lambda x, t=target, o=options: losses.dice_loss(x, t, *o),
            lambda x, t=target, o=options: theirs("dice_loss")(x, t, *o),
            logits,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.3, 0.7), (1.0, 0.0)])
@pytest.mark.parametrize("eps", [1e-8, 0.25])
def test_tversky_loss(eps: float, alpha: float, beta: float, dtype: torch.dtype) -> None:
    for seed, ignore_index in enumerate((-100, 255, None)):
        logits, target = sample(seed, (2, CLASSES, 5, 6), dtype, ignore_index)
        target[1] = torch.where(target[1] == 2, 0, target[1])
        options: tuple[Any, ...] = (alpha, beta, eps, ignore_index)
        assert_same(
            lambda x, t=target, o=options: losses.tversky_loss(x, t, *o),
            lambda x, t=target, o=options: theirs("tversky_loss")(x, t, *o),
            logits,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_lovasz_hinge_loss(seed: int, dtype: torch.dtype) -> None:
    logits, _ = sample(seed, (3, 1, 6, 7), dtype)
    target = torch.randint(2, (3, 6, 7), generator=random(seed))
    target[0] = 0
    assert_same(lambda x: losses.lovasz_hinge_loss(x, target), lambda x: theirs("lovasz_hinge_loss")(x, target), logits)


MODULES: tuple[tuple[Callable[..., nn.Module], Callable[..., Tensor], tuple[Any, ...]], ...] = (
    (losses.FocalLoss, losses.focal_loss, (0.3, 1.5, "mean", class_weights(torch.float32), 255)),
    (losses.DiceLoss, losses.dice_loss, ("macro", 0.1, class_weights(torch.float32), 255)),
    (losses.TverskyLoss, losses.tversky_loss, (0.3, 0.7, 0.1, 255)),
)


@pytest.mark.parametrize(("make", "function", "options"), MODULES)
def test_modules_are_the_functions(
    make: Callable[..., nn.Module], function: Callable[..., Tensor], options: tuple[Any, ...]
) -> None:
    logits, target = sample(0, (2, CLASSES, 5, 6), torch.float32, 255)
    module = make(*options)
    assert torch.equal(module(logits, target), function(logits, target, *options))
    assert list(module.state_dict()) == []


def test_modules_of_binary_losses_and_weights_as_parameters() -> None:
    logits, _ = sample(0, (2, CLASSES, 5), torch.float32)
    soft, weight = torch.rand(2, CLASSES, 5), class_weights(torch.float32)
    options = (0.3, 1.5, "sum", weight, weight.flip(0), 255)
    module = losses.BinaryFocalLossWithLogits(*options)
    assert torch.equal(module(logits, soft), losses.binary_focal_loss_with_logits(logits, soft, *options))
    learnt = losses.FocalLoss(None, reduction="sum", weight=nn.Parameter(weight))
    learnt(logits, torch.ones(2, 5, dtype=torch.long)).backward()
    assert learnt.weight.grad is not None and learnt.weight.grad[1] > 0 and learnt.weight.grad[0] == 0
    assert losses.LovaszHingeLoss()(torch.ones(2, 1, 1, 2), torch.ones(2, 1, 2, dtype=torch.long)) == 0


# What kornia's own tests of these functions assert.


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_alpha_and_gamma_the_binary_loss_is_the_cross_entropy(reduction: str) -> None:
    logits, labels, weights = torch.rand(2, 3, 2), torch.rand(2, 3, 2), torch.rand(2, 3, 1)
    ours = losses.binary_focal_loss_with_logits(
        logits, labels, alpha=None, gamma=0, reduction=reduction, pos_weight=weights[0], weight=weights[1]
    )
    entropy = torch_f.binary_cross_entropy_with_logits(
        logits, labels, reduction=reduction, pos_weight=weights[0], weight=weights[1]
    )
    torch.testing.assert_close(ours, entropy)


def test_certain_logits_cost_0() -> None:
    logits, labels = torch.tensor([[100.0, -100.0]]), torch.tensor([[1.0, 0.0]])
    assert losses.binary_focal_loss_with_logits(logits, labels, 0.25, 2.0).tolist() == [[0.0, 0.0]]


def test_gradients_with_respect_to_logits_and_soft_targets() -> None:
    logits, labels = (torch.rand(2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, t: losses.binary_focal_loss_with_logits(x, t, 0.25, 2.0), (logits, labels))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, torch.finfo(torch.float32).max])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_logits_may_be_anything(value: float, reduction: str) -> None:
    spoilt, safe = torch.tensor([[value, 0.0], [0.3, -0.2]]), torch.tensor([[0.0, 0.0], [0.3, -0.2]])
    labels, binary = torch.tensor([-100, 1]), torch.tensor([[-100.0, -100.0], [1.0, 0.0]])
    for loss, target in ((losses.focal_loss, labels), (losses.binary_focal_loss_with_logits, binary)):
        mine = slope_of(lambda x, f=loss, t=target: f(x, t, 0.25, reduction=reduction), spoilt)
        assert (mine[0] == 0).all()
        torch.testing.assert_close(mine, slope_of(lambda x, f=loss, t=target: f(x, t, 0.25, reduction=reduction), safe))


def test_an_ignored_position_is_one_of_a_class_that_is_impossible() -> None:
    logits, labels = sample(0, (2, 3, 3, 2), torch.float32, 255)
    more = torch.cat((logits, logits.new_full((2, 1, 3, 2), -math.inf)), 1)
    expected = losses.focal_loss(more, torch.where(labels == 255, 3, labels), alpha=0.8, gamma=0.5)[:, :-1]
    torch.testing.assert_close(losses.focal_loss(logits, labels, alpha=0.8, gamma=0.5, ignore_index=255), expected)


def test_published_values_of_dice() -> None:
    logits, labels = torch.zeros(2, 3, 4, 1), torch.zeros(2, 4, 1, dtype=torch.long)
    micro = losses.DiceLoss("micro", weight=torch.tensor([0.0, 1.0, 1.0]))(logits, labels)
    assert micro == 1  # the only class of the target weighs nothing
    halves = torch.zeros(2, 2, 1, 4)
    halves[:, 0, :, 0] = halves[:, 1, :, 1:] = 100.0
    ignored = torch.zeros(2, 1, 4, dtype=torch.long)
    ignored[..., 2:] = 255
    assert losses.DiceLoss(ignore_index=255)(halves, ignored).item() == pytest.approx(0.5)
    assert losses.TverskyLoss(0.5, 0.5, ignore_index=255)(halves, ignored).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("eps", [0.0, 0.25])
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (1.0, 1.0)])
def test_tversky_counts_the_classes_of_each_sample(alpha: float, beta: float, eps: float) -> None:
    """(TP, FP, FN) = (1, 3/8, 1) and (5/8, 1/2, 11/8) of the first sample, (1, 0, 3) of the second."""
    p = torch.tensor([
        [[[0.5, 0.25, 0.125, 0.5]], [[0.25, 0.5, 0.125, 0.25]], [[0.25, 0.25, 0.75, 0.25]]],
        [[[0.5, 0.25, 0.5, 0.25]], [[0.25, 0.5, 0.25, 0.5]], [[0.25, 0.25, 0.25, 0.25]]],
    ])  # fmt: skip
    labels = torch.tensor([[[0, 1, 1, 0]], [[2, 2, 2, 2]]])
    first = 1 / (1 + alpha * 0.375 + beta + eps) + 0.625 / (0.625 + alpha * 0.5 + beta * 1.375 + eps)
    expected = 1 - (first / 2 + 1 / (1 + 3 * beta + eps)) / 2
    assert losses.tversky_loss(p.log(), labels, alpha, beta, eps).item() == pytest.approx(expected)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_tversky_of_a_class_that_is_never_found(alpha: float, beta: float) -> None:
    logits = torch.tensor([[[[100.0, 100.0]], [[-100.0, -100.0]], [[-100.0, -100.0]]]])
    labels = torch.tensor([[[0, 1]]])
    assert losses.tversky_loss(logits, labels, alpha, beta).item() == pytest.approx(1 - 1 / (1 + alpha) / 2)
    assert slope_of(lambda x: losses.tversky_loss(x, labels, alpha, beta), logits).isfinite().all()


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("loss", ["dice_loss", "tversky_loss"])
def test_a_sample_without_a_valid_pixel_costs_1_and_has_no_gradient(loss: str, eps: float) -> None:
    logits, labels = torch.zeros(2, 3, 1, 2), torch.tensor([[[1, -100]], [[-100, -100]]])
    for average in ("micro", "macro") if loss == "dice_loss" else ("",):
        options = {"average": average} if average else {"alpha": 0.3, "beta": 0.7}
        mine, other = getattr(losses, loss), theirs(loss)
        assert mine(logits[1:], labels[1:], eps=eps, **options) == 1
        torch.testing.assert_close(mine(logits, labels, eps=eps, **options), other(logits, labels, eps=eps, **options))
        slope = slope_of(lambda x, f=mine, o=options: f(x, labels, eps=eps, **o), logits)
        assert slope.isfinite().all() and (slope[1] == 0).all() and (slope[0, :, :, 1] == 0).all() and (slope[0] != 0).any()


# Errors and defects.


def test_wrong_shapes_labels_and_names_are_errors() -> None:
    logits, labels = sample(0, (2, CLASSES, 5, 6), torch.float32)
    for loss in (losses.FocalLoss(0.25), losses.DiceLoss(), losses.TverskyLoss(0.5, 0.5)):
        with pytest.raises(ValueError, match="expected logits"):
            loss(logits, labels[:, 0])
        with pytest.raises(ValueError, match="class indices must be 0…3"):
            loss(logits, labels + 1)
    for function in (losses.focal_loss, losses.binary_focal_loss_with_logits):
        with pytest.raises(NotImplementedError, match="Invalid reduction 'avg'"):
            function(logits, labels if function is losses.focal_loss else logits.sigmoid(), 0.25, reduction="avg")
        with pytest.raises(ValueError, match="alpha"):
            function(logits, labels if function is losses.focal_loss else logits.sigmoid(), 1.5)
    with pytest.raises(ValueError, match="average must be one of 'micro', 'macro'"):
        losses.dice_loss(logits, labels, "weighted")
    with pytest.raises(ValueError, match=r"expected logits \[B, 1, H, W\]"):
        losses.lovasz_hinge_loss(logits, labels)
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 1\]"):
        losses.binary_focal_loss_with_logits(logits, labels.unsqueeze(1).expand_as(logits))


@pytest.mark.parametrize("loss", [losses.DiceLoss(), losses.TverskyLoss(0.5, 0.5), losses.LovaszHingeLoss()])
def test_errors_have_the_words_that_its_tests_look_for(loss: Any) -> None:
    maps = torch.zeros(1, 1, 1, 2)
    with pytest.raises(TypeError, match=r"pred type is not a torch\.Tensor\. Got str"):
        loss("maps", maps)
    with pytest.raises(ValueError, match=r"Invalid pred shape, we expect BxNxHxW\. Got:"):
        loss(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match=r"pred and target shapes must be the same\. Got:"):
        loss(maps, torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match=r"pred and target must be in the same device\. Got:"):
        loss(maps, torch.zeros(1, 1, 2, device="meta"))


def test_an_ignored_pixel_of_the_lovasz_hinge_does_not_count() -> None:
    logits, labels = torch.tensor([[[[3.0, -1.0, 0.5]]]]), torch.tensor([[[1, 0, -100]]])
    assert theirs("lovasz_hinge_loss")(logits, labels) > 50 and losses.lovasz_hinge_loss(logits, labels) == 0


def test_a_mean_of_nothing_is_0() -> None:
    empty = torch.zeros(0, 3)
    assert theirs("focal_loss")(empty, torch.zeros(0, dtype=torch.long), None, reduction="mean").isnan()
    assert losses.focal_loss(empty, torch.zeros(0, dtype=torch.long), None, reduction="mean") == 0
    assert losses.binary_focal_loss_with_logits(empty, empty, reduction="mean") == 0
