"""Mask focal loss and Lovász hinge, the latter against the definition of a Lovász extension."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detloss import functional as F


def jaccard_loss(target: list[bool], wrong: set[int]) -> float:
    """1 − IoU of the mask that is wrong in these pixels; 0 when nothing is wrong."""
    predicted = [t != (i in wrong) for i, t in enumerate(target)]
    union = sum(a or b for a, b in zip(predicted, target, strict=True))
    return 1 - sum(a and b for a, b in zip(predicted, target, strict=True)) / union if union else 0.0


def slow_lovasz(logits: list[float], target: list[bool]) -> tuple[float, list[float]]:
    """Σ m_k (Δ{first k} − Δ{first k − 1}) in falling order of the errors m, and its gradient."""
    signs = [1.0 if t else -1.0 for t in target]
    errors = [max(1 - x * s, 0.0) for x, s in zip(logits, signs, strict=True)]
    order = sorted(range(len(logits)), key=lambda i: -errors[i])
    value, gradient, wrong, before = 0.0, [0.0] * len(logits), set[int](), 0.0
    for i in order:
        wrong.add(i)
        after = jaccard_loss(target, wrong)
        value += errors[i] * (after - before)
        gradient[i] = -signs[i] * (after - before) if errors[i] > 0 else 0.0
        before = after
    return value, gradient


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_lovasz_hinge_is_the_lovasz_extension_of_the_jaccard_loss(share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    pred = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.rand(6, 4, 5, generator=generator) < share
    loss = F.lovasz_hinge_loss(pred, target, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    for n in range(6):
        value, expected = slow_lovasz(pred[n].flatten().tolist(), target[n].flatten().tolist())
        assert loss[n].item() == pytest.approx(value, abs=1e-12)
        assert gradient[n].flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_lovasz_hinge_by_hand() -> None:
    """Errors 3 (outside) and 1.5 (inside), G = 1: ½ · 3 + ½ · 1.5; without an object the largest error, 3."""
    pred = torch.tensor([[2.0, -0.5]])
    torch.testing.assert_close(F.lovasz_hinge_loss(pred, torch.tensor([[0, 1]])), torch.tensor(2.25))
    torch.testing.assert_close(F.lovasz_hinge_loss(pred, torch.tensor([[0, 0]])), torch.tensor(3.0))


def test_hard_errors_cost_one_minus_iou() -> None:
    """Logits ±0 away from the hinge: every wrong pixel has error 1 when logits are 0 there and ±1 elsewhere."""
    target = torch.tensor([[1, 1, 1, 0, 0, 0]])
    pred = torch.tensor([[1.0, 1.0, 0.0, 0.0, -1.0, -1.0]])  # one missed, one added: IoU 2/4
    torch.testing.assert_close(F.lovasz_hinge_loss(pred, target), torch.tensor(0.5))


def test_lovasz_hinge_has_the_gradient_of_its_value() -> None:
    pred = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 7) < 0.5
    assert torch.autograd.gradcheck(lambda x: F.lovasz_hinge_loss(x, target, reduction="none"), pred)


def test_ignored_pixels_are_as_if_absent() -> None:
    pred, target = torch.randn(2, 8), (torch.rand(2, 8) < 0.4).long()
    ignored = torch.tensor([True, False, False, True, False, False, True, False])
    masked = torch.where(ignored, 255, target)
    given = torch.where(ignored, torch.nan, pred).requires_grad_()
    loss = F.lovasz_hinge_loss(given, masked, ignore_index=255)
    torch.testing.assert_close(loss, F.lovasz_hinge_loss(pred[:, ~ignored], target[:, ~ignored]))
    assert not torch.autograd.grad(loss, given)[0][:, ignored].any()


def test_a_mask_of_ignored_pixels_costs_nothing() -> None:
    assert F.lovasz_hinge_loss(torch.randn(1, 5), torch.full((1, 5), 255), ignore_index=255) == 0


def test_masks_other_than_0_and_1_are_errors() -> None:
    with pytest.raises(ValueError, match=r"masks must hold 0, 1 or ignore_index=-100; got 0.5 at \[0, 1\]"):
        F.lovasz_hinge_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.5]]))
    with pytest.raises(ValueError, match="at least one pixel dimension"):
        F.lovasz_hinge_loss(torch.zeros(2), torch.zeros(2))


def test_mask_focal_by_hand() -> None:
    """p = 0.8: ¼ · 0.2² (−ln 0.8) inside, ¾ · 0.8² (−ln 0.2) outside."""
    pred = torch.full((1, 1, 2), math.log(4), dtype=torch.float64)
    loss = F.mask_focal_loss(pred, torch.tensor([[[True, False]]]), reduction="none")
    expected = [0.25 * 0.04 * -math.log(0.8), 0.75 * 0.64 * -math.log(0.2)]
    torch.testing.assert_close(loss, torch.tensor([[expected]], dtype=torch.float64))


def test_mask_focal_takes_the_mask_of_the_class() -> None:
    pred, target, label = torch.randn(3, 4, 2, 2), torch.rand(3, 2, 2), torch.tensor([3, 0, 2])
    chosen: Tensor = pred[torch.arange(3), label]
    torch.testing.assert_close(F.mask_focal_loss(pred, target, label=label), F.mask_focal_loss(chosen, target))


def test_mask_focal_does_not_take_class_indices() -> None:
    with pytest.raises(ValueError, match=r"mask_focal_loss: pred and target must have the same shape"):
        F.mask_focal_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long))


def test_lovasz_masks_of_other_values_are_found_in_every_dtype() -> None:
    for dtype in (torch.uint8, torch.int8, torch.int64, torch.float32):
        fine = torch.tensor([[0, 1, 1, 0]], dtype=dtype)
        assert F.lovasz_hinge_loss(torch.zeros(1, 4), fine).isfinite()
        for bad in (2, 16, 17, 100):  # 16 · 15 is 0 in no integer dtype that wraps around
            with pytest.raises(ValueError, match="masks must hold 0, 1 or ignore_index=-100; got"):
                F.lovasz_hinge_loss(torch.zeros(1, 4), fine * bad)


def test_lovasz_target_of_nan_spoils_its_own_mask_only_and_has_no_gradient() -> None:
    pred = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[1.0, 0.0, float("nan"), 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 1.0]], dtype=torch.float64)
    loss = F.lovasz_hinge_loss(pred, target, reduction="none")
    assert loss[0].isnan() and loss[1].isfinite()
    (grad,) = torch.autograd.grad(loss[1], pred)
    assert (grad[0] == 0).all() and grad[1].isfinite().all()
