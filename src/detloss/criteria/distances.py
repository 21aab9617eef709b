"""Distances to the sides of a box that a head predicts as distributions over bins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detloss.checks import check_float, shape_of, upcast
from detloss.types import Number

__all__ = ["distribution_term", "expected_distance"]


def expected_distance(logits: Tensor) -> Tensor:
    """Mean distance of every side: Σ_r r · softmax(x)_r over its bins r = 0…R.

    Source: Generalized Focal Loss, Li et al. 2020, arXiv:2006.04388.

    Args:
        logits: ``[..., 4·(R + 1)]``, the R + 1 bins of the left side first, then top, right and bottom; R >= 1.

    Returns:
        ``[..., 4]`` in bins; fp16 and bf16 logits give fp32.

    >>> expected_distance(torch.zeros(1, 4 * 5))
    tensor([[2., 2., 2., 2.]])
    """
    check_float("expected_distance", "logits", logits)
    if logits.ndim < 1 or logits.shape[-1] % 4 or logits.shape[-1] < 8:
        raise ValueError(f"expected_distance: logits must have shape [..., 4 (R + 1)] with R >= 1; got {shape_of(logits)}")
    shares = upcast(logits).unflatten(-1, (4, logits.shape[-1] // 4)).softmax(-1)
    return shares @ torch.arange(shares.shape[-1], device=shares.device, dtype=shares.dtype)


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
