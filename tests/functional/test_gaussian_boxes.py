"""The losses of rotated boxes against slow formulas with explicit matrices, their invariances and their extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from gaussian_matrices import bhattacharyya, kullback_leibler, wasserstein
from torch import Tensor

import detloss
from detloss import functional as F

Loss = Callable[..., Tensor]


def boxes(rows: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rotated boxes of 5 to 60 px in float64, angles of several turns, aspect ratios up to about 20."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(rows, *shape, generator=generator, dtype=torch.float64)

    target = torch.cat((uniform(0, 100, 2), uniform(5, 60, 2), uniform(-6, 6, 1)), dim=1)
    pred = torch.cat((target[:, :2] + uniform(-15, 15, 2), target[:, 2:4] * uniform(0.3, 2.3, 2), uniform(-6, 6, 1)), dim=1)
    return pred, target


ORACLES: dict[str, tuple[Loss, Loss]] = {
    "probiou": (partial(F.probiou_loss, mode="l2"), bhattacharyya),
    "kld": (partial(F.kld_loss, fun="none", tau=None), kullback_leibler),
    "gwd": (partial(F.gwd_loss, fun="none", tau=None), wasserstein),
}
LOSSES: dict[str, Loss] = {
    "probiou-l1": F.probiou_loss,
    "probiou-l2": partial(F.probiou_loss, mode="l2"),
    "kld": F.kld_loss,
    "kld-sqrt": partial(F.kld_loss, fun="sqrt", tau=2.0),
    "kld-mmrotate": partial(F.kld_loss, fun="log1p_sqrt"),
    "gwd": F.gwd_loss,
    "gwd-sqrt": partial(F.gwd_loss, fun="sqrt", tau=2.0),
    "gwd-mmrotate": partial(F.gwd_loss, fun="log1p_sqrt", normalize=True),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
SCALE_FREE = {k: v for k, v in LOSSES.items() if k not in ("gwd", "gwd-sqrt")}


def value_and_gradient(loss: Loss, pred: Tensor, target: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    pred = pred.clone().requires_grad_()
    value = loss(pred, target, **options)
    return value.detach(), torch.autograd.grad(value.sum(), pred)[0]


def swapped(box: Tensor) -> Tensor:
    """The same box with width and height swapped and a quarter turn."""
    return torch.cat((box[:, :2], box[:, [3, 2]], box[:, 4:] + math.pi / 2), dim=1)


def turned(box: Tensor) -> Tensor:
    """The same box after half a turn."""
    return torch.cat((box[:, :4], box[:, 4:] + math.pi), dim=1)


def scaled(box: Tensor, scale: float) -> Tensor:
    return torch.cat((box[:, :4] * scale, box[:, 4:]), dim=1)


@pytest.mark.parametrize(("loss", "oracle"), ORACLES.values(), ids=ORACLES)
def test_value_and_gradient_are_those_of_the_matrices(loss: Loss, oracle: Loss) -> None:
    pred, target = boxes()
    expected = value_and_gradient(oracle, pred, target)
    actual = value_and_gradient(loss, pred, target, reduction="none")
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-8, atol=1e-8)
    single = loss(pred.float(), target.float(), reduction="none")
    torch.testing.assert_close(single.double(), expected[0], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(("loss", "oracle"), ORACLES.values(), ids=ORACLES)
def test_long_thin_boxes_lose_no_digits(loss: Loss, oracle: Loss) -> None:
    pred, target = boxes()
    for box in (pred, target):
        box[:, 2] *= 20
        box[:, 3] /= 2
    pred[:, 2:] = target[:, 2:] + (pred[:, 2:] - target[:, 2:]) * 1e-2
    expected = oracle(pred, target)
    single = loss(pred.float().double().float(), target.float(), reduction="none").double()
    exact = oracle(pred.float().double(), target.float().double())
    torch.testing.assert_close(single, exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(pred, target, reduction="none"), expected, rtol=1e-7, atol=1e-7)


def test_probiou_modes_by_hand() -> None:
    # Two unit squares 1 apart: Σ = 1/12, B = 12/8; L1 = √(1 − exp(−B)).
    pred, target = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.7]]), torch.tensor([[1.0, 0.0, 1.0, 1.0, -0.4]])
    assert F.probiou_loss(pred, target, mode="l2").item() == pytest.approx(1.5)
    assert F.probiou_loss(pred, target).item() == pytest.approx(math.sqrt(1 - math.exp(-1.5)))
    # The same centre, sides 1 and 3: |Σ̄| = (5/12)², √(|Σ||Σ*|) = 9/144.
    assert F.probiou_loss(pred, pred * torch.tensor([1, 1, 3, 3, 1]), mode="l2").item() == pytest.approx(math.log(25 / 9) / 2)


def test_kld_by_hand_and_its_direction() -> None:
    small, large = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0, 1.0]])
    divergence = partial(F.kld_loss, fun="none", tau=None)
    # KL(target ‖ prediction): tr(Σ⁻¹Σ*) = 2 · 4, ln(|Σ|/|Σ*|) = −ln 16 for a prediction that is too small.
    assert divergence(small, large).item() == pytest.approx((8 - math.log(16)) / 2 - 1)
    assert divergence(large, small).item() == pytest.approx((0.5 + math.log(16)) / 2 - 1)


def test_gwd_without_rotation_is_the_distance_of_nwd() -> None:
    pred, target = boxes()
    pred[:, 4] = target[:, 4] = 0
    distance = F.gwd_loss(pred, target, fun="sqrt", tau=None, reduction="none")
    expected = F.nwd_loss(pred[:, :4], target[:, :4], constant=7.0, box_format="cxcywh", reduction="none")
    torch.testing.assert_close(1 - torch.exp(-distance / 7), expected)


@pytest.mark.parametrize("name", ["kld", "gwd"])
def test_functions_of_the_distance(name: str) -> None:
    loss, (pred, target) = getattr(F, f"{name}_loss"), boxes(50)
    distance = loss(pred, target, fun="none", tau=None, reduction="none")
    functions = {
        "none": lambda d: d,
        "sqrt": torch.sqrt,
        "log1p": torch.log1p,
        "log1p_sqrt": lambda d: torch.log1p(d.sqrt()),
    }
    for fun, f in functions.items():
        torch.testing.assert_close(loss(pred, target, fun=fun, tau=None, reduction="none"), f(distance))
        for tau in (1.0, 3.0):
            # The papers' 1 − 1/(τ + f(D)) up to a constant, which makes identical boxes cost 0.
            expected = 1 - 1 / (tau + f(distance)) - (1 - 1 / tau)
            torch.testing.assert_close(loss(pred, target, fun=fun, tau=tau, reduction="none"), expected)


def test_normalised_gwd_divides_by_the_mean_area() -> None:
    pred, target = boxes(50)
    plain = F.gwd_loss(pred, target, fun="none", tau=None, reduction="none")
    areas = (pred[:, 2] * pred[:, 3] * target[:, 2] * target[:, 3]).sqrt()
    actual = F.gwd_loss(pred, target, fun="none", tau=None, normalize=True, reduction="none")
    torch.testing.assert_close(actual, plain / areas)


@every_loss
def test_other_names_of_the_same_box_change_nothing(loss: Loss) -> None:
    pred, target = boxes()
    value, slope = value_and_gradient(loss, pred, target, reduction="none")
    for change in (swapped, turned):
        torch.testing.assert_close(loss(change(pred), target, reduction="none"), value)
        other, other_slope = value_and_gradient(loss, pred, change(target), reduction="none")
        torch.testing.assert_close(other, value)
        torch.testing.assert_close(other_slope, slope)
        assert (loss(change(target), target, reduction="none") < 1e-12).all()
        assert (loss(change(target.float()), target.float(), reduction="none") < 3e-5).all()


@every_loss
def test_the_same_box_costs_exactly_0(loss: Loss) -> None:
    box, _ = boxes()
    edge = torch.tensor(
        [[0, 0, 0, 0, 0], [5, 6, 0, 0, 1], [5, 6, 10, 0, 1], [1e6, 1e6, 1e6, 1e6, 3], [0, 0, 1e-4, 2e-4, 1e4], [1, 1, 1e6, 1, 2]]
    )
    for same in (box, box.float(), box.half(), box.bfloat16(), edge, edge.double()):
        value, slope = value_and_gradient(loss, same, same, reduction="none")
        assert (value == 0).all()
        assert (slope == 0).all()


@pytest.mark.parametrize("loss", SCALE_FREE.values(), ids=SCALE_FREE)
def test_scale_changes_nothing(loss: Loss) -> None:
    pred, target = boxes()
    expected = loss(pred, target, reduction="none")
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(loss(scaled(pred, scale), scaled(target, scale), reduction="none"), expected)
        single = loss(scaled(pred, scale).float(), scaled(target, scale).float(), reduction="none")
        torch.testing.assert_close(single.double(), expected, rtol=2e-5, atol=2e-6)


def extremes() -> tuple[Tensor, Tensor]:
    """Every combination of tiny, huge, empty and inverted predictions near and far with a few targets."""
    sides, centres, angles = (0.0, -5.0, 1e-6, 1e-4, 1.0, 30.0, 1e6), (0.0, 50.0, 1e6), (0.0, 1.0, 1e4)
    pred = torch.tensor([(c, c / 2, w, h, a) for c in centres for w in sides for h in sides for a in angles])
    target = torch.tensor(
        [(0, 0, 20, 10, 0.5), (0, 0, 1e-4, 1e-4, 0), (0, 0, 1e6, 2e5, 3), (0, 0, 0, 0, 0), (0, 0, 10, 0, 0.2), (50, 25, -1, 5, 1)]
    )
    shape = (len(pred), len(target), 5)
    return pred[:, None].expand(shape).reshape(-1, 5), target[None].expand(shape).reshape(-1, 5)


@every_loss
def test_extremes_are_finite(loss: Loss) -> None:
    pred, target = extremes()
    for dtype in (torch.float32, torch.float64):
        value, slope = value_and_gradient(loss, pred.to(dtype), target.to(dtype), reduction="none")
        assert value.isfinite().all()
        assert slope.isfinite().all()
        assert (value >= 0).all()


@every_loss
def test_a_negative_side_far_beyond_all_others_is_finite(loss: Loss) -> None:
    pred = torch.tensor([[0.0, 0.0, -side, small, 0.0] for side in (1e10, 1e15, 3e38) for small in (0.0, 1e-30, 1e-20)])
    target = torch.cat((pred.abs()[:, :2], pred[:, 3:4].expand(-1, 2), pred[:, 4:]), 1)
    value, slope = value_and_gradient(loss, pred, target, reduction="none")
    assert value.isfinite().all() and slope.isfinite().all()


@pytest.mark.parametrize("name", ["probiou-l1", "kld", "kld-mmrotate", "gwd", "gwd-mmrotate"])
def test_the_gradient_is_bounded_by_the_shortest_side(name: str) -> None:
    pred, target = extremes()
    sides = torch.cat((pred[:, 2:4], target[:, 2:4]), dim=1).abs()
    shortest = torch.where(sides > 0, sides, math.inf).amin(1, keepdim=True)
    shortest = torch.where(shortest.isinf(), 0.0, shortest)  # points: no length to compare with
    _, slope = value_and_gradient(LOSSES[name], pred, target, reduction="none")
    assert (slope[:, :4].abs() * shortest).max() <= 2e3
    assert slope[:, 4].abs().max() <= 1


@every_loss
def test_a_negative_side_costs_1_and_is_pulled_back(loss: Loss) -> None:
    pred, target = extremes()
    value, slope = value_and_gradient(loss, pred, target, reduction="none")
    for side in (2, 3):
        negative = pred[:, side] < 0
        assert (value[negative] >= 1).all()
        assert (slope[negative, side] < 0).all()


@every_loss
def test_an_empty_prediction_is_told_to_grow(loss: Loss) -> None:
    target = torch.tensor([[0.0, 0.0, 20.0, 10.0, 0.5]])
    for w, h in ((0.0, 10.0), (20.0, 0.0), (0.0, 0.0)):
        _, slope = value_and_gradient(loss, torch.tensor([[0.0, 0.0, w, h, 0.5]]), target)
        assert all(slope[0, 2 + i] < 0 for i, side in enumerate((w, h)) if side == 0)


@every_loss
def test_distance_and_rotation_cost_more(loss: Loss) -> None:
    target = torch.tensor([[0.0, 0.0, 40.0, 10.0, 0.3]], dtype=torch.float64).expand(30, 5)
    steps = torch.linspace(0, 1, 30, dtype=torch.float64)
    for column, reach in ((0, 30.0), (1, 15.0), (4, math.pi / 2)):
        pred = target.clone()
        pred[:, column] += reach * steps
        assert (loss(pred, target, reduction="none").diff() > 0).all()


@every_loss
def test_the_angle_of_a_square_does_not_matter(loss: Loss) -> None:
    pred = torch.tensor([[1.0, 2.0, 10.0, 10.0, 0.1], [1.0, 2.0, 10.0, 10.0, 0.6]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0.0, 12.0, 12.0, 0.4]], dtype=torch.float64).expand(2, 5)
    value, slope = value_and_gradient(loss, pred, target, reduction="none")
    assert value[0].item() == pytest.approx(value[1].item(), abs=1e-12)
    assert slope[:, 4].abs().max() < 1e-12


@every_loss
def test_gradcheck_through_all_five_numbers(loss: Loss) -> None:
    pred, target = boxes(5, seed=3)
    assert torch.autograd.gradcheck(lambda p, t: loss(p, t, reduction="none"), (pred.requires_grad_(), target.requires_grad_()))


def test_rotated_boxes_have_five_numbers() -> None:
    box = torch.ones(3, 4)
    for name in ("probiou", "kld", "gwd"):
        with pytest.raises(ValueError, match=rf"{name}_loss: boxes must have shape \[N, 5\]; got \[3, 4\]"):
            getattr(F, f"{name}_loss")(box, box)
        with pytest.raises(ValueError, match="same shape"):
            getattr(F, f"{name}_loss")(torch.ones(3, 5), torch.ones(1, 5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: detloss.KLDLoss(fun="log"), "fun must be one of 'log1p', 'sqrt', 'log1p_sqrt', 'none'; got 'log'"),
        (lambda: detloss.GWDLoss(tau=0.5), "tau must be at least 1, or None"),
        (lambda: detloss.ProbIoULoss(mode="L1"), "mode must be one of 'l1', 'l2'; got 'L1'"),
        (lambda: detloss.KLDLoss(eps=0), "eps must be a finite number > 0"),
        (lambda: detloss.NWDLoss(constant=0), "constant must be a finite number > 0"),
    ],
)
def test_options_are_checked_when_the_loss_is_made(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
