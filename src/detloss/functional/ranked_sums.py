"""Sums over the elements that are ranked ahead of each element, and their gradients: what the ranking losses are made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.kernels.selection import recorded

__all__ = ["sum_ahead", "sum_ahead_missorted"]

# Pairs of positives looked at at once: 16 MiB for each float64 temporary.
PAIR_BUDGET = 2**21


class _Ahead(torch.autograd.Function):
    """Σ_k v_k H(s_k − s_i) for every i of rising s. It is linear in v; its transpose is the same sum over −s."""

    generate_vmap_rule = True

    @staticmethod
    def forward(score: Tensor, values: Tensor, delta: float) -> Tensor:
        mass = torch_f.pad(values.cumsum(0), (1, 0))
        moment = torch_f.pad((values * score).cumsum(0), (1, 0))
        high = torch.searchsorted(score, score + delta)
        ahead = mass[-1] - mass[high]
        if delta == 0:
            return ahead
        low = torch.searchsorted(score, score - delta, right=True)
        within = moment[high] - moment[low] - (score - delta) * (mass[high] - mass[low])
        return ahead + within / (2 * delta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.delta = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (score,) = ctx.saved_tensors
        return None, _Ahead.apply(-score.flip(0), gradients[0].flip(0), ctx.delta).flip(0), None


def missorted_sum(score: Tensor, quality: Tensor, values: Tensor, positive: Tensor, delta: float) -> Tensor:
    """Σ_k v_k H(s_k − s_i) [q_k < q_i] over positives k for every positive i, 0 elsewhere; all arguments ``[n]``.

    It looks at pairs of positives only, which needs their number on the host.
    """
    index = positive.nonzero().squeeze(1)
    s, q, v = score[index], quality[index], values[index]
    rows = max(1, PAIR_BUDGET // max(1, len(index)))
    sums = [torch.zeros_like(v[:0])]
    for first in range(0, len(index), rows):
        chosen = slice(first, first + rows)
        ahead = s - s[chosen, None]
        soft = (ahead / (2 * delta) + 0.5).clamp(0, 1) if delta > 0 else (ahead >= 0).to(s.dtype)
        sums.append(torch.where(q < q[chosen, None], soft, 0.0) @ v)
    return torch.zeros_like(values).index_copy(0, index, torch.cat(sums))


# One operator where operations are recorded.
sum_operator = torch.library.custom_op("detloss::missorted_sum", missorted_sum, mutates_args=())


@sum_operator.register_fake
def _(score: Tensor, quality: Tensor, values: Tensor, positive: Tensor, delta: float) -> Tensor:
    return torch.empty_like(values)


@sum_operator.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    def at(i: int) -> list[Any]:
        return [x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims, strict=True)]

    return torch.stack([sum_operator(*at(i)) for i in range(info.batch_size)]), 0


class _Missorted(torch.autograd.Function):
    """:func:`missorted_sum`, linear in the values; its transpose is the same sum over negated scores and qualities."""

    generate_vmap_rule = True

    @staticmethod
    def forward(score: Tensor, quality: Tensor, values: Tensor, positive: Tensor, delta: float) -> Tensor:
        return (sum_operator if recorded(score) else missorted_sum)(score, quality, values, positive, delta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], inputs[3])
        ctx.delta = inputs[4]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None, None]:
        score, quality, positive = ctx.saved_tensors
        return None, None, _Missorted.apply(-score, -quality, gradients[0], positive, ctx.delta), None, None


def sum_ahead(score: Tensor, values: Tensor, delta: float) -> Tensor:
    """Σ_k v_k H(s_k − s_i) for every i of n, with H(x) = clamp(x/(2δ) + ½, 0, 1), or x >= 0 where δ = 0.

    Differences of prefix sums: O(n log n) time, O(n) memory. Differentiable in the values.

    Args:
        score: ``[n]``, finite, in rising order.
        values: ``[n]`` of the same dtype.
        delta: δ >= 0.
    """
    return _Ahead.apply(score, values, delta)


def sum_ahead_missorted(score: Tensor, quality: Tensor, values: Tensor, positive: Tensor, delta: float) -> Tensor:
    """Σ_k v_k H(s_k − s_i) [q_k < q_i] over positives k, for every positive i of n; 0 for the others.

    Looks at pairs of positives, some rows at a time. Differentiable in the values.

    Args:
        score: ``[n]``, finite.
        quality: ``[n]`` of the same dtype.
        values: ``[n]`` of the same dtype.
        positive: ``[n]`` bool.
        delta: δ >= 0, see :func:`sum_ahead`.
    """
    return _Missorted.apply(score, quality, values, positive, delta)
