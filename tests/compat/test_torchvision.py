"""``torchvision.ops`` and its likes here: the same numbers and gradients, its published tests, and its defects mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as torch_f
from compat.sides import DTYPES, assert_same, boxes, peer, random, slope_of
from torch import Tensor

from detloss.compat import detectron2, torchvision
from detloss.compat.torchvision import ops

BOX_LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
REDUCTIONS = ("none", "mean", "sum")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alpha", [0.25, -1, 0, 1, 0.6])
@pytest.mark.parametrize("gamma", [2, 0, 1.5])
def test_focal_loss(alpha: float, gamma: float, reduction: str, dtype: torch.dtype) -> None:
    theirs = peer("torchvision").ops.sigmoid_focal_loss
    for seed, shape in enumerate([(30, 4), (5,), (2, 3, 4, 5)]):
        g = random(seed)
        inputs = 2 * torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        hard = torch.randint(2, shape, generator=g).to(dtype)
        for targets in (hard, torch.rand(shape, generator=g).to(dtype)):
            options: dict[str, Any] = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
            assert_same(
                lambda x, t=targets, o=options: ops.sigmoid_focal_loss(x, t, **o),
                lambda x, t=targets, o=options: theirs(x, t, **o),
                inputs,
            )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_scripts_call_them() -> None:
    x, y = torch.randn(3, 4, requires_grad=True), torch.rand(3, 4)
    focal = torch.jit.script(ops.sigmoid_focal_loss)
    assert torch.equal(focal(x, y, 0.5, 1.5, "sum"), ops.sigmoid_focal_loss(x, y, 0.5, 1.5, "sum"))
    assert torch.equal(focal(x, y), ops.sigmoid_focal_loss(x, y))
    for name in BOX_LOSSES:
        scripted, plain = torch.jit.script(getattr(ops, name)), getattr(ops, name)
        (slope,) = torch.autograd.grad(scripted(x, y, "mean"), x)
        torch.testing.assert_close(slope, torch.autograd.grad(plain(x, y, "mean"), x)[0])


def test_focal_loss_of_a_number() -> None:
    theirs = peer("torchvision").ops.sigmoid_focal_loss
    for reduction in REDUCTIONS:
        x, one = torch.tensor(0.3), torch.tensor(1.0)
        torch.testing.assert_close(ops.sigmoid_focal_loss(x, one, reduction=reduction), theirs(x, one, reduction=reduction))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", BOX_LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_box_losses(name: str, reduction: str, dtype: torch.dtype, seed: int) -> None:
    theirs, mine = getattr(peer("torchvision").ops, name), getattr(ops, name)
    pred, target = boxes(seed, dtype=dtype)
    eps = 1e-12  # theirs adds it: with 1e-7 its CIoU is 1e-7 off
    for at, other in ((pred, target), (target, pred)):
        assert_same(
            lambda x, y=other: mine(x, y, reduction, eps), lambda x, y=other: theirs(x, y, reduction, eps), at,
            tolerance=2e-9 if dtype == torch.float64 else None,
        )  # fmt: skip
        assert_same(lambda y, x=other: mine(x, y, reduction), lambda y, x=other: theirs(x, y, reduction), at, tolerance=5e-6)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_integer_boxes_and_single_boxes(name: str) -> None:
    theirs, mine = getattr(peer("torchvision").ops, name), getattr(ops, name)
    pred, target = (x.round().long() for x in boxes(0))
    torch.testing.assert_close(mine(pred, target), theirs(pred, target))
    assert mine(pred[0].float(), target[0].float()).shape == ()


def test_the_package_has_the_names_too() -> None:
    assert torchvision.ops is ops
    assert all(getattr(torchvision, name) is getattr(ops, name) for name in ("sigmoid_focal_loss", *BOX_LOSSES))


# What torchvision's own tests of these functions assert.

BOX1, BOX2, BOX3, BOX4 = (torch.tensor(box) for box in ([-1.0, -1, 1, 1], [0.0, 0, 1, 1], [0.0, 1, 1, 2], [1.0, 1, 2, 2]))
FIRST, SECOND = torch.stack((BOX2, BOX2)), torch.stack((BOX3, BOX4))
DIOU = ((BOX1, BOX1, 0.0), (BOX1, BOX2, 0.8125), (BOX1, BOX3, 1.1923), (BOX1, BOX4, 1.25))
GIOU = ((BOX1, BOX1, 0.0), (BOX1, BOX2, 0.75), (BOX2, BOX3, 1.0), (BOX2, BOX4, 1.5))
PUBLISHED = {
    ops.generalized_box_iou_loss: (GIOU, 2.5),
    ops.distance_box_iou_loss: (DIOU, 2.45),
    ops.complete_box_iou_loss: (DIOU, 2.45),
    detectron2.layers.diou_loss: (DIOU, 2.45),
    detectron2.layers.ciou_loss: (DIOU, 2.45),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("loss", PUBLISHED, ids=lambda f: f.__name__)
def test_published_values_of_boxes(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    pairs, total = PUBLISHED[loss]
    for one, other, value in pairs:
        torch.testing.assert_close(loss(one.to(dtype), other.to(dtype)), torch.tensor(value), rtol=0, atol=5e-5)
    for reduction, value in (("sum", total), ("mean", total / 2)):
        torch.testing.assert_close(loss(FIRST.to(dtype), SECOND.to(dtype), reduction=reduction), torch.tensor(value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("loss", PUBLISHED, ids=lambda f: f.__name__)
def test_no_boxes_give_a_connected_0(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    one, other = (torch.zeros(0, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    mean = loss(one, other, reduction="mean")
    mean.backward()
    assert mean == 0 and one.grad is not None and other.grad is not None
    assert loss(one, other).shape == (0,)


@pytest.mark.parametrize("loss", [ops.sigmoid_focal_loss, *PUBLISHED], ids=lambda f: f.__name__)
def test_an_unknown_reduction_is_an_error(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="Invalid reduction 'xyz'; expected one of 'none', 'mean', 'sum'"):
        loss(FIRST, FIRST, reduction="xyz")


@pytest.mark.parametrize("seed", range(3))
def test_ratio_of_focal_loss_and_cross_entropy(seed: int) -> None:
    g = random(seed)
    p, y = 0.02 + 0.96 * torch.rand(45, 2, generator=g), torch.randint(2, (45, 2), generator=g).float()
    logits = p.logit()
    entropy = torch_f.binary_cross_entropy_with_logits(logits, y, reduction="none")
    missing = y * (1 - p) + (1 - y) * p
    for alpha in (-1.0, 0.0, 0.58, 1.0):
        factor = 1.0 if alpha < 0 else alpha * y + (1 - alpha) * (1 - y)
        loss = ops.sigmoid_focal_loss(logits, y, alpha=alpha, gamma=2)
        assert (loss <= entropy).all()
        torch.testing.assert_close(loss / entropy, factor * missing**2, rtol=1e-5, atol=1e-5)
    for reduction in ("mean", "sum"):
        whole = torch_f.binary_cross_entropy_with_logits(logits, y, reduction=reduction)
        torch.testing.assert_close(ops.sigmoid_focal_loss(logits, y, -1, 0, reduction), whole)


@pytest.mark.parametrize("alpha", [-0.5, 1.1, -2])
def test_alpha_out_of_range_is_an_error(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"Invalid alpha .*; expected a number in \[0, 1\], or -1"):
        ops.sigmoid_focal_loss(FIRST, FIRST, alpha=alpha)


# Its defects.


@pytest.mark.parametrize("name", BOX_LOSSES)
@pytest.mark.parametrize("size", [5e-4, 1e-6, 1e6])
def test_an_exact_match_costs_0_for_every_size(name: str, size: float) -> None:
    box = torch.tensor([[0.0, 0.0, size, size]])
    assert getattr(ops, name)(box, box, eps=0.0) == getattr(ops, name)(box, box) == 0
    if size < 1e-3:
        assert getattr(peer("torchvision").ops, name)(box, box) > 0.2


def test_an_inverted_box_is_not_perfect() -> None:
    inverted, target = torch.tensor([[10.0, 10.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert peer("torchvision").ops.generalized_box_iou_loss(inverted, target) == 0
    assert ops.generalized_box_iou_loss(inverted, target) == 3  # 1 for no overlap, and twice the whole side
    slope = slope_of(lambda x: ops.generalized_box_iou_loss(x, target), inverted)[0]
    assert (slope[:2] > 0).all() and (slope[2:] < 0).all()  # a step against it turns the box back


@pytest.mark.parametrize("flat", [[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 10.0, 0.0]])
def test_ciou_of_a_box_without_area_is_finite(flat: list[float]) -> None:
    pred, target = torch.tensor([flat]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert ops.complete_box_iou_loss(pred, target).isfinite().all()
    assert slope_of(lambda x: ops.complete_box_iou_loss(x, target), pred).isfinite().all()
    assert not slope_of(lambda x: peer("torchvision").ops.complete_box_iou_loss(x, target), pred).isfinite().all()


def test_eps_reaches_all_of_ciou() -> None:
    """Theirs keeps 1e-7 in IoU and distance, whatever is given: an exact match of a millimetre in metres costs 0.09."""
    box = torch.tensor([[0.0, 0.0, 1e-3, 1e-3]])
    assert peer("torchvision").ops.complete_box_iou_loss(box, box, eps=1e-12) > 0.09
    assert ops.complete_box_iou_loss(box, box, eps=1e-12) == 0


def test_focal_loss_of_nothing_easy_examples_and_half_precision() -> None:
    theirs = peer("torchvision").ops.sigmoid_focal_loss
    empty = torch.zeros(0, 4, requires_grad=True)
    assert theirs(empty, empty, reduction="mean").isnan() and ops.sigmoid_focal_loss(empty, empty, reduction="mean") == 0
    easy, one = torch.tensor([[12.0]]), torch.ones(1, 1)
    exact = theirs(easy.double(), one.double(), alpha=-1).item()
    assert ops.sigmoid_focal_loss(easy, one, alpha=-1).item() == pytest.approx(exact, rel=1e-6, abs=0)
    assert theirs(easy, one, alpha=-1).item() != pytest.approx(exact, rel=1e-2, abs=0)
    many = torch.full((70000, 1), 2.0, dtype=torch.float16)
    assert ops.sigmoid_focal_loss(many, torch.zeros_like(many), -1, 0, "sum").item() == pytest.approx(148885, rel=1e-4)
    certain = torch.tensor([[60.0]])
    assert slope_of(lambda x: ops.sigmoid_focal_loss(x, one, gamma=0.5), certain).abs() < 1e-30
    assert slope_of(lambda x: theirs(x, one, gamma=0.5), certain).isnan()


def test_nothing_is_broadcast() -> None:
    with pytest.raises(ValueError, match="same shape"):
        ops.generalized_box_iou_loss(FIRST, SECOND[:1])
    with pytest.raises(ValueError, match="same shape"):
        ops.sigmoid_focal_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("alpha", [-1, 0.3])
def test_without_gamma_it_is_the_cross_entropy_to_the_last_bit(alpha: float) -> None:
    g = torch.Generator().manual_seed(0)
    logits, target = 4 * torch.randn(50, 6, generator=g), (torch.rand(50, 6, generator=g) > 0.6).float()
    share = torch.ones(()) if alpha < 0 else alpha * target + (1 - alpha) * (1 - target)
    want = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * share
    for name, value in (("none", want), ("sum", want.sum()), ("mean", want.mean())):
        assert torch.equal(ops.sigmoid_focal_loss(logits, target, alpha, 0, name), value)
    sure = torch.tensor([torch.inf, -torch.inf], requires_grad=True)
    loss = ops.sigmoid_focal_loss(sure, torch.tensor([1.0, 0.0]), alpha, 0, "sum")
    assert loss == 0 and not torch.autograd.grad(loss, sure)[0].any()
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 1\]"):
        ops.sigmoid_focal_loss(logits, target + 1, alpha, 0)
