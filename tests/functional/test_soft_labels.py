"""Cross entropy against a class and its score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detloss import functional as F
from detloss.functional.soft_labels import soft_label_cross_entropy_loss

LN2 = math.log(2)
SHAPES = {"rows": ((50, 7), (50,)), "planes": ((2, 7, 5, 4), (2, 5, 4))}
OPTIONS = {
    "plain": {},
    "class-weight": {"class_weight": [0.5, 1.0, 2.0, 3.0, 1.0, 0.0, 1.0]},
    "smoothing": {"label_smoothing": 0.1},
    "both": {"class_weight": [0.5, 1.0, 2.0, 3.0, 1.0, 0.0, 1.0], "label_smoothing": 0.2},
}


def dense(shape: tuple[int, ...], label: Tensor, score: Tensor) -> Tensor:
    """The score in the column of the class, 0 elsewhere."""
    own = torch.where(label < shape[1], score, 0.0).unsqueeze(1)
    return torch.zeros(shape, dtype=score.dtype).scatter(1, label.clamp(max=shape[1] - 1).unsqueeze(1), own)


def test_by_hand() -> None:
    pred = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])  # σ = 1/2 and 3/4
    got = soft_label_cross_entropy_loss(pred, (torch.tensor([1, 2]), torch.tensor([0.25, 0.9])), reduction="none")
    # −¼ ln ¾ − ¾ ln ¼ in the column of the class; −ln ½ and −ln ¼ against 0. The score of the background plays no part.
    own = -0.25 * math.log(0.75) - 0.75 * math.log(0.25)
    torch.testing.assert_close(got, torch.tensor([[LN2, own], [LN2, 2 * LN2]]))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("shape", "positions"), SHAPES.values(), ids=SHAPES)
def test_it_is_the_cross_entropy_against_a_dense_target(
    shape: tuple[int, ...], positions: tuple[int, ...], options: dict, reduction: str
) -> None:
    pred = (torch.randn(shape, dtype=torch.float64) * 8).requires_grad_()
    label, score = torch.randint(8, positions), torch.rand(positions, dtype=torch.float64)
    got = soft_label_cross_entropy_loss(pred, (label, score), reduction=reduction, **options)
    want = F.binary_cross_entropy_loss(pred, dense(shape, label, score), reduction=reduction, **options)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grads = (torch.autograd.grad(x.sum(), pred)[0] for x in (got, want))
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_weights_leave_rows_out_and_avg_factor_divides(options: dict) -> None:
    pred, label, score = torch.randn(6, 7), torch.randint(8, (6,)), torch.rand(6)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.0])
    bad = pred.clone()
    bad[1], bad[4] = math.nan, math.inf
    bad.requires_grad_()
    rows = soft_label_cross_entropy_loss(pred, (label, score), reduction="none", **options)
    got = soft_label_cross_entropy_loss(bad, (label, score), weight=weight, avg_factor=3.0, **options)
    torch.testing.assert_close(got, (rows.sum(1) * weight).sum() / 3)
    (grad,) = torch.autograd.grad(got, bad)
    assert torch.isfinite(grad).all() and not grad[1].any() and not grad[4].any()


def test_extreme_logits() -> None:
    pred = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    got = soft_label_cross_entropy_loss(pred, (torch.tensor([0, 0]), torch.tensor([1.0, 0.5])), reduction="none")
    assert got.tolist() == [[0.0, 0.0], [5e3, 1e4]]
    assert torch.autograd.grad(got.sum(), pred)[0].tolist() == [[0.0, 0.0], [-0.5, 1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_gives_float32(dtype: torch.dtype) -> None:
    pred, target = torch.randn(5, 3).to(dtype), (torch.randint(4, (5,)), torch.rand(5).to(dtype))
    got = soft_label_cross_entropy_loss(pred, target)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, soft_label_cross_entropy_loss(pred.float(), (target[0], target[1].float())))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_to_sum_gives_a_connected_0(shape: tuple[int, int]) -> None:
    pred = torch.zeros(shape, requires_grad=True)
    target = (torch.full(shape[:1], shape[1]), torch.zeros(shape[0]))
    for reduction in ("mean", "sum", "none"):
        got = soft_label_cross_entropy_loss(pred, target, reduction=reduction).sum()
        assert got == 0 and torch.autograd.grad(got, pred)[0].shape == shape


def test_mistakes_are_named() -> None:
    pred, label, score = torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), torch.rand(4)
    for target, error, message in (
        ((label, score + 1), ValueError, r"scores must lie in \[0, 1\]"),
        ((label + 1, score), ValueError, r"class indices must be 0…2 for the classes, 3 for background"),
        ((label, score[:2]), ValueError, "the same shape"),
        (label, TypeError, r"\(label, score\)"),
    ):
        with pytest.raises(error, match=message):
            soft_label_cross_entropy_loss(pred, target)
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        soft_label_cross_entropy_loss(pred, (label, score), label_smoothing=1.0)
    with pytest.raises(ValueError, match="avg_factor cannot be used"):
        soft_label_cross_entropy_loss(pred, (label, score), avg_factor=2, reduction="sum")
