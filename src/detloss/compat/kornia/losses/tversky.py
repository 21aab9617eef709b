"""``kornia.losses.tversky``: Tversky over classes."""

from __future__ import annotations

from torch import Tensor, nn

from detloss.compat.class_masks import class_masks
from detloss.compat.kornia.losses.dice import mean_of_classes, one_minus_score
from detloss.compat.kornia.losses.maps import check_maps
from detloss.functional import mask

__all__ = ["TverskyLoss", "tversky_loss"]


def tversky_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    eps: float = 1e-8,
    ignore_index: int | None = -100,
) -> Tensor:
    """1 − TP/(TP + α FP + β FN + ε) of the softmax: :func:`detloss.functional.tversky_loss`, the mean over classes and samples.

    Only classes that the target of a sample has count. A sample without a valid pixel costs 1, as there.

    Args:
        pred: logits ``[B, C, H, W]``.
        target: class indices ``[B, H, W]``.
        alpha: price of false positives, >= 0.
        beta: price of false negatives, >= 0.
        eps: ε, added to the divisor.
        ignore_index: target value of pixels that count neither way; ``None`` for none.

    >>> import torch
    >>> tversky_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]), alpha=0.5, beta=0.5)  # 1 − 0.5/(0.5 + 0.5)
    tensor(0.5000)
    """
    check_maps("tversky_loss", pred, target)
    p, t = class_masks("tversky_loss", pred, target, ignore_index)
    loss = mask.tversky_loss(
        p.flatten(0, 1), t.flatten(0, 1), alpha=alpha, beta=beta, smooth=0.0, activated=True, reduction="none"
    ).view(p.shape[:2])
    common, predicted, true = (p * t).sum(-1), p.sum(-1), t.sum(-1)
    size = common + alpha * (predicted - common) + beta * (true - common)
    return mean_of_classes(one_minus_score(loss, size, eps), (true > 0).to(p.dtype))


class TverskyLoss(nn.Module):
    """:func:`tversky_loss` as a module."""

    def __init__(self, alpha: float, beta: float, eps: float = 1e-8, ignore_index: int | None = -100) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.eps = eps
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the loss."""
        return tversky_loss(pred, target, self.alpha, self.beta, self.eps, self.ignore_index)
