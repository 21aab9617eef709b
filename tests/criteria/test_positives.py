"""Positives in a fixed number of slots."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detloss import Assignment
from detloss.criteria.levels import rows
from detloss.criteria.positives import select_positives

SIZES = ((3, 2), (1, 4), (2, 1))  # 6 + 4 + 2 = 12 priors


def assignment(*positive: tuple[int, ...], count: int = 12) -> Assignment:
    """The priors named of every image belong to object 0."""
    gt_index = torch.full((len(positive), count), -1)
    for image, priors in enumerate(positive):
        gt_index[image, list(priors)] = 0
    return Assignment(gt_index, torch.zeros_like(gt_index, dtype=torch.bool))


def maps(channels: int = 3) -> list[Tensor]:
    return [torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True) for size in SIZES]


def test_slots_hold_the_positives_in_order() -> None:
    chosen = select_positives(assignment((2, 7, 11), (0,), ()), 4)
    assert chosen.index.tolist() == [[2, 7, 11, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert chosen.filled.tolist() == [[True, True, True, False], [True, False, False, False], [False] * 4]


@pytest.mark.parametrize(("most", "slots"), [(None, 12), (100, 12), (5, 5), (0, 0)])
def test_the_number_of_slots(most: int | None, slots: int) -> None:
    assert select_positives(assignment(() if most == 0 else (1, 2)), most).index.shape == (1, slots)


def test_all_priors_may_be_positive() -> None:
    chosen = select_positives(assignment(tuple(range(12))))
    assert chosen.index.tolist() == [list(range(12))] and chosen.filled.all()


def test_rows_of_empty_slots_are_0_and_so_is_their_gradient() -> None:
    values = torch.randn(2, 12, 3, dtype=torch.float64)
    values[1, 0] = math.nan  # where the empty slots point
    values.requires_grad_()
    chosen = select_positives(assignment((2, 7), (4,)), 3)
    taken = chosen.take(values)
    assert torch.equal(taken[0], torch.stack((values[0, 2], values[0, 7], torch.zeros(3).double())))
    assert torch.equal(taken[1], torch.stack((values[1, 4], *torch.zeros(2, 3).double())))
    (grad,) = torch.autograd.grad(taken.square().sum(), values)
    assert torch.isfinite(grad).all() and grad.any(-1).nonzero().tolist() == [[0, 2], [0, 7], [1, 4]]
    assert torch.equal(chosen.take(values[..., 0]), taken[..., 0])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_maps_give_the_rows_of_all_levels(layout: torch.memory_format) -> None:
    levels = maps()
    chosen = select_positives(assignment((5, 6, 9, 11), (0, 10)), 5)
    got = chosen.take_maps([x.contiguous(memory_format=layout) for x in levels])
    want = chosen.take(rows(levels))
    assert torch.equal(got, want) and got.shape == (2, 5, 3)
    pairs = zip(*(torch.autograd.grad(x.square().sum(), levels) for x in (got, want)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_maps_without_cells_and_maps_without_positives_are_connected() -> None:
    levels = [torch.zeros(1, 2, 0, 3, requires_grad=True), torch.zeros(1, 2, 3, 4, requires_grad=True)]
    taken = select_positives(assignment(()), 2).take_maps(levels)
    assert taken.shape == (1, 2, 2)
    assert [g.shape for g in torch.autograd.grad(taken.sum(), levels)] == [x.shape for x in levels]


def test_scatter_brings_numbers_of_slots_back() -> None:
    chosen = select_positives(assignment((2, 7), (0,)), 3)
    numbers = torch.tensor([[1.0, 2.0, math.nan], [3.0, math.nan, math.nan]])
    got = chosen.scatter(numbers, 12)
    assert got.nonzero().tolist() == [[0, 2], [0, 7], [1, 0]] and got[got != 0].tolist() == [1.0, 2.0, 3.0]
