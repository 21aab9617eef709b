"""What the arguments of the peers mean here: reductions by name, ``alpha`` and ``eps`` with their special values."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from detloss.checks import check_float, check_same_shape, check_tensor, upcast
from detloss.functional.focal import sigmoid_focal_loss
from detloss.reduction import REDUCTIONS, reduce_loss
from detloss.types import Reduction
from detloss.values import check_unit_interval

__all__ = [
    "NOTHING_IGNORED",
    "SMALLEST_EPS",
    "binary_focal_loss",
    "float_boxes",
    "keep_weights",
    "known_reduction",
    "optional_alpha",
    "relative_eps",
]

SMALLEST_EPS = 1e-12
NOTHING_IGNORED = torch.iinfo(torch.int64).min  # the ignore_index of those who ignore no index


def known_reduction(where: str, reduction: object, error: type[Exception] = ValueError) -> Reduction:
    """``reduction`` if it is one; else ``error``, the exception that the peer raises (or should: some return the raw tensor)."""
    if reduction not in REDUCTIONS:
        raise error(f"{where}: Invalid reduction {reduction!r}; expected one of {', '.join(map(repr, REDUCTIONS))}")
    return cast(Reduction, reduction)


def optional_alpha(alpha: float) -> float | None:
    """A negative ``alpha`` switches the weights of positives and negatives off."""
    return None if alpha < 0 else alpha


def relative_eps(eps: float) -> float:
    """An ``eps`` of 0 is allowed there; here it is a lower bound, which stays above 0."""
    return eps if eps != 0 else SMALLEST_EPS


def float_boxes(where: str, name: str, boxes: Tensor) -> Tensor:
    """Boxes of an integer dtype become floats."""
    check_tensor(where, name, boxes)
    return boxes if boxes.is_floating_point() else boxes.float()


def binary_focal_loss(
    where: str, inputs: Tensor, targets: Tensor, alpha: float | None, gamma: float, reduction: Reduction
) -> Tensor:
    """Sigmoid focal loss of every element of logits and dense targets of one shape, whichever it is, 0-dim included.

    With γ = 0 it is PyTorch's binary cross entropy to the last bit, as it is in all peers.
    """
    check_same_shape(where, inputs, targets)
    if gamma == 0:
        return _weighted_cross_entropy(where, inputs, targets, alpha, reduction)
    shape = inputs.shape or (1,)
    loss = sigmoid_focal_loss(inputs.reshape(shape), targets.reshape(shape), gamma=gamma, alpha=alpha, reduction=reduction)
    return loss.reshape(inputs.shape) if reduction == "none" else loss


def _weighted_cross_entropy(where: str, inputs: Tensor, targets: Tensor, alpha: float | None, reduction: Reduction) -> Tensor:
    check_float(where, "inputs", inputs)
    largest = torch.finfo(inputs.dtype).max
    logits = upcast(inputs.clamp(-largest, largest))  # 0 · inf is NaN
    y = targets.to(logits.dtype)
    check_unit_interval(where, "targets", y)
    loss = torch_f.binary_cross_entropy_with_logits(logits, y, reduction="none")
    if alpha is not None:
        loss = loss * (alpha * y + (1 - alpha) * (1 - y))
    return reduce_loss(loss, reduction=reduction, where=where)


def keep_weights(module: nn.Module, name: str, weights: Tensor | None) -> None:
    """Keep per-class weights as a parameter if they are one, else as a buffer outside the state dict."""
    if isinstance(weights, nn.Parameter):
        module.register_parameter(name, weights)
    else:
        module.register_buffer(name, weights, persistent=False)
