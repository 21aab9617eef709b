"""``fvcore.nn`` and its likes here: the same numbers and gradients, its published tests, and its defects mended."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_f
from compat.sides import DTYPES, assert_same, boxes, peer, random, slope_of
from torch import Tensor

from detloss.compat.fvcore import nn

REDUCTIONS = ("none", "mean", "sum")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("alpha", "gamma"), [(-1, 2), (0.25, 2), (0.6, 0.5), (0, 3), (1, 1)])
@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "sigmoid_focal_loss_star", "sigmoid_focal_loss_star_jit"])
def test_focal_losses(name: str, alpha: float, gamma: float, reduction: str, dtype: torch.dtype) -> None:
    theirs, mine = getattr(peer("fvcore").nn, name.removesuffix("_jit")), getattr(nn, name)
    for seed, shape in enumerate([(30, 4), (7,), (2, 3, 4)]):
        g = random(seed)
        inputs = 2 * torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        for targets in (torch.randint(2, shape, generator=g).to(dtype), torch.rand(shape, generator=g).to(dtype)):
            options: dict[str, Any] = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
            assert_same(
                lambda x, t=targets, o=options: mine(x, t, **o),
                lambda x, t=targets, o=options: theirs(x, t, **o),
                inputs,
                tolerance=1e-5,  # theirs are in fp32 always
            )


def test_float64_stays_float64() -> None:
    x, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert nn.sigmoid_focal_loss(x, one).item() == pytest.approx(math.log(2) / 4, rel=1e-15)
    assert peer("fvcore").nn.sigmoid_focal_loss(x, one).dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_giou_loss(reduction: str, dtype: torch.dtype, seed: int) -> None:
    theirs = peer("fvcore").nn.giou_loss
    pred, target = boxes(seed, dtype=dtype)
    assert_same(lambda x: nn.giou_loss(x, target, reduction), lambda x: theirs(x, target, reduction), pred)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", [1.0, 0.1, 1e-3, 9e-6, 0.0])
def test_smooth_l1_loss(beta: float, reduction: str, dtype: torch.dtype) -> None:
    theirs = peer("fvcore").nn.smooth_l1_loss
    for seed in range(3):
        g = random(seed)
        pred, target = (torch.randn(20, 4, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
        assert_same(
            lambda x, t=target: nn.smooth_l1_loss(x, t, beta, reduction), lambda x, t=target: theirs(x, t, beta, reduction), pred
        )


# What fvcore's own tests of these functions assert.


def logits(*p: float) -> Tensor:
    return torch.tensor(p).reshape(1, -1, 1).logit()


def ones(*y: float) -> Tensor:
    return torch.tensor(y, dtype=torch.float32).reshape(1, -1, 1)


def entropy(x: Tensor, y: Tensor, reduction: str = "none") -> Tensor:
    return torch_f.binary_cross_entropy_with_logits(x, y, reduction=reduction)


SAMPLES = ((logits(0.95, 0.9, 0.98, 0.99), ones(1, 1, 1, 1)), (logits(0.05, 0.12, 0.89, 0.79), ones(1, 1, 0, 0)))


@pytest.mark.parametrize(("loss", "gamma"), [(nn.sigmoid_focal_loss, 0), (nn.sigmoid_focal_loss_star, 1)])
@pytest.mark.parametrize(("x", "y"), SAMPLES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_focus_it_is_the_cross_entropy(
    loss: Callable[..., Tensor], gamma: float, x: Tensor, y: Tensor, reduction: str
) -> None:
    torch.testing.assert_close(loss(x, y, gamma=gamma, alpha=-1, reduction=reduction), entropy(x, y, reduction))
    torch.testing.assert_close(
        slope_of(lambda z: loss(z, y, gamma=gamma, reduction=reduction), x), slope_of(lambda z: entropy(z, y, reduction), x)
    )


@pytest.mark.parametrize(("alpha", "factor"), [(-1, 1.0), (0.5, 2.0)])
def test_easy_and_hard_examples_fade_by_their_share(alpha: float, factor: float) -> None:
    x, y = logits(0.95, 0.9, 0.6, 0.3, 0.05, 0.12).double(), ones(1, 1, 1, 1, 1, 1).double()
    ratio = entropy(x, y) / nn.sigmoid_focal_loss(x, y, gamma=2, alpha=alpha)
    torch.testing.assert_close(ratio, factor / (1 - x.sigmoid()) ** 2)


@pytest.mark.parametrize("loss", [nn.sigmoid_focal_loss, nn.sigmoid_focal_loss_star])
def test_alpha_0_and_1_drop_one_side(loss: Callable[..., Tensor]) -> None:
    x, y = SAMPLES[1]
    assert (loss(x, y, gamma=3, alpha=1)[y == 0] == 0).all() and (loss(x, y, gamma=3, alpha=1)[y == 1] > 0).all()
    assert (loss(x, y, gamma=3, alpha=0)[y == 1] == 0).all() and (loss(x, y, gamma=3, alpha=0)[y == 0] > 0).all()


def test_focal_loss_star_of_easy_and_hard_examples() -> None:
    easy, hard, y = logits(0.75, 0.8, 0.12, 0.05), logits(0.05, 0.12, 0.91, 0.85), ones(1, 1, 0, 0)
    assert (entropy(easy, y) / nn.sigmoid_focal_loss_star(easy, y, gamma=3) > 10).all()
    torch.testing.assert_close(
        entropy(hard, y) / nn.sigmoid_focal_loss_star(hard, y, gamma=2), torch.ones_like(y), atol=0.1, rtol=0
    )
    half = nn.sigmoid_focal_loss_star(easy, torch.ones_like(y), gamma=2, alpha=0.5)
    torch.testing.assert_close(nn.sigmoid_focal_loss_star(easy, torch.ones_like(y), gamma=2), 2 * half)


def test_published_values_of_giou_and_smooth_l1() -> None:
    a, b, c, d = (torch.tensor(box) for box in ([-1.0, -1, 1, 1], [0.0, 0, 1, 1], [0.0, 1, 1, 2], [1.0, 1, 2, 2]))
    values = [nn.giou_loss(one, other).item() for one, other in ((a, a), (a, b), (b, c), (b, d))]
    assert values == pytest.approx([0.0, 0.75, 1.0, 1.5])
    assert nn.giou_loss(torch.stack((b, b)), torch.stack((c, d)), reduction="sum").item() == pytest.approx(2.5)
    pred, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.1, 2.0, 4.5])
    assert nn.smooth_l1_loss(pred, target, beta=0.5).tolist() == pytest.approx([0.01, 0, 1.25])
    assert nn.smooth_l1_loss(pred, target, beta=0.05).tolist() == pytest.approx([0.075, 0, 1.475])


def test_published_values_of_ciou_of_detectron2() -> None:
    from detloss.compat.detectron2.layers import ciou_loss

    box, half = torch.tensor([-1.0, -1, 1, 1]), torch.tensor([0.0, -1, 1, 1])
    assert ciou_loss(box, half).item() == pytest.approx(0.5345, abs=1e-4)  # 0.5 + 0.25/8 + 0.042 · 0.0775


# Its defects.


def test_a_bad_box_does_not_end_the_run() -> None:
    good = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 3)
    bad = good.clone()
    bad[0], bad[1, 0] = torch.tensor([10.0, 10.0, 0.0, 0.0]), math.nan
    with pytest.raises(AssertionError, match="bad box"):
        peer("fvcore").nn.giou_loss(bad, good)
    loss = nn.giou_loss(bad, good)
    assert loss[0] == 3 and loss[1].isnan() and loss[2] == 0


def test_exact_matches_cost_0_in_every_size_and_precision() -> None:
    theirs = peer("fvcore").nn.giou_loss
    large, tiny = torch.tensor([[0.0, 0.0, 300.0, 300.0]]).half(), torch.tensor([[0.0, 0.0, 5e-4, 5e-4]])
    assert theirs(large, large).isnan() and theirs(tiny, tiny) > 0.2
    assert nn.giou_loss(large, large) == nn.giou_loss(tiny, tiny) == 0


@pytest.mark.parametrize("loss", [nn.sigmoid_focal_loss, nn.sigmoid_focal_loss_star, nn.giou_loss])
def test_an_unknown_reduction_is_an_error_and_a_mean_of_nothing_0(loss: Callable[..., Tensor]) -> None:
    empty = torch.zeros(0, 4)
    assert loss(empty, empty, reduction="mean") == 0
    with pytest.raises(ValueError, match="Invalid reduction 'avg'"):
        loss(empty, empty, reduction="avg")
    assert peer("fvcore").nn.smooth_l1_loss(torch.ones(3), torch.ones(3), 1.0, reduction="avg").shape == (3,)
    with pytest.raises(ValueError, match="Invalid reduction 'avg'"):
        nn.smooth_l1_loss(torch.ones(3), torch.ones(3), 1.0, reduction="avg")
