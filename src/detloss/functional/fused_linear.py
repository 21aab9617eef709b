"""Classifier and loss in one: sigmoid losses of a linear layer or 1×1 convolution that never hold the logits.

With thousands of classes the logits ``[N, C]`` of a classifier, not its weight or its features, fill the memory. Here they
exist one tile at a time (:mod:`detloss.kernels.linear_tiles`): loss and gradients are computed in the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor

from detloss.checks import (
    check_at_least,
    check_float,
    check_non_negative,
    check_option,
    check_same_device,
    check_tensor,
    shape_of,
)
from detloss.functional.focal import alpha_factors
from detloss.functional.linear_losses import Options, Rows
from detloss.functional.linear_sums import fused_sum, plain_sum
from detloss.functional.quality import label_and_score
from detloss.functional.targets import class_weights, is_class_index
from detloss.kernels.linear_tiles import sum_dtype
from detloss.reduction import check_reduction, reduce_loss
from detloss.types import ClassWeights, Number, Reduction
from detloss.values import check_class_indices

__all__ = ["fused_linear_sigmoid_loss"]

LinearLoss: TypeAlias = Literal["focal", "bce", "qfl"]
LOSSES: tuple[str, ...] = ("focal", "bce", "qfl")
CPU_BUDGET = 16 * 2**20
DEVICE_BUDGET = 256 * 2**20


def fused_linear_sigmoid_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | tuple[Tensor, Tensor],
    *,
    loss: LinearLoss = "focal",
    gamma: float = 2.0,
    alpha: float | Sequence[float] | Tensor | None = 0.25,
    class_weight: ClassWeights | None = None,
    ignore_index: int = -100,
    memory_budget: int | None = None,
    sample_weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of ``linear(features, weight, bias)`` without its logits: they are made, used and dropped tile by tile.

    Equal to ``sigmoid_focal_loss(linear(features, weight, bias), target)`` (or the other loss) and its gradients. Memory
    beyond the inputs: one gradient for each input that needs one, and ``memory_budget``; neither grows with N · C. Products
    and sums are taken in float32 (float64 for float64), also for fp16 and under autocast; bf16 on an accelerator is
    multiplied in bf16 and summed in float32. The result does not vary from run to run.

    Args:
        features: inputs of the classifier, ``[N, D]``, or ``[B, D, H, W]`` for a 1×1 convolution.
        weight: ``[C, D]``, or ``[C, D, 1, 1]``.
        bias: ``[C]`` or ``None``.
        target: class indices ``[N]`` or ``[B, H, W]`` with background C; ``(label, score)`` for ``loss="qfl"``. Constant,
            like ``sample_weight``: no gradient goes there.
        loss: ``"focal"`` (:func:`sigmoid_focal_loss`), ``"bce"`` (:func:`binary_cross_entropy_loss`) or ``"qfl"``
            (:func:`quality_focal_loss`).
        gamma: exponent of focal, and of QFL (its β), >= 0; bce has none.
        alpha: focal only: weight of the positives in [0, 1], one per class or one for all; ``None`` for no weights.
        class_weight: focal and bce: further weighs the positives of each class.
        ignore_index: label of rows that count neither way.
        memory_budget: bytes for the tile of logits and its temporaries; ``None`` is 16 MiB on the CPU, which fits its
            caches, and 256 MiB elsewhere. A bigger one means fewer launches.
        sample_weight: weight of each row or position, the shape of the labels.
        avg_factor: what ``mean`` divides by instead of the number of elements: N · C, for QFL N.
        reduction: ``"mean"`` or ``"sum"``; there is no ``"none"``, which would be as large as the logits.

    Under ``create_graph=True`` (second derivatives) and in transforms of ``torch.func`` the plain form runs, logits and all.

    >>> features, weight = torch.zeros(1, 8), torch.ones(2, 8)
    >>> fused_linear_sigmoid_loss(features, weight, None, torch.tensor([0]), reduction="sum")  # (0.25 + 0.75) · ln 2 / 4
    tensor(0.1733)
    """
    where = "fused_linear_sigmoid_loss"
    check_option(where, "loss", loss, LOSSES)
    if reduction == "none":
        raise ValueError(f"{where}: reduction must be 'mean' or 'sum'; 'none' would be as large as the logits it does without")
    check_reduction(where, reduction, avg_factor)
    check_non_negative(where, gamma=gamma)
    if memory_budget is not None:
        check_at_least(where, 1, memory_budget=memory_budget)
    logits = _stand_in(where, features, weight, bias)
    rows, high, low = _checked_rows(where, logits, target, loss, alpha, class_weight, ignore_index, sample_weight)
    gamma = 0.0 if loss == "bce" else float(gamma)
    options = Options(loss, gamma, high, low, ignore_index)
    weight = weight.flatten(1)
    if torch._C._are_functorch_transforms_active():
        total = plain_sum(features, weight, bias, rows, options)
    else:
        budget = memory_budget or (CPU_BUDGET if features.device.type == "cpu" else DEVICE_BUDGET)
        graph = torch.is_grad_enabled()
        features_too, weight_too, bias_too = (graph and x is not None and x.requires_grad for x in (features, weight, bias))
        needs = (features_too, weight_too, bias_too)
        product = _product_dtype(features)
        total = fused_sum(features, weight, bias, rows, options, needs, product, budget)
    if reduction == "mean" and avg_factor is None:
        avg_factor = rows.label.numel() if loss == "qfl" else logits.numel()
    return reduce_loss(total, avg_factor=avg_factor, reduction=reduction, where=where)


