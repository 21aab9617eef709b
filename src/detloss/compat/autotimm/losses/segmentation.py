"""``autotimm.losses.segmentation``: losses of semantic and instance masks.

What differs: fp16 and bf16 are computed and returned in fp32; an unknown reduction is a ``ValueError``; ignored logits may be
infinite or NaN; a batch that is ignored as a whole has a mean of 0 (there the pixelwise losses are NaN).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detloss.checks import check_same_shape
from detloss.compat.arguments import known_reduction
from detloss.compat.class_masks import check_pixels, class_masks
from detloss.functional.classification import binary_cross_entropy_loss, cross_entropy_loss
from detloss.functional.focal import softmax_focal_loss
from detloss.functional.mask import dice_loss, tversky_loss

__all__ = ["CombinedSegmentationLoss", "DiceLoss", "FocalLossPixelwise", "MaskLoss", "TverskyLoss"]


def masks_of_classes(where: str, logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """One mask per image and class, ``[B·C, pixels]``: probabilities and targets.

    A target beyond the classes counts as the nearest class, as there.
    """
    check_pixels(where, logits, targets)
    known = torch.where(targets == ignore_index, ignore_index, targets.clamp(0, logits.shape[1] - 1))
    probabilities, one_hot = class_masks(where, logits, known, ignore_index)
    return probabilities.flatten(0, 1), one_hot.flatten(0, 1)


class DiceLoss(nn.Module):
    """1 − (2 Σ p t + s)/(Σ p + Σ t + s) for every image and class: :func:`detloss.functional.dice_loss` after a softmax.

    Args:
        num_classes: number of classes C.
        smooth: s, in pixels.
        ignore_index: target value of pixels that count neither way.
        reduction: ``"none"`` for ``[B, C]``, ``"mean"`` or ``"sum"``.

    >>> logits = torch.zeros(1, 2, 1, 2)
    >>> DiceLoss(num_classes=2)(logits, torch.tensor([[[0, 1]]]))  # 1 − (2 · 0.5 + 1)/(1 + 1 + 1)
    tensor(0.3333)
    """

    def __init__(
        self,
        num_classes: int,
        smooth: float = 1.0,
        ignore_index: int = 255,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.smooth = smooth
        self.ignore_index = ignore_index
        self.reduction = known_reduction("DiceLoss", reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of logits ``[B, C, H, W]`` and class indices ``[B, H, W]``."""
        p, t = masks_of_classes("DiceLoss", logits, targets, self.ignore_index)
        loss = dice_loss(p, t, smooth=self.smooth, activated=True, reduction=self.reduction)
        return loss.view(logits.shape[:2]) if self.reduction == "none" else loss


class FocalLossPixelwise(nn.Module):
    """Softmax focal loss of every pixel: :func:`detloss.functional.softmax_focal_loss`.

    ``mean`` divides by the number of pixels that are not ignored. Without reduction there is one loss for every pixel, 0 for
    ignored ones (there they are missing).

    Args:
        alpha: factor of all classes, in [0, 1].
        gamma: focusing exponent, >= 0.
        ignore_index: target value of pixels that count neither way.
        reduction: ``"none"`` for ``[B·H·W]``, ``"mean"`` or ``"sum"``.

    >>> FocalLossPixelwise()(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long))  # 0.25 · ln 2 / 4
    tensor(0.0433)
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        ignore_index: int = 255,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = known_reduction("FocalLossPixelwise", reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of logits ``[B, C, H, W]`` and class indices ``[B, H, W]``."""
        count = (targets != self.ignore_index).sum() if self.reduction == "mean" else None
        loss = softmax_focal_loss(
            logits, targets, gamma=self.gamma, alpha=self.alpha, ignore_index=self.ignore_index, avg_factor=count,
            reduction=self.reduction,
        )  # fmt: skip
        return loss.reshape(-1) if self.reduction == "none" else loss


