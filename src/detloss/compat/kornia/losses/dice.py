"""``kornia.losses.dice``: Dice over classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detloss.checks import check_option
from detloss.compat.arguments import keep_weights
from detloss.compat.class_masks import class_masks
from detloss.compat.kornia.losses.maps import check_maps
from detloss.functional import mask
from detloss.reduction import reduce_loss

__all__ = ["DiceLoss", "dice_loss", "mean_of_classes", "one_minus_score"]

AVERAGES = ("micro", "macro")


def one_minus_score(loss: Tensor, size: Tensor, eps: float) -> Tensor:
    """1 − (1 − loss) · size/(size + eps): the loss of a score whose divisor has ``eps`` added; 1 where there is nothing."""
    whole = size + eps
    return torch.where(whole > 0, (size * loss + eps) / torch.where(whole > 0, whole, 1.0), 1.0)


def mean_of_classes(loss: Tensor, weight: Tensor) -> Tensor:
    """Σ w l / Σ w over the classes of each sample, 1 where Σ w = 0, then the mean over the samples."""
    total = weight.sum(-1)
    of_sample = torch.where(total == 0, 1.0, (loss * weight).sum(-1) / torch.where(total == 0, 1.0, total))
    return reduce_loss(of_sample, reduction="mean")


def dice_loss(
    pred: Tensor,
    target: Tensor,
    average: str = "micro",
    eps: float = 1e-8,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """1 − 2 Σ p t/(Σ p + Σ t + ε) of the softmax p: :func:`detloss.functional.dice_loss` with the averages of kornia.

    A sample without a valid pixel costs 1, as there, and has no gradient.

    Args:
        pred: logits ``[B, C, H, W]``.
        target: class indices ``[B, H, W]``.
        average: ``"micro"`` for one score over all classes of a sample, ``"macro"`` for the mean over those that its target has.
        eps: ε, added to the divisor.
        weight: ``[C]`` factor of each class, in both sums (micro) or of its loss (macro).
        ignore_index: target value of pixels that count neither way; ``None`` for none.

    Returns:
        The mean over the samples.

    >>> dice_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))  # 1 − 2 · (0.5 + 0.5)/(2 + 2)
    tensor(0.5000)
    """
    where = "dice_loss"
    check_option(where, "average", average, AVERAGES)
    check_maps(where, pred, target)
    p, t = class_masks(where, pred, target, ignore_index)
    factors = p.new_ones(p.shape[1]) if weight is None else weight.reshape(-1).to(p.dtype)
    loss = mask.dice_loss(p.flatten(0, 1), t.flatten(0, 1), smooth=0.0, activated=True, reduction="none").view(p.shape[:2])
    size = p.sum(-1) + t.sum(-1)
    if average == "macro":
        return mean_of_classes(one_minus_score(loss, size, eps), factors * (t.sum(-1) > 0))
    shares = factors * size
    whole = shares.sum(-1)
    of_sample = (shares * loss).sum(-1) / torch.where(whole == 0, 1.0, whole)
    return reduce_loss(one_minus_score(of_sample, whole, eps), reduction="mean")


class DiceLoss(nn.Module):
    """:func:`dice_loss` as a module."""

    weight: Tensor | None

    def __init__(
        self,
        average: str = "micro",
        eps: float = 1e-8,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.average = average
        self.eps = eps
        keep_weights(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the loss."""
        return dice_loss(pred, target, self.average, self.eps, self.weight, self.ignore_index)
