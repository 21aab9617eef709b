"""What every loss promises about its value and shape: optimum, reductions, weights, rows, empty input."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CASES, Case, Sample, cases

import detloss

ROWS = 5
REDUCTIONS = ("none", "mean", "sum")


def test_every_registered_loss_has_a_row() -> None:
    assert {case.name for case in CASES} == set(detloss.LOSSES)


def test_every_function_has_a_row() -> None:
    names = {name for name in detloss.functional.__all__ if name.endswith("_loss")} - {"fused_linear_sigmoid_loss"}  # own tests
    public = {getattr(detloss.functional, name) for name in names}
    assert {case.function for case in CASES} == public


def test_rows_have_names_of_their_own() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


@cases(lambda case: case.optimum)
def test_the_optimum_costs_exactly_0(case: Case) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        sample = case.optimum().to(dtype)
        if not all(x.isfinite().all() for x in sample.tensors()):  # 1e6 px in fp16
            continue
        loss, gradient = case.value_and_grad(sample, reduction="none")
        assert (loss == 0).all(), (dtype, loss)
        assert gradient.isfinite().all()


@cases(lambda case: case.optimum)
def test_nothing_is_cheaper_than_the_optimum(case: Case) -> None:
    for seed in range(20):
        assert (case.call(case.sample(ROWS, seed), reduction="none") > 0).all()


@cases()
def test_shape_without_reduction(case: Case) -> None:
    sample = case.sample(ROWS)
    loss = case.call(sample, reduction="none")
    assert loss.shape == case.shape(sample.pred.shape)
    assert loss.isfinite().all()


@cases()
def test_sum_and_mean_are_those_of_the_elements(case: Case) -> None:
    sample = case.sample(ROWS)
    weight = torch.rand(ROWS, dtype=torch.float64)
    for arguments in ({}, {"weight": weight}):
        parts = case.call(sample, reduction="none", **arguments)
        assert math.isclose(case.call(sample, reduction="sum", **arguments), parts.sum(), rel_tol=1e-12)
        mean = parts.sum() / (case.divisor(sample) or parts.numel())
        assert math.isclose(case.call(sample, reduction="mean", **arguments), mean, rel_tol=1e-12)
        assert case.call(sample, **arguments) == case.call(sample, reduction="mean", **arguments)


@cases()
def test_avg_factor_divides_the_sum(case: Case) -> None:
    sample = case.sample(ROWS)
    expected = case.call(sample, reduction="sum") / 8
    for factor in (8, 8.0, torch.tensor(8), torch.tensor(8.0), torch.tensor([8.0]), torch.tensor([[8.0]]).double()):
        loss = case.call(sample, avg_factor=factor)
        assert loss.shape == ()
        assert loss.dtype == torch.float64
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parts = case.call(sample, reduction="none")
    assert torch.equal(case.call(sample, reduction="none", avg_factor=8), parts)


@cases()
def test_avg_factor_0_gives_a_connected_0(case: Case) -> None:
    for factor in (0, 0.0, torch.tensor(0), torch.tensor([0.0])):
        loss, gradient = case.value_and_grad(case.sample(ROWS), avg_factor=factor)
        assert loss == 0
        assert (gradient == 0).all()


@cases()
def test_a_bad_avg_factor_is_an_error(case: Case) -> None:
    for factor in (-1, float("nan"), torch.tensor(-2.0), torch.tensor(float("nan"))):
        with pytest.raises(ValueError, match="avg_factor must be >= 0"):
            case.call(case.sample(ROWS), avg_factor=factor)
    with pytest.raises(ValueError, match=r"avg_factor.*sum"):
        case.call(case.sample(ROWS), avg_factor=2, reduction="sum")
    with pytest.raises(ValueError, match=r"avg_factor.*\[2\]"):
        case.call(case.sample(ROWS), avg_factor=torch.ones(2))


@cases()
def test_an_unknown_reduction_is_an_error(case: Case) -> None:
    for reduction in ("avg", "MEAN", None):
        with pytest.raises(ValueError, match="reduction must be one of 'none', 'mean', 'sum'"):
            case.call(case.sample(ROWS), reduction=reduction)


@cases(lambda case: case.separable)
def test_weights_multiply_rows(case: Case) -> None:
    # Four rows and, in most losses, four columns: a weight of shape (4,) must still act on rows.
    sample = case.sample(4)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    parts = case.call(sample, reduction="none")
    weighted = case.call(sample, reduction="none", weight=weight)
    torch.testing.assert_close(weighted, parts * weight.view(-1, *(1,) * (parts.ndim - 1)), rtol=1e-12, atol=0)
    every = torch.rand_like(parts)
    torch.testing.assert_close(case.call(sample, reduction="none", weight=every), parts * every, rtol=1e-12, atol=0)


@cases()
def test_weights_of_any_dtype(case: Case) -> None:
    sample, kept = case.sample(4), torch.tensor([0, 1, 1, 0])
    expected = case.call(sample, weight=kept.double(), reduction="none")
    for dtype in (torch.bool, torch.int64, torch.float16, torch.float32):
        loss = case.call(sample, weight=kept.to(dtype), reduction="none")
        assert loss.dtype == torch.float64
        assert torch.equal(loss, expected)


@cases()
def test_weights_of_another_shape_are_errors(case: Case) -> None:
    sample = case.sample(ROWS)
    shape = case.call(sample, reduction="none").shape
    for wrong in ((ROWS + 1,), (1,), (*shape, 1), (1, *shape), (ROWS, 1), (ROWS, ROWS)):
        if wrong == tuple(shape[: len(wrong)]):
            continue
        with pytest.raises(ValueError, match="weight"):
            case.call(sample, weight=torch.ones(wrong))
    with pytest.raises(TypeError, match="weight"):
        case.call(sample, weight=[1.0] * ROWS)


def _poisoned(sample: Sample, value: float) -> Sample:
    """``value`` in rows 0 and 3 of the prediction; NaN also in floating-point targets of row 3."""
    sample.pred[[0, 3]] = value
    for target in sample.tensors()[1:]:
        if target.is_floating_point() and math.isnan(value):
            target[3] = value
    return sample


@cases()
def test_weight_0_is_a_dropped_row(case: Case) -> None:
    kept = torch.tensor([1, 2, 4])
    weight = torch.zeros(ROWS).index_fill(0, kept, 1.0)
    expected, expected_gradient = case.value_and_grad(case.sample(ROWS).rows(kept), reduction="sum")
    for value in (0.5, math.nan, math.inf, -math.inf):
        sample = _poisoned(case.sample(ROWS), value)
        loss, gradient = case.value_and_grad(sample, weight=weight, reduction="sum")
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient[kept], expected_gradient, rtol=1e-12, atol=0)
        assert (gradient[[0, 3]] == 0).all()
        assert (case.call(sample, weight=weight, reduction="none")[[0, 3]] == 0).all()


@cases()
def test_weights_all_0_give_a_connected_0_even_of_nan(case: Case) -> None:
    sample = case.sample(ROWS)
    sample.pred.fill_(float("nan"))
    for reduction in REDUCTIONS:
        loss, gradient = case.value_and_grad(sample, weight=torch.zeros(ROWS), reduction=reduction)
        assert (loss == 0).all()
        assert (gradient == 0).all()


@cases(lambda case: case.separable)
def test_weight_2_is_a_doubled_row(case: Case) -> None:
    sample = case.sample(3)
    loss, gradient = case.value_and_grad(sample, weight=torch.tensor([1.0, 2.0, 1.0]), reduction="sum")
    expected, doubled = case.value_and_grad(sample.rows(torch.tensor([0, 1, 2, 1])), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.stack((doubled[0], doubled[1] + doubled[3], doubled[2])), rtol=1e-12, atol=0)


@cases()
def test_empty_input_gives_a_connected_0(case: Case) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16):
        sample = case.sample(2).rows(slice(0, 0)).to(dtype)
        for arguments in ({}, {"weight": torch.zeros(0)}, {"avg_factor": 0}, {"avg_factor": torch.tensor(3.0)}):
            leaf = sample.leaf()
            loss = case.call(leaf, **arguments)
            assert loss.shape == ()
            assert loss == 0
            assert torch.autograd.grad(loss, leaf.pred)[0].shape == leaf.pred.shape
        assert case.call(sample.leaf(), reduction="sum").requires_grad
        parts = case.call(sample.leaf(), reduction="none")
        assert parts.shape == case.shape(sample.pred.shape)
        assert parts.requires_grad


@cases(lambda case: case.separable)
def test_a_nan_row_stays_in_its_row(case: Case) -> None:
    clean, sample = case.sample(ROWS), case.sample(ROWS)
    sample.pred[2] = float("nan")
    leaf = sample.leaf()
    parts = case.call(leaf, reduction="none")
    expected = case.call(clean, reduction="none")
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(parts[others], expected[others])
    assert parts[2].isnan().any()
    (gradient,) = torch.autograd.grad(parts[others].sum(), leaf.pred)
    assert gradient[others].isfinite().all()


@cases()
def test_the_order_of_the_rows_does_not_matter(case: Case) -> None:
    sample, order = case.sample(ROWS), torch.tensor([3, 1, 4, 0, 2])
    loss, gradient = case.value_and_grad(sample, reduction="none")
    permuted, permuted_gradient = case.value_and_grad(sample.rows(order), reduction="none")
    torch.testing.assert_close(permuted, loss[order], rtol=1e-13, atol=0)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-12, atol=1e-15)