def _stand_in(where: str, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A tensor with the shape of the logits and no memory, after the checks of what they would be made of."""
    check_float(where, "features", features)
    check_float(where, "weight", weight)
    fits = features.ndim in (2, 4) and weight.ndim in (2, 4) and weight.shape[1] == features.shape[1]
    if not fits or weight.ndim > features.ndim or weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(
            f"{where}: expected features [N, D] and weight [C, D], or features [B, D, H, W] and weight [C, D] or [C, D, 1, 1]; "
            f"got features {shape_of(features)} and weight {shape_of(weight)}"
        )
    parts = {"weight": weight}
    if bias is not None:
        check_float(where, "bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{where}: bias must be [C]; got {shape_of(bias)} for weight {shape_of(weight)}")
        parts["bias"] = bias
    for name, part in parts.items():
        check_same_device(where, features, name, part)
        if part.dtype != features.dtype and not torch.is_autocast_enabled(features.device.type):
            raise TypeError(f"{where}: {name} must have the dtype of features, {features.dtype}; got {part.dtype}")
    shape = (features.shape[0], weight.shape[0], *features.shape[2:])
    return torch.zeros((), dtype=sum_dtype(features), device=features.device).expand(shape)


def _checked_rows(
    where: str,
    logits: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    loss: str,
    alpha: float | Sequence[float] | Tensor | None,
    class_weight: ClassWeights | None,
    ignore_index: int,
    sample_weight: Tensor | None,
) -> tuple[Rows, float, float]:
    """Check targets and weights and make them flat; with the factors of positives and of negatives where they are numbers."""
    score: Tensor | None = None
    if loss == "qfl":
        target, score = label_and_score(where, logits, target)
        score = score.flatten()
    check_tensor(where, "target", target)
    label = cast(Tensor, target)
    if not is_class_index(where, logits, label):
        raise ValueError(f"{where}: target must hold class indices, [N] or [B, H, W]; got {shape_of(label)}")
    check_class_indices(where, label, logits.shape[1], ignore_index, background=True)
    if sample_weight is not None:
        check_tensor(where, "sample_weight", sample_weight)
        check_same_device(where, logits, "sample_weight", sample_weight)
        if sample_weight.shape != label.shape:
            raise ValueError(
                f"{where}: sample_weight must have the shape of the labels, {shape_of(label)}; got {shape_of(sample_weight)}"
            )
        sample_weight = sample_weight.flatten().to(logits.dtype)
    for name, value in (("score", score), ("sample_weight", sample_weight)):
        if value is not None and value.requires_grad:
            raise ValueError(f"{where}: {name} is a constant here; got one that requires a gradient, detach it")
    per_class = None if loss == "qfl" else class_weights(where, "class_weight", class_weight, logits)
    high, low = alpha_factors(where, alpha, logits) if loss == "focal" else (None, None)
    alphas = high.flatten() if isinstance(high, Tensor) else None
    rows = Rows(label.flatten(), score, sample_weight, alphas, None if per_class is None else per_class.flatten())
    return rows, _number(high), _number(low)


def _number(factor: Tensor | float | None) -> float:
    return factor if isinstance(factor, float) else 1.0


def _product_dtype(features: Tensor) -> torch.dtype:
    """bf16 where the classifier would run in it and hardware multiplies it faster than float32; else that of the sums."""
    kind = features.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
    bf16 = dtype == torch.bfloat16 and kind != "cpu" and features.dtype != torch.float64
    return torch.bfloat16 if bf16 else sum_dtype(features)
