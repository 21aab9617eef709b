"""Distances to the sides of a box that a head predicts as distributions over bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detloss.checks import check_float, shape_of, upcast
from detloss.kernels.means import BinMeans
from detloss.kernels.selection import match_backend
from detloss.types import Number

__all__ = ["distribution_term", "expected_distance"]


def expected_distance(logits: Tensor, dim: int = -1) -> Tensor:
    """Mean distance of every side: Σ_r r · softmax(x)_r over its bins r = 0…R.

    Source: Generalized Focal Loss, Li et al. 2020, arXiv:2006.04388.

    Args:
        logits: ``[..., 4·(R + 1)]``, the R + 1 bins of the left side first, then top, right and bottom; R >= 1.
        dim: the dimension that holds the bins; 1 for maps ``[B, 4·(R + 1), H, W]``.

    Returns:
        ``[..., 4]`` in bins, maps ``[B, 4, H, W]``; fp16 and bf16 logits give fp32.

    >>> expected_distance(torch.zeros(1, 4 * 5))
    tensor([[2., 2., 2., 2.]])
    """
    check_float("expected_distance", "logits", logits)
    if not -logits.ndim <= dim < logits.ndim or logits.shape[dim] % 4 or logits.shape[dim] < 8:
        raise ValueError(
            f"expected_distance: logits must have 4 (R + 1) entries, R >= 1, in dimension {dim}; got {shape_of(logits)}"
        )
    dim %= logits.ndim
    sides = logits.unflatten(dim, (4, logits.shape[dim] // 4))
    if not (torch.is_grad_enabled() and logits.requires_grad):
        means = BinMeans(sides.reshape(math.prod(sides.shape[:dim]), 4, sides.shape[dim + 1], math.prod(sides.shape[dim + 2 :])))
        if backend := match_backend(means):
            return backend.means(means).reshape(*sides.shape[: dim + 1], *sides.shape[dim + 2 :])
    bins = upcast(sides)
    distance = torch.arange(bins.shape[dim + 1], device=bins.device, dtype=bins.dtype)
    if dim < logits.ndim - 1 and _exact_product(bins):
        parts = bins.split(1) if dim else (bins,)  # image by image, for temporaries that stay in the cache
        return torch.cat([_mean_by_product(part, distance, dim + 1) for part in parts])
    # Not a matrix product, which autocast would compute in half precision.
    return (bins.softmax(dim + 1) * distance.view(-1, *(1,) * (bins.ndim - dim - 2))).sum(dim + 1)


def _exact_product(bins: Tensor) -> bool:
    """Whether a product of matrices is what is fast and keeps all digits: on the CPU, where nothing asks for fewer."""
    if torch.compiler.is_compiling() or bins.device.type != "cpu" or (torch.is_grad_enabled() and bins.requires_grad):
        return False
    return torch.get_float32_matmul_precision() == "highest"


def _mean_by_product(bins: Tensor, distance: Tensor, dim: int) -> Tensor:
    """Σ r e^x / Σ e^x of the bins in ``dim``, both sums in one product: a softmax across maps reads them line by line."""
    power = (bins - bins.amax(dim, keepdim=True)).exp_().flatten(dim + 1)
    with torch.autocast(bins.device.type, enabled=False):
        weighted, total = (torch.stack((distance, torch.ones_like(distance))) @ power).unbind(dim)
    return (weighted / total).unflatten(dim, bins.shape[dim + 1 :])


def distribution_term(
    loss: nn.Module, logits: Tensor, distances: Tensor, weight: Tensor, avg_factor: Number | Tensor, margin: float
) -> Tensor:
    """Loss of the distributions of N boxes: Σ weight · mean over the four sides / avg_factor.

    Args:
        loss: for logits ``[M, R + 1]`` and distances ``[M]``, such as DistributionFocalLoss.
        logits: ``[N, 4·(R + 1)]``.
        distances: ``[N, 4]`` true distances in bins; they are clamped to [0, R − margin].
        weight: ``[N]``; 0 leaves a box out.
        avg_factor: what the sum over boxes is divided by.
        margin: how far the largest distance that is learnt stays below the last bin.
    """
    bins = logits.unflatten(-1, (4, logits.shape[-1] // 4)).flatten(0, -2)
    true = distances.clamp(0, bins.shape[-1] - 1 - margin).flatten()
    term: Tensor = loss(bins, true, weight=weight.repeat_interleave(4), avg_factor=avg_factor * 4)
    return term
