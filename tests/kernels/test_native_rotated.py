"""The kernel of ProbIoU where boxes are turned far, as equal as can be, or no numbers."""

from __future__ import annotations

from functools import partial

import kernel_calls as calls
import pytest
import torch
from torch import Tensor

from detloss import functional as F
from detloss import kernels
from detloss.kernels.contract import Call
from detloss.kernels.native import BACKEND
from detloss.kernels.native.library import problem

if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)

modes = pytest.mark.parametrize("form", [0.0, 1.0], ids=["l1", "l2"])


def some_boxes(count: int) -> tuple[Tensor, Tensor]:
    """Pairs that overlap, turned against each other by up to half a radian."""
    target = torch.rand(count, 5) * torch.tensor([50.0, 50, 40, 40, 3.2]) + torch.tensor([0.0, 0, 3, 3, -1.6])
    return target + (torch.rand(count, 5) - 0.5) * torch.tensor([9.0, 9, 4, 4, 1.0]), target


def check(form: float, pred: Tensor, target: Tensor) -> None:
    """The kernel against the formula in float64."""
    call = Call("probiou", pred, target=target, numbers=(1e-4, form))
    reference = partial(F.probiou_loss, target=target, mode="l2" if form else "l1", reduction="none")
    with kernels.use("reference"):
        calls.check(BACKEND, calls.Pair("probiou", call, reference), tolerance=3e-6)


@modes
@pytest.mark.parametrize("count", [1, 7, 255, 256, 257, 1000])
def test_any_number_of_boxes(count: int, form: float, instruction_set: str) -> None:
    check(form, *some_boxes(count))


@modes
@pytest.mark.parametrize("turns", [1, 100, 1000, 10_000])
def test_any_number_of_turns(turns: int, form: float, instruction_set: str) -> None:
    """Beyond thousands of radians a tile of boxes takes sines and cosines from the library of mathematics."""
    pred, target = some_boxes(300)
    target[::3, 4] += turns * 6.25
    pred[::3, 4] = target[::3, 4] + 0.25
    pred[1::3, 4] -= turns * 6.25
    check(form, pred, target)


@modes
def test_the_same_box_costs_0_however_it_is_written(form: float, instruction_set: str) -> None:
    pred, _ = some_boxes(300)
    loss = BACKEND.elements(Call("probiou", pred, target=pred.clone(), numbers=(1e-4, form)), True)
    assert loss is not None and not loss.any()
    squares = torch.tensor([[3.0, 4, 8, 8, 0.5]])
    for angle in (0.5, 0.5 + 2**-10, 0.75, -3.0):
        turned = torch.tensor([[3.0, 4, 8, 8, angle]])
        loss = BACKEND.elements(Call("probiou", squares, target=turned, numbers=(1e-4, form)), True)
        assert loss is not None and loss.item() == 0


@modes
def test_what_is_no_number_stays_in_its_row(form: float, instruction_set: str) -> None:
    pred, target = some_boxes(40)
    call = Call("probiou", pred, target=target, numbers=(1e-4, form))
    before = BACKEND.total(call, 1.0, None, True, True)
    for place in range(5):
        for side in (pred, target):
            kept, side[7, place] = side[7, place].clone(), torch.nan
            found, losses = BACKEND.total(call, 1.0, None, True, True), BACKEND.elements(call, True)
            assert before is not None and found is not None and losses is not None
            grad, plain = found[1], before[1]
            assert grad is not None and plain is not None
            assert found[0].isnan() and losses.isnan().nonzero().tolist() == [[7]] and grad[7].isnan().all()
            assert torch.equal(grad[8:], plain[8:]) and torch.equal(grad[:7], plain[:7])
            side[7, place] = kept


def test_lengths_beyond_the_limit_count_as_the_limit(instruction_set: str) -> None:
    pred, target = some_boxes(20)
    pred[3, 0], pred[4, 2], target[5, 1], pred[6, 3] = 1e20, torch.inf, -torch.inf, -1e18
    check(0.0, pred, target)
    losses = BACKEND.elements(Call("probiou", pred, target=target, numbers=(1e-4, 1.0)), True)
    with kernels.use("reference"):
        expected = F.probiou_loss(pred.double(), target.double(), mode="l2", reduction="none")
    assert losses is not None
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
