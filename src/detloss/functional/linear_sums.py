"""The sum of a sigmoid loss of a linear classifier: through the tiles, or in plain form for derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.functional.classification import binary_cross_entropy, binary_cross_entropy_loss
from detloss.functional.focal import power, sigmoid_focal_loss
from detloss.functional.quality import quality_focal_loss
from detloss.kernels.linear_tiles import LinearGradients, TileRows, empty_gradients, linear_tiles, own_logits, sum_dtype, widest

__all__ = ["Options", "Rows", "fused_sum", "plain_sum"]


class Rows(NamedTuple):
    """The checked targets, flat: what a call is given beside features, weight and bias."""

    label: Tensor
    score: Tensor | None
    sample_weight: Tensor | None
    alpha: Tensor | None
    class_weight: Tensor | None


class Options(NamedTuple):
    """The numbers of a call."""

    loss: str
    gamma: float
    high: float
    low: float
    ignore_index: int


def _rows_of(features: Tensor) -> Tensor:
    """Features as rows ``[N, D]``."""
    return features.movedim(1, -1).flatten(0, -2)


def _counted(rows: Rows, ignore_index: int) -> Tensor:
    """Rows that are neither ignored nor of weight 0."""
    valid = rows.label != ignore_index
    return valid if rows.sample_weight is None else valid & (rows.sample_weight != 0)


def plain_sum(features: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, options: Options) -> Tensor:
    """The sum of the loss by way of all logits: differentiable any number of times."""
    dtype = sum_dtype(features)
    x = torch.where(_counted(rows, options.ignore_index)[:, None], _rows_of(features).to(dtype), 0.0)
    logits = torch_f.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
    common: dict[str, Any] = {"ignore_index": options.ignore_index, "weight": rows.sample_weight, "reduction": "sum"}
    if rows.score is not None:
        return quality_focal_loss(logits, (rows.label, rows.score), beta=options.gamma, **common)
    if options.loss == "bce":
        return binary_cross_entropy_loss(logits, rows.label, class_weight=rows.class_weight, **common)
    unweighted = options.high == options.low == 1.0
    alpha = rows.alpha if rows.alpha is not None else None if unweighted else options.high
    return sigmoid_focal_loss(
        logits, rows.label, gamma=options.gamma, alpha=alpha, class_weight=rows.class_weight, **common
    )  # fmt: skip


def _own_terms(own: Tensor, column: Tensor, foreground: Tensor, rows: Rows, options: Options) -> tuple[Tensor, Tensor]:
    """Sum of the losses \\|s − σ(z)\\|^γ · BCE(z, s) in the rows' own columns, s = 1 without scores, and d loss / d z."""
    score = torch.ones_like(own) if rows.score is None else rows.score.to(own.dtype)
    p, q = own.sigmoid(), (-own).sigmoid()
    gap = torch.where(own > 0, (score - 1) + q, score - p)
    entropy, size = binary_cross_entropy(own, score), gap.abs()
    focus = power(size, options.gamma)
    slope = -gap * focus
    if options.gamma != 0:
        size = size.clamp(min=torch.finfo(size.dtype).tiny)
        slope = slope - options.gamma * power(size, options.gamma) / size * gap.sign() * p * q * entropy
    factor = torch.where(foreground, options.high, 0.0).to(own.dtype)
    for per_class in (rows.alpha, rows.class_weight):
        if per_class is not None and len(per_class):
            factor = factor * per_class[column]
    if rows.sample_weight is not None:
        factor = factor * rows.sample_weight
    keep = foreground & (factor != 0)
    total = torch.where(keep, focus * entropy * factor, 0.0).sum(dtype=widest(own))
    return total, torch.where(keep, slope * factor, 0.0)


