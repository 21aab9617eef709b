"""Distillation: values by hand, gradients, and a teacher that learns nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import detloss
from detloss import functional as F

BOTH = pytest.mark.parametrize("function", [F.kl_distillation_loss, F.localization_distillation_loss])


@BOTH
def test_by_hand(function: Any) -> None:
    """Teacher (¾, ¼), student (½, ½): KL = ¾ ln 1.5 + ¼ ln 0.5."""
    teacher = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert function(torch.zeros(1, 2).double(), teacher, temperature=1.0).item() == pytest.approx(expected)
    # The same distributions at T = 2, four times as heavy.
    assert function(torch.zeros(1, 2).double(), 2 * teacher, temperature=2.0).item() == pytest.approx(4 * expected)


@BOTH
def test_gradient_by_hand(function: Any) -> None:
    """T (p − q): at T = 2 with q = (¾, ¼) and p = (½, ½) it is (−½, ½)."""
    student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[2 * math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    loss = function(student, teacher, temperature=2.0)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], torch.tensor([[-0.5, 0.5]], dtype=torch.float64))
    assert not function(student.detach(), teacher, temperature=2.0).requires_grad


@BOTH
def test_equals_the_kl_divergence_of_torch(function: Any) -> None:
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    inputs = ((student / 3).log_softmax(-1), (teacher / 3).log_softmax(-1))
    expected = 9 * torch.nn.functional.kl_div(*inputs, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(function(student, teacher, temperature=3.0, reduction="none"), expected)


@BOTH
def test_never_below_0_and_exact_at_high_temperature(function: Any) -> None:
    student = torch.randn(200, 17)
    teacher = student + 1e-4 * torch.randn(200, 17)
    loss = function(student, teacher, temperature=100.0, reduction="none")
    exact = function(student.double(), teacher.double(), temperature=100.0, reduction="none")
    assert (loss >= 0).all()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-14)


def test_classes_of_a_map_are_in_dimension_1() -> None:
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    loss = F.kl_distillation_loss(student, teacher, reduction="none")
    assert loss.shape == (2, 3, 4)
    flat = F.kl_distillation_loss(*(x.movedim(1, -1).reshape(-1, 5) for x in (student, teacher)), reduction="none")
    torch.testing.assert_close(loss.flatten(), flat)


def test_bins_have_any_leading_dimensions_and_weights_over_some_of_them() -> None:
    student, teacher, weight = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8), torch.rand(2, 3)
    flat, each = (x.reshape(-1, 8) for x in (student, teacher)), weight.repeat_interleave(4)
    expected = F.localization_distillation_loss(*flat, weight=each, reduction="none")
    loss = F.localization_distillation_loss(student, teacher, weight=weight, reduction="none")
    assert loss.shape == (2, 3, 4) and torch.equal(loss.flatten(), expected)
    mean = F.localization_distillation_loss(student, teacher, weight=weight, avg_factor=3.0)
    torch.testing.assert_close(mean, expected.sum() / 3)
    assert F.localization_distillation_loss(student[0, 0, 0], teacher[0, 0, 0], reduction="none").shape == ()
    with pytest.raises(ValueError, match="weight must have the leading dimensions"):
        F.localization_distillation_loss(student, teacher, weight=torch.rand(3, 2))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_has_weight_0_may_hold_anything(function: Any, dtype: torch.dtype) -> None:
    student, teacher = torch.randn(4, 5, dtype=dtype), torch.randn(4, 5, dtype=dtype)
    student[0], teacher[1], teacher[2] = torch.nan, torch.nan, torch.inf
    student.requires_grad_()
    loss = function(student, teacher, weight=torch.tensor([0.0, 0.0, 0.0, 1.0]), reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), student)
    assert not loss[:3].any() and not slope[:3].any() and loss[3] > 0 and slope[3].any()


@BOTH
@pytest.mark.parametrize("temperature", [1e-9, 1e-3, 1.0, 1e4, 1e8])
def test_any_temperature(function: Any, temperature: float) -> None:
    student = torch.tensor([[1.0, 0.0, -2.0], [0.0, 3.0, 1.0]]) * temperature
    teacher = torch.tensor([[0.0, 0.5, 1.0], [0.0, 3.1, 1.0]]) * temperature
    loss = function(student, teacher, temperature=temperature, reduction="none") / temperature**2
    exact = function(student.double(), teacher.double(), temperature=temperature, reduction="none") / temperature**2
    assert (loss > 0).all()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0.0)


@BOTH
def test_gradients_of_the_formula(function: Any) -> None:
    """First and second derivatives where the logarithms are near, far, and without a class of the teacher."""
    teacher = torch.randn(6, 4, dtype=torch.float64)
    student = teacher + torch.tensor([0.01, 0.1, 0.5, 4.0, 9.0, 0.2], dtype=torch.float64)[:, None] * torch.randn(6, 4).double()
    teacher[5, 1] = -torch.inf
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, teacher, temperature=2.0, reduction="none"), student)
    assert torch.autograd.gradgradcheck(lambda x: function(x, teacher, temperature=2.0, reduction="none"), student)


def test_modules_take_the_vocabulary_of_mmdet() -> None:
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    for name, function in (
        ("KnowledgeDistillationKLDivLoss", F.kl_distillation_loss),
        ("LocalizationDistillationLoss", F.localization_distillation_loss),
    ):
        torch.testing.assert_close(detloss.build(name)(student, teacher), function(student, teacher))
        loss = detloss.build({"type": name, "T": 4, "loss_weight": 0.5})
        torch.testing.assert_close(loss(student, teacher), 0.5 * function(student, teacher, temperature=4.0))


def test_bad_arguments_are_errors() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        F.kl_distillation_loss(x, x, temperature=0.0)
    with pytest.raises(ValueError, match=r"logits must be \[N, C\] or \[B, C, H, W\]; got \[3\]"):
        F.kl_distillation_loss(x[0], x[0])
    with pytest.raises(ValueError, match="at least 2 bins"):
        F.localization_distillation_loss(x[:, :1], x[:, :1])
    with pytest.raises(ValueError, match="same shape"):
        F.localization_distillation_loss(x, x[:1])
