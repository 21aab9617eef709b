"""Sigmoid cross entropy against a class and its score: the soft labels of dynamic assigners, never made one-hot."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import upcast
from detloss.functional.classification import binary_cross_entropy, check_smoothing
from detloss.functional.quality import label_and_score
from detloss.functional.targets import CLASS_DIM, class_index, class_weights, of_own_class
from detloss.reduction import check_reduction, mute, reduce_loss
from detloss.types import ClassWeights, Number, Reduction

__all__ = ["soft_label_cross_entropy_loss", "softplus"]

LINEAR_FROM = 40.0  # there ln(1 + eˣ) is x to the last digit of float64


def softplus(x: Tensor) -> Tensor:
    """ln(1 + eˣ), exact for every x."""
    return torch_f.softplus(x, threshold=LINEAR_FROM)


def soft_label_cross_entropy_loss(
    pred: Tensor,
    target: tuple[Tensor, Tensor],
    *,
    class_weight: ClassWeights | None = None,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Sigmoid cross entropy of every class, BCE(x, s) in the column of the class and BCE(x, 0) in all others.

    What :func:`~detloss.functional.binary_cross_entropy_loss` gives for the dense target that holds the score s in the column
    of the class, computed as Σ ln(1 + eˣ) over all columns and a correction, −s x, in the column of the class.
    ``none`` gives the shape of ``pred``.

    Args:
        target: ``(label, score)``: class indices ``[N]`` or ``[B, H, W]`` (background C) and scores in [0, 1].
        class_weight: weighs the positives of each class.
        label_smoothing: ε; the target y of every column becomes (1 − ε) y + ε/2.
        weight: over rows, ``[N]`` (planes: ``[B]``); 0 leaves the row out.

    >>> pred, target = torch.zeros(1, 2), (torch.tensor([0]), torch.tensor([0.3]))
    >>> soft_label_cross_entropy_loss(pred, target, reduction="sum")  # 2 ln 2: a logit of 0 costs ln 2 for every target
    tensor(1.3863)
    """
    where = "soft_label_cross_entropy_loss"
    check_smoothing(where, label_smoothing)
    check_reduction(where, reduction, avg_factor)
    label, score = label_and_score(where, pred, target)
    pred = mute(where, upcast(pred), weight, pred.shape)
    per_class = class_weights(where, "class_weight", class_weight, pred)
    # No index is ignored here: that of the background is allowed anyway.
    found = class_index(where, pred, label, pred.shape[CLASS_DIM], background=True)
    low = label_smoothing / 2
    # BCE(x, y) = y · positive + (1 − y) · ln(1 + eˣ) with positive = w ln(1 + e⁻ˣ), so BCE(x, y) − BCE(x, low) is linear in y.
    own = of_own_class(pred, found)
    slope = -own if per_class is None else softplus(-own) * of_own_class(per_class, found) - softplus(own)
    change = torch.where(found.foreground, (1 - label_smoothing) * score.to(pred.dtype) * slope, 0.0)
    every = binary_cross_entropy(pred, low, per_class) if low else softplus(pred)
    if reduction == "none":
        loss = every if not every.shape[CLASS_DIM] else every.scatter_add(CLASS_DIM, found.column, change)
        return reduce_loss(loss, weight=weight, reduction=reduction, where=where)
    if reduction == "mean" and avg_factor is None:
        avg_factor = max(every.numel(), 1)

    def reduced(loss: Tensor) -> Tensor:
        return reduce_loss(loss, weight=weight, avg_factor=avg_factor, reduction=reduction, where=where)

    return reduced(every) + reduced(change)