def _tiled_sum(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Rows,
    options: Options,
    needs: Sequence[bool],
    product_dtype: torch.dtype,
    memory_budget: int,
) -> tuple[Tensor, LinearGradients]:
    """The sum of the loss (0-dim) and the gradients asked for, tile by tile."""
    counted = _counted(rows, options.ignore_index)
    foreground = counted & (rows.label >= 0) & (rows.label < len(weight))
    column = torch.where(foreground, rows.label, 0).long()
    own = own_logits(features, weight, bias, foreground, column)
    own_sum, own_gradient = _own_terms(own, column, foreground, rows, options)
    factor = counted.to(own.dtype) * options.low
    if rows.sample_weight is not None:
        factor = factor * torch.where(counted, rows.sample_weight, 0.0)
    with _without_autocast(features.device.type):
        total, gradients = linear_tiles(
            features,
            weight,
            bias,
            TileRows(column, foreground, own_gradient, factor, counted),
            None if rows.alpha is None else 1 - rows.alpha,
            gamma=options.gamma,
            needs=needs,
            product_dtype=product_dtype,
            memory_budget=memory_budget,
        )
    return (total + own_sum).to(own.dtype), gradients


def _without_autocast(kind: str) -> AbstractContextManager[object]:
    """Products in the dtype they are given in."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@torch.library.custom_op("detloss::linear_sigmoid_sum", mutates_args=())
def _opaque_sum(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    label: Tensor,
    score: Tensor | None,
    sample_weight: Tensor | None,
    alpha: Tensor | None,
    class_weight: Tensor | None,
    loss: str,
    gamma: float,
    high: float,
    low: float,
    ignore_index: int,
    needs: list[bool],
    product_dtype: torch.dtype,
    memory_budget: int,
) -> list[Tensor]:
    """The tiles as one node of a compiled graph: the sum, then the gradients asked for."""
    rows = Rows(label, score, sample_weight, alpha, class_weight)
    options = Options(loss, gamma, high, low, ignore_index)
    total, gradients = _tiled_sum(features, weight, bias, rows, options, needs, product_dtype, memory_budget)
    return [total, *(gradient for gradient in gradients if gradient is not None)]


@_opaque_sum.register_fake
def _shapes(features: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> list[Tensor]:
    dtype = sum_dtype(features)
    gradients = empty_gradients(features, weight, bias, arguments[-3], dtype)
    return [features.new_empty((), dtype=dtype), *(gradient for gradient in gradients if gradient is not None)]


class _FusedLinear(torch.autograd.Function):
    """Gradients are made in the forward pass and scaled by the upstream gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
        """``arguments``: the fields of Rows and of Options, needs, dtype of the products and budget of a tile."""
        total, *gradients = _opaque_sum(features, weight, bias, *arguments)
        tensors, ctx.rest = arguments[: len(Rows._fields)], arguments[len(Rows._fields) :]
        ctx.save_for_backward(features, weight, bias, *tensors, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, *saved = ctx.saved_tensors
        options, needs = Options(*ctx.rest[:-3]), ctx.rest[-3]
        inputs = (features, weight, bias)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            rows = Rows(*saved[: len(Rows._fields)])
            wanted = [x for x, need in zip(inputs, needs, strict=True) if need]
            total = plain_sum(features, weight, bias, rows, options)
            gradients = iter(torch.autograd.grad(total, wanted, upstream, create_graph=True))
        else:
            gradients = iter(gradient * upstream for gradient in saved[len(Rows._fields) :])
        given = [next(gradients).to(x.dtype) if need else None for x, need in zip(inputs, needs, strict=True)]
        return (*given, *(None,) * (len(Rows._fields) + len(ctx.rest)))


def fused_sum(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rows: Rows,
    options: Options,
    needs: Sequence[bool],
    product_dtype: torch.dtype,
    memory_budget: int,
) -> Tensor:
    """The sum of the loss, differentiable in features, weight and bias, without the logits.

    Args:
        features: ``[N, D]`` or ``[B, D, H, W]``.
        weight: ``[C, D]``.
        bias: ``[C]`` or ``None``.
        rows: targets and weights.
        options: which loss, and its numbers.
        needs: which of features, weight and bias get a gradient.
        product_dtype: dtype of the factors of the matrix products.
        memory_budget: bytes of a tile's buffers.
    """
    total = _FusedLinear.apply(features, weight, bias, *rows, *options, list(needs), product_dtype, memory_budget)
    return cast(Tensor, total)
