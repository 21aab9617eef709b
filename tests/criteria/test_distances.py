"""Distances that are predicted as distributions over bins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detloss import DistributionFocalLoss
from detloss.criteria.distances import distribution_term, expected_distance

LN2, LN3 = math.log(2), math.log(3)


def test_the_mean_of_the_bins_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, LN3, LN3, 0.0, 0.0, -1e4]])
    # Shares (1/2, 1/2), (1/4, 3/4), (3/4, 1/4) and (1, 0) of the bins 0 and 1.
    torch.testing.assert_close(expected_distance(logits), torch.tensor([[0.5, 0.75, 0.25, 0.0]]))


def test_sides_are_apart_and_in_order() -> None:
    logits = torch.full((4, 3), -1e4)
    logits[torch.arange(4), torch.tensor([2, 0, 1, 2])] = 0
    assert expected_distance(logits.flatten()).tolist() == [2.0, 0.0, 1.0, 2.0]


def test_maps_and_rows_are_alike() -> None:
    maps = torch.randn(2, 4 * 5, 3, 6, dtype=torch.float64)
    expected = expected_distance(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(expected_distance(maps, 1), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(expected_distance(maps, -3), expected, rtol=1e-14, atol=0)


def test_large_logits_stay_finite_and_the_gradient_is_right() -> None:
    assert expected_distance(torch.tensor([[1e30, -1e30] * 4])).tolist() == [[0.0] * 4]
    assert torch.autograd.gradcheck(expected_distance, torch.randn(3, 16, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 4 * 16).to(dtype)
    got = expected_distance(logits)
    assert got.dtype == torch.float32 and torch.equal(got, expected_distance(logits.float()))


def test_autocast_does_not_lower_the_precision() -> None:
    logits = torch.randn(50, 4 * 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = expected_distance(logits)
    assert got.dtype == torch.float32 and torch.equal(got, expected_distance(logits))


@pytest.mark.parametrize("shape", [(), (4,), (3, 10), (3, 0)])
def test_other_shapes_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits must have 4 \(R \+ 1\) entries, R >= 1, in dimension -1; got \["):
        expected_distance(torch.zeros(shape))
    with pytest.raises(ValueError, match="in dimension 2"):
        expected_distance(torch.zeros(3, 8), 2)
    with pytest.raises(TypeError, match="floating-point"):
        expected_distance(torch.zeros(3, 8, dtype=torch.long))


def term(logits: Tensor, distances: Tensor, weight: Tensor, avg_factor: float, margin: float = 0.01) -> Tensor:
    return distribution_term(DistributionFocalLoss(), logits, distances, weight, avg_factor, margin)


def test_the_term_is_the_weighted_mean_over_sides_by_hand() -> None:
    logits = torch.zeros(2, 4 * 3)
    logits[0, 3:6] = torch.tensor([0.0, LN2, 0.0])  # shares 1/4, 1/2, 1/4 of the top side
    distances = torch.tensor([[0.5, 1.0, 1.5, 0.0], [1.0, 1.0, 1.0, 1.0]])
    # First box: three uniform sides cost ln 3, the top side −ln 1/2; second box: ln 3 each.
    first, second = (3 * LN3 + LN2) / 4, LN3
    got = term(logits, distances, torch.tensor([2.0, 0.5]), 10)
    assert got.item() == pytest.approx((2 * first + 0.5 * second) / 10)


def test_true_distances_are_clamped_below_the_last_bin() -> None:
    logits = torch.tensor([[0.0, 0.0, LN2] * 4])  # −ln p is ln 4 of the bins 0 and 1, ln 2 of the bin 2
    for margin, far in ((0.0, LN2), (0.5, (math.log(4) + LN2) / 2)):
        assert term(logits, torch.full((1, 4), 9.0), torch.ones(1), 1, margin).item() == pytest.approx(far)
    distances = torch.full((1, 4), -3.0)
    assert term(logits, distances, torch.ones(1), 1).item() == pytest.approx(math.log(4))
    assert (distances == -3).all()


def test_a_box_of_weight_0_is_left_out_whatever_it_holds() -> None:
    logits = torch.randn(3, 4 * 4, dtype=torch.float64)
    bad = logits.clone()
    bad[1] = math.nan
    distances, weight = torch.rand(3, 4, dtype=torch.float64) * 3, torch.tensor([1.0, 0.0, 2.0])
    bad.requires_grad_()
    got = term(bad, distances, weight, 3)
    assert torch.equal(got, term(logits, distances, weight, 3))
    (grad,) = torch.autograd.grad(got, bad)
    assert torch.isfinite(grad).all() and not grad[1].any()


def test_no_box_gives_a_connected_0() -> None:
    logits = torch.zeros(0, 4 * 4, requires_grad=True)
    got = term(logits, torch.zeros(0, 4), torch.zeros(0), 1)
    assert got == 0 and torch.autograd.grad(got, logits)[0].shape == (0, 16)
