"""The three losses of FCOS in autotimm and here: the same numbers and gradients, and the defects mended."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compat.sides import DTYPES, assert_same, boxes, peer, random, slope_of
from torch import Tensor

from detloss.compat import autotimm
from detloss.compat.autotimm import CenternessLoss, FocalLoss, GIoULoss, losses

REDUCTIONS = ("none", "mean", "sum")
INF, NAN = math.inf, math.nan


def theirs(name: str) -> Any:
    return getattr(peer("autotimm").losses, name)


def test_the_names_of_the_package() -> None:
    assert autotimm.loss is autotimm.losses is losses
    assert autotimm.FCOSLoss is losses.FCOSLoss is losses.detection.FCOSLoss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.0), (0.0, 1.5)])
@pytest.mark.parametrize("shape", [(40, 5), (2, 5, 3, 4)])
def test_focal_loss(shape: tuple[int, ...], alpha: float, gamma: float, reduction: str, dtype: torch.dtype) -> None:
    mine, other = FocalLoss(alpha, gamma, reduction), theirs("FocalLoss")(alpha, gamma, reduction)
    for seed in range(3):
        g = random(seed)
        pred = 2 * torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        index = torch.randint(5, shape[:1] + shape[2:], generator=g)
        dense = torch.randint(2, shape, generator=g)
        for target in (index, dense):
            assert_same(lambda x, t=target: mine(x, t), lambda x, t=target: other(x, t), pred)
        if reduction != "none":
            partly = torch.where(torch.rand(index.shape, generator=g) < 0.4, -1, index)
            assert_same(lambda x, t=partly: mine(x, t), lambda x, t=partly: other(x, t), pred)


def test_focal_loss_keeps_the_rows_of_ignored_samples() -> None:
    pred, target = torch.tensor([[NAN, 1.0], [0.0, 0.0], [INF, 2.0]]), torch.tensor([-1, 0, -7])
    loss = FocalLoss(reduction="none")(pred, target)
    assert loss.tolist() == pytest.approx([0.0, math.log(2) / 4, 0.0])  # (0.25 + 0.75) · ln 2 / 4
    assert theirs("FocalLoss")(reduction="none")(pred, target).shape == (1,)
    torch.testing.assert_close(FocalLoss()(pred, target), loss[1])
    assert slope_of(lambda x: FocalLoss()(x, target), pred).isfinite().all()


def test_focal_loss_of_an_ignored_batch_is_a_connected_0() -> None:
    pred, target = torch.tensor([[INF, 0.0]], requires_grad=True), torch.tensor([-1])
    assert theirs("FocalLoss")()(pred, target).isnan()
    loss = FocalLoss()(pred, target)
    loss.backward()
    assert loss == 0 and (pred.grad == 0).all()
    assert FocalLoss(reduction="none")(pred, target).shape == (1,)


def test_background_of_focal_loss_is_c() -> None:
    """0.75 · 10 for every one of 3 columns with a logit of 10."""
    logits = torch.full((4, 3), 10.0)
    with pytest.raises(RuntimeError):
        theirs("FocalLoss")()(logits, torch.full((4,), 3))
    assert FocalLoss()(logits, torch.full((4,), 3)).item() == pytest.approx(3 * 7.5, rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("eps", [1e-7, 1e-3])
@pytest.mark.parametrize("weighted", [False, True])
def test_giou_loss(reduction: str, eps: float, weighted: bool, dtype: torch.dtype) -> None:
    mine, other = GIoULoss(reduction, eps), theirs("GIoULoss")(reduction, eps)
    for seed in range(3):
        pred, target = boxes(seed, dtype=dtype)
        weights = torch.rand(len(pred), generator=random(seed)).to(dtype) if weighted else None
        assert_same(lambda x, t=target, w=weights: mine(x, t, w), lambda x, t=target, w=weights: other(x, t, w), pred)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(30,), (30, 1), (2, 1, 5, 6)])
def test_centerness_loss(reduction: str, weighted: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mine, other = CenternessLoss(reduction), theirs("CenternessLoss")(reduction)
    for seed in range(3):
        g = random(seed)
        pred = 2 * torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        target = torch.rand(shape, generator=g).to(dtype).flatten()
        weights = torch.rand(shape, generator=g).to(dtype) if weighted else None
        assert_same(lambda x, t=target, w=weights: mine(x, t, w), lambda x, t=target, w=weights: other(x, t, w), pred)


def test_centerness_loss_of_permuted_maps() -> None:
    pred, target = torch.randn(3, 2).T, torch.rand(3, 2).T
    with pytest.raises(RuntimeError):
        theirs("CenternessLoss")()(pred, target)
    torch.testing.assert_close(CenternessLoss()(pred, target), CenternessLoss()(pred.contiguous(), target.contiguous()))


def test_giou_loss_of_tiny_and_inverted_boxes() -> None:
    tiny = torch.tensor([[0.0, 0.0, 1e-4, 1e-4]])
    assert theirs("GIoULoss")()(tiny, tiny) > 0.8 and GIoULoss()(tiny, tiny) == 0
    inverted, target = torch.tensor([[10.0, 10.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert theirs("GIoULoss")()(inverted, target) == 0 and GIoULoss()(inverted, target) == 3


@pytest.mark.parametrize("make", [GIoULoss, CenternessLoss])
def test_weights_of_0_and_no_samples(make: Callable[..., Any]) -> None:
    pred = torch.tensor([[0.0, 0.0, 2.0, 2.0], [NAN, 0.0, 1.0, 1.0]])
    target, weights = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([1.0, 0.0])
    if make is CenternessLoss:
        pred, target = pred[:, 0], target[:, 0]
    assert make()(pred, target, weights).isfinite()
    assert make()(pred, target, 0 * weights) == 0
    empty = pred[:0].clone().requires_grad_()
    make()(empty, target[:0]).backward()
    assert empty.grad is not None and make(reduction="none")(empty, target[:0]).shape == (0,)


@pytest.mark.parametrize("name", ["FocalLoss", "GIoULoss", "CenternessLoss", "FocalLossPixelwise", "MaskLoss"])
def test_an_unknown_reduction_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="Invalid reduction 'avg'"):
        getattr(autotimm, name)(reduction="avg")


def test_half_precision_is_computed_in_fp32() -> None:
    pred, target = torch.full((70000, 1), 8.0).half(), torch.full((70000,), 1)
    assert FocalLoss(reduction="sum")(pred, target).item() == pytest.approx(70000 * 0.75 * 8, rel=1e-2)
    assert isinstance(FocalLoss()(pred, target), Tensor)