class TverskyLoss(nn.Module):
    """1 − (TP + s)/(TP + α FP + β FN + s) for every image and class: :func:`detloss.functional.tversky_loss` after a softmax.

    Args:
        num_classes: number of classes C.
        alpha: price of false positives, >= 0.
        beta: price of false negatives, >= 0.
        smooth: s, in pixels.
        ignore_index: target value of pixels that count neither way.
        reduction: ``"none"`` for ``[B, C]``, ``"mean"`` or ``"sum"``.

    >>> TverskyLoss(num_classes=2)(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))  # 1 − (0.5 + 1)/(0.5 + 0.5 + 1)
    tensor(0.2500)
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1.0,
        ignore_index: int = 255,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.alpha = alpha
        self.beta = beta
        self.smooth = smooth
        self.ignore_index = ignore_index
        self.reduction = known_reduction("TverskyLoss", reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of logits ``[B, C, H, W]`` and class indices ``[B, H, W]``."""
        p, t = masks_of_classes("TverskyLoss", logits, targets, self.ignore_index)
        loss = tversky_loss(p, t, alpha=self.alpha, beta=self.beta, smooth=self.smooth, activated=True, reduction=self.reduction)
        return loss.view(logits.shape[:2]) if self.reduction == "none" else loss


class MaskLoss(nn.Module):
    """Binary cross entropy of every pixel of instance masks: :func:`detloss.functional.binary_cross_entropy_loss`.

    What differs: masks of 0 instances have a mean of 0 (there NaN); shapes must agree (there as many pixels are enough).

    Args:
        reduction: ``"none"`` for ``[N·H·W]``, ``"mean"`` or ``"sum"``.
        pos_weight: factor of the pixels of objects.

    >>> MaskLoss()(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    tensor(0.6931)
    """

    def __init__(self, reduction: str = "mean", pos_weight: float | None = None) -> None:
        super().__init__()
        self.reduction = known_reduction("MaskLoss", reduction)
        self.pos_weight = pos_weight

    def forward(self, pred_masks: Tensor, target_masks: Tensor) -> Tensor:
        """Compute the loss of logits and masks in [0, 1], each ``[N, H, W]`` or ``[N, 1, H, W]``."""
        pred, target = (x.squeeze(1) if x.ndim == 4 else x for x in (pred_masks, target_masks))
        check_same_shape("MaskLoss", pred, target)
        loss = binary_cross_entropy_loss(
            pred.reshape(-1, 1), target.reshape(-1, 1), reduction=self.reduction,
            class_weight=None if self.pos_weight is None else [self.pos_weight],
        )  # fmt: skip
        return loss.reshape(-1) if self.reduction == "none" else loss


class WeightedCrossEntropy(nn.Module):
    """Σ w_y l / Σ w_y over the pixels that are not ignored, the mean of ``torch.nn.CrossEntropyLoss``; 0 when all are.

    The weights are called as there, so that state dicts fit.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None, ignore_index: int) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of logits ``[B, C, H, W]`` and class indices ``[B, H, W]``."""
        valid = targets != self.ignore_index
        share = valid if self.weight is None else valid * self.weight[torch.where(valid, targets, 0)]
        return cross_entropy_loss(
            logits, targets, class_weight=self.weight, ignore_index=self.ignore_index, avg_factor=share.sum()
        )


class CombinedSegmentationLoss(nn.Module):
    """``ce_weight`` · cross entropy + ``dice_weight`` · :class:`DiceLoss`.

    Args:
        num_classes: number of classes C.
        ce_weight: weight of the cross entropy, which divides by the sum of the class weights of its pixels, as torch does.
        dice_weight: weight of the Dice loss.
        ignore_index: target value of pixels that count neither way.
        class_weights: ``[C]`` class weights of the cross entropy.

    >>> CombinedSegmentationLoss(2)(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))  # ln 2 + 1/3
    tensor(1.0265)
    """

    def __init__(
        self,
        num_classes: int,
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        ignore_index: int = 255,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight
        self.ignore_index = ignore_index
        self.ce_loss = WeightedCrossEntropy(class_weights, ignore_index)
        self.dice_loss = DiceLoss(num_classes, ignore_index=ignore_index)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of logits ``[B, C, H, W]`` and class indices ``[B, H, W]``."""
        ce: Tensor = self.ce_loss(logits, targets)
        dice: Tensor = self.dice_loss(logits, targets)
        return self.ce_weight * ce + self.dice_weight * dice
