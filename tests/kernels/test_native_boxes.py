"""Kernels of the IoU family: blocks of plain pairs are computed by shorter formulas, and one special pair by all the rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

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

Loss: TypeAlias = tuple[str, Callable[..., Tensor], tuple[float, ...], dict[str, Any]]
LOSSES: dict[str, Loss] = {
    "iou linear": ("iou", F.iou_loss, (0.0,), {"mode": "linear"}),
    "iou square": ("iou", F.iou_loss, (1.0,), {"mode": "square"}),
    "iou log": ("iou", F.iou_loss, (2.0,), {}),
    "giou": ("giou", F.giou_loss, (), {}),
    "diou": ("diou", F.diou_loss, (), {}),
    "ciou": ("ciou", F.ciou_loss, (-1.0,), {}),
    "ciou gated": ("ciou", F.ciou_loss, (0.5,), {"alpha_threshold": 0.5}),
    "eiou": ("eiou", F.eiou_loss, (), {}),
    "siou": ("siou", F.siou_loss, (4.0,), {}),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def plain_pairs(count: int) -> tuple[Tensor, Tensor]:
    """Boxes of 1 to 51 pixels, near and far apart, without ends in common."""
    pred, target = (torch.cat((corner, corner + 1 + 50 * torch.rand(count, 2)), 1) for corner in 60 * torch.rand(2, count, 2))
    return pred, target


def check(name: str, pred: Tensor, target: Tensor) -> None:
    """The kernel against the formula in float64."""
    op, function, numbers, options = LOSSES[name]
    call = Call(op, pred, target=target, numbers=(1e-6, 0.0, *numbers))
    reference = partial(function, target=target, reduction="none", **options)
    with kernels.use("reference"):
        calls.check(BACKEND, calls.Pair(name, call, reference), tolerance=3e-6)


def total(name: str, pred: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and gradient of the kernel."""
    op, _, numbers, _ = LOSSES[name]
    result = BACKEND.total(Call(op, pred, target=target, weight=weight, numbers=(1e-6, 0.0, *numbers)), 1.0, None, True, True)
    assert result is not None and result[1] is not None
    return result[0], result[1]


@every_loss
def test_one_special_pair_among_plain_ones(name: str, instruction_set: str) -> None:
    """Blocks without ties and without boxes that are none are computed by shorter formulas: each reason not to, alone."""
    specials = torch.tensor([
        [[0, 0, 4, 4], [0, 0, 4, 4]], [[0, 1, 4, 5], [0, 0, 5, 4]], [[1, 0, 5, 4], [0, 0, 4, 5]], [[1, 1, 4, 5], [0, 0, 4, 4]],
        [[1, 1, 5, 4], [0, 0, 4, 4]], [[3, 0, 1, 4], [0, 1, 2, 3]], [[0, 4, 4, 1], [1, 0, 3, 2]], [[2, 0, 2, 4], [0, 1, 4, 3]],
        [[0, 2, 4, 2], [1, 0, 3, 4]], [[0, 0, 4, 4], [1, 2, 3, 2]], [[0, 0, 4, 4], [3, 1, 1, 2]], [[0, 0, 2e9, 4], [1, 1, 3, 5]],
        [[-3e9, 0, 2, 4], [1, 1, 3, 5]], [[0, 0, 1e-10, 4], [1, 1, 3, 5]], [[0, 0, 4, 4], [1, 1, 3, 1.0000001]],
        [[0, 0, 2e6, 1], [1, -1e6, 2, 1e6]], [[0, 0, 1, 3], [-1e7, 1, 1e7, 2]], [[0, 0, 1, 1], [4e6, 4e6, 4e6 + 2, 4e6 + 3]],
    ])  # fmt: skip
    for at, (one, other) in enumerate(specials):
        pred, target = plain_pairs(150)
        pred[64 + at], target[64 + at] = one, other
        check(name, pred, target)


@pytest.mark.parametrize("scale", [1e-11, 1e-9, 1e-6, 1.0, 1e6, 1e8, 1e10, 1e25])
@every_loss
def test_boxes_of_any_size(name: str, scale: float, instruction_set: str) -> None:
    pred, target = (boxes * scale for boxes in plain_pairs(200))
    check(name, pred, target)
    check(name, target + scale * torch.rand(200, 4), target)  # none of them apart


@every_loss
def test_what_is_no_box_counts_nothing_with_weight_0(name: str, instruction_set: str) -> None:
    pred, target = plain_pairs(200)
    weight = torch.ones(200)
    weight[70:90] = 0
    plain, plain_grad = total(name, pred, target, weight)
    pred[70:75], target[75:80], pred[80:85] = torch.nan, torch.inf, torch.tensor([4.0, 4, 1, 1])
    found, grad = total(name, pred, target, weight)
    assert torch.equal(found, plain) and torch.equal(grad, plain_grad)
    assert not grad[70:90].any() and grad[69].any()


@every_loss
def test_a_bound_too_small_for_an_inverse_makes_no_nan(name: str, instruction_set: str) -> None:
    op, _, numbers, _ = LOSSES[name]
    pred = torch.tensor([[1.0, 1, 1, 1], [0, 0, 4, 4], [3, 3, 1, 1]])
    target = torch.tensor([[2.0, 2, 2, 2], [6, 6, 9, 9], [1, 1, 1, 2]])
    loss = BACKEND.elements(Call(op, pred, target=target, numbers=(1e-40, 0.0, *numbers)), True)
    assert loss is not None and torch.isfinite(loss).all() and (loss > 0.5).all()


@every_loss
@pytest.mark.parametrize("side", ["prediction", "target"])
def test_what_is_no_number_stays_in_its_row(name: str, side: str, instruction_set: str) -> None:
    """Among plain pairs, and among special ones."""
    op, _, numbers, _ = LOSSES[name]
    for special in (False, True):
        for place in range(4):
            pred, target = plain_pairs(90)
            if special:
                pred[12] = target[12]
            (pred if side == "prediction" else target)[7, place] = torch.nan
            loss = BACKEND.elements(Call(op, pred, target=target, numbers=(1e-6, 0.0, *numbers)), True)
            assert loss is not None and loss.isnan().nonzero().tolist() == [[7]]


@every_loss
def test_the_numbers_of_a_pair_do_not_depend_on_its_neighbours(name: str, instruction_set: str) -> None:
    pred, target = plain_pairs(200)
    weight = torch.ones(200)
    before, before_grad = total(name, pred, target, weight)
    pred[70], target[71], pred[72] = target[70], torch.tensor([5.0, 5, 5, 5]), torch.nan
    _, grad = total(name, pred, target, weight)
    others = torch.tensor([i for i in range(200) if i not in (70, 71, 72)])
    assert before.isfinite() and torch.equal(grad[others], before_grad[others]) and grad[72].isnan().all()
