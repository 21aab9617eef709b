"""Distributions over bins in the layouts that heads give them, and their means in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from detloss.criteria.distances import expected_distance

# Shape of the logits, and the dimension that holds four sides with their bins.
LAYOUTS = [
    ((5, 64), -1),
    ((4, 10, 20), -1),
    ((64,), 0),
    ((8, 6), 0),
    ((3, 68, 7, 9), 1),
    ((2, 3, 144, 5, 1), 2),
]


def by_softmax(logits: Tensor, dim: int) -> Tensor:
    dim %= logits.ndim
    shares = logits.double().unflatten(dim, (4, -1)).softmax(dim + 1).movedim(dim + 1, -1)
    return (shares * torch.arange(shares.shape[-1], device=logits.device)).sum(-1)


def check_means(logits: Tensor, dim: int) -> None:
    torch.testing.assert_close(expected_distance(logits, dim).double(), by_softmax(logits, dim), rtol=2e-6, atol=1e-6)


def check_low_precision(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    """That fp16 and bf16 are computed in fp32."""
    logits = (torch.randn(shape) * 4).to(dtype)
    found = expected_distance(logits, dim)
    assert found.dtype == torch.float32 and torch.equal(found, expected_distance(logits.float(), dim))


def check_values_that_are_not_finite(dim: int) -> None:
    """Bins in dimension ``dim`` of three: NaN and infinite ones first, last and between, alone and in company."""
    bins = torch.zeros(9, 4, 9)
    bins[0, 0, 3], bins[1, 0, 0], bins[2, 0, 7] = torch.nan, torch.nan, torch.inf
    bins[3, 0, 1:], bins[4, 0], bins[5, 0, 2] = -torch.inf, -torch.inf, 3e38
    bins[6, 0, 8], bins[7, 0], bins[8, 0], bins[8, 0, 8] = torch.nan, torch.nan, -torch.inf, torch.nan
    logits = bins.flatten(1)[:, :, None].expand(-1, -1, 5) if dim == 1 else bins.flatten(1)[:, None].expand(-1, 5, -1)
    means = expected_distance(logits, dim).movedim(dim, -1)
    torch.testing.assert_close(means, by_softmax(logits, dim).movedim(dim, -1).float(), equal_nan=True)
    assert means[3:6, 0, 0].nan_to_num(-1).tolist() == [0, -1, 2]


def check_taken_without_a_gradient_only(asked: list[int]) -> None:
    """``asked`` grows whenever the kernel is."""
    logits = torch.randn(3, 64, 5, requires_grad=True)
    with torch.no_grad():
        means = expected_distance(logits, 1)
    assert asked == [1]
    torch.testing.assert_close(expected_distance(logits, 1), means)
    torch.testing.assert_close(expected_distance(logits.double().detach(), 1).float(), means)
    assert asked == [1] and expected_distance(logits[:, :, :0].detach(), 1).shape == (3, 4, 0) and asked == [1]
