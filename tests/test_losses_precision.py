"""Accuracy of fp32 losses against float64, in units in the last place."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from samples import CLASSES, Sample

from detloss import functional as F

COUNT = 4000


def ulps(loss: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """|loss − exact| in units in the last place of fp32; numbers too small to be normal are left out."""
    assert loss.dtype == torch.float32
    assert exact.dtype == torch.float64
    rounded = exact.float().abs()
    spacing = torch.nextafter(rounded, torch.tensor(torch.inf)) - rounded
    normal = rounded > torch.finfo(torch.float32).tiny
    return ((loss.double() - exact).abs() / spacing.double())[normal]


def logits(spread: float) -> torch.Tensor:
    """``[COUNT, C]`` fp32 logits up to ``spread``."""
    return (torch.rand(COUNT, CLASSES) * 2 - 1) * spread


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("focal", F.sigmoid_focal_loss, {}),
    ("focal γ=0", F.sigmoid_focal_loss, {"gamma": 0.0}),
    ("focal γ=0.5", F.sigmoid_focal_loss, {"gamma": 0.5}),
    ("focal γ=1.5", F.sigmoid_focal_loss, {"gamma": 1.5}),
    ("focal α=None", F.sigmoid_focal_loss, {"alpha": None}),
    ("bce", F.binary_cross_entropy_loss, {}),
]


@pytest.mark.parametrize("spread", [1.0, 10.0, 40.0])
@pytest.mark.parametrize(("function", "options"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_sigmoid_losses_are_within_32_ulp(function: Any, options: dict[str, Any], spread: float) -> None:
    pred = logits(spread)
    label = torch.randint(CLASSES + 1, (COUNT,))
    one_hot = torch.nn.functional.one_hot(label, CLASSES + 1)[:, :CLASSES].float()
    for target in (label, one_hot):
        loss = function(pred, target, reduction="none", **options)
        exact = function(pred.double(), target if target is label else target.double(), reduction="none", **options)
        error = ulps(loss, exact)
        assert error.max() <= 32
        assert error.median() <= (1.5 if os.environ.get("DETLOSS_KERNELS") == "triton" else 1)  # powers by exp2 and log2


def test_easy_examples_keep_their_digits() -> None:
    # 1 − σ(17) is 0 in fp32, but the loss of a background logit of −17 is σ(−17)² ln(1 + e⁻¹⁷) ≈ e⁻⁵¹.
    pred = torch.tensor([[17.0, -17.0, -30.0, 30.0]])
    loss = F.sigmoid_focal_loss(pred, torch.tensor([[1.0, 0.0, 0.0, 1.0]]), alpha=None, reduction="none")
    expected = torch.tensor([[-51.0, -51.0, -90.0, -90.0]]).exp()
    torch.testing.assert_close(loss[0, :2], expected[0, :2], rtol=1e-5, atol=0)
    binary = F.binary_cross_entropy_loss(pred, torch.tensor([[1.0, 0.0, 0.0, 1.0]]), reduction="none")
    torch.testing.assert_close(binary, torch.tensor([[-17.0, -17.0, -30.0, -30.0]]).exp(), rtol=1e-5, atol=0)


def test_easy_softmax_examples_keep_their_digits() -> None:
    # −ln p = ln(1 + 3 e⁻²⁰) ≈ 3 e⁻²⁰ ≈ 6e-9, far below the spacing of fp32 at 1.
    pred = torch.tensor([[20.0, 0.0, 0.0, 0.0]])
    exact = 3 * torch.tensor(-20.0, dtype=torch.float64).exp()
    loss = F.softmax_focal_loss(pred, torch.tensor([0]), alpha=None)
    torch.testing.assert_close(loss.double(), exact**3, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spread", [1.0, 10.0, 40.0])
@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_softmax_focal_has_the_relative_accuracy_of_its_logits(spread: float, gamma: float) -> None:
    # A logit of size x is known to x · 2⁻²⁴, and the loss of an easy example changes by (γ + 1) times that.
    pred, label = logits(spread), torch.randint(CLASSES, (COUNT,))
    loss = F.softmax_focal_loss(pred, label, gamma=gamma, reduction="none").double()
    exact = F.softmax_focal_loss(pred.double(), label, gamma=gamma, reduction="none")
    normal = exact > torch.finfo(torch.float32).tiny
    tolerance = (gamma + 1) * (2 * spread + 4) * torch.finfo(torch.float32).eps
    torch.testing.assert_close(loss[normal], exact[normal], rtol=tolerance, atol=0)


def test_losses_of_qualities_are_within_32_ulp_of_their_scale() -> None:
    # |s − σ| cancels near its root, so the error is measured against the cross entropy.
    pred, label, score = logits(8.0), torch.randint(CLASSES + 1, (COUNT,)), torch.rand(COUNT)
    sample = Sample(pred, (label, score))
    exact = sample.to(torch.float64)
    for function in (F.quality_focal_loss, F.varifocal_loss):
        loss = function(sample.pred, sample.target, reduction="none")
        error = (loss.double() - function(exact.pred, exact.target, reduction="none")).abs()
        assert error.max() <= 32 * torch.finfo(torch.float32).eps * 8


def test_half_precision_logits_lose_nothing_but_their_rounding() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        pred, label = logits(12.0).to(dtype), torch.randint(CLASSES + 1, (COUNT,))
        loss = F.sigmoid_focal_loss(pred, label, reduction="none")
        assert ulps(loss, F.sigmoid_focal_loss(pred.double(), label, reduction="none")).max() <= 32


def test_sums_of_many_small_terms() -> None:
    # 100 000 anchors × 80 classes as in a dense detector: the mean is that of float64 to 1e-6.
    pred, label = torch.randn(20_000, 80) - 4.6, torch.full((20_000,), 80)
    exact = F.sigmoid_focal_loss(pred.double(), label)
    torch.testing.assert_close(F.sigmoid_focal_loss(pred, label).double(), exact, rtol=1e-6, atol=0)
