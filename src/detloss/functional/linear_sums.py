"""The sum of a sigmoid loss of a linear classifier: through the tiles, or in plain form for derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.functional.classification import binary_cross_entropy_loss
from detloss.functional.focal import sigmoid_focal_loss
from detloss.functional.linear_losses import Options, Rows, counted_rows, tile_loss_of
from detloss.functional.quality import quality_focal_loss
from detloss.kernels.linear_tiles import LinearGradients, empty_gradients, linear_tiles, sum_dtype

__all__ = ["fused_sum", "plain_sum"]


def _rows_of(features: Tensor) -> Tensor:
    """Features as rows ``[N, D]``."""
    return features.movedim(1, -1).flatten(0, -2)


def plain_sum(features: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, options: Options) -> Tensor:
    """The sum of the loss by way of all logits: differentiable any number of times."""
    dtype = sum_dtype(features)
    x = torch.where(counted_rows(rows, options.ignore_index)[:, None], _rows_of(features).to(dtype), 0.0)
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
    counted = counted_rows(rows, options.ignore_index)
    dtype = sum_dtype(features)
    with _without_autocast(features.device.type):
        own_sum, tile_loss, buffers = tile_loss_of(features, weight, bias, counted, rows, options)
        total, gradients = linear_tiles(
            features,
            weight,
            bias,
            counted,
            tile_loss,
            buffers=buffers,
            needs=needs,
            product_dtype=product_dtype,
            memory_budget=memory_budget,
        )
    return (total + own_sum).to(dtype), gradients


def _without_autocast(kind: str) -> AbstractContextManager[object]:
    """Products in the dtype they are given in."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _sum_and_gradients(features: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> list[Tensor]:
    """The sum, then the gradients asked for; ``arguments`` are those of :class:`_FusedLinear`."""
    rows, options, rest = arguments[:5], arguments[5:10], arguments[10:]
    total, gradients = _tiled_sum(features, weight, bias, Rows(*rows), Options(*options), *rest)
    return [total, *(gradient for gradient in gradients if gradient is not None)]


_OPERANDS = "Tensor features, Tensor weight, Tensor? bias"
_ROWS = "Tensor label, Tensor? score, Tensor? sample_weight, Tensor? alpha, Tensor? class_weight"
_OPTIONS = "str loss, float gamma, float high, float low, int ignore_index"
_REST = "bool[] needs, ScalarType product_dtype, int memory_budget"
# The tiles as one node of a compiled graph.
_opaque_sum = torch.library.custom_op(
    "detloss::linear_sigmoid_sum",
    _sum_and_gradients,
    mutates_args=(),
    schema=f"({_OPERANDS}, {_ROWS}, {_OPTIONS}, {_REST}) -> Tensor[]",
)


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
        # The first call of the operator would load the compiler, which only compiled programs need.
        run = _opaque_sum if torch.compiler.is_compiling() else _sum_and_gradients
        total, *gradients = run(features, weight, bias, *arguments)
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
