"""The three losses of FCOS as autotimm calls them.

What differs: fp16 and bf16 are computed and returned in fp32; an unknown reduction is a ``ValueError`` (there it returns the
unreduced tensor).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detloss.checks import check_tensor, shape_of
from detloss.compat.arguments import float_boxes, known_reduction, relative_eps
from detloss.functional.focal import sigmoid_focal_loss
from detloss.functional.iou import giou_loss
from detloss.functional.quality import centerness_loss

__all__ = ["CenternessLoss", "FocalLoss", "GIoULoss"]

IGNORED = -1


def channels_last(maps: Tensor) -> Tensor:
    """Maps ``[N, C, H, W]`` as rows ``[N·H·W, C]``."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


class FocalLoss(nn.Module):
    """Sigmoid focal loss, summed over classes: :func:`detloss.functional.sigmoid_focal_loss`.

    ``mean`` divides by the number of positions that are not ignored. Every negative index is ignored, as there; the index C,
    an error there, is background, which counts as negative in every column.

    What differs: ``none`` gives one loss for every position, 0 for ignored ones (there they are missing, so losses no longer
    line up with samples, and a batch in which all are ignored gives a scalar); ignored logits may be infinite or NaN.

    Args:
        alpha: weight of the positives in [0, 1].
        gamma: focusing exponent, >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    >>> FocalLoss()(torch.zeros(2, 4), torch.tensor([0, 1]))  # (0.25 + 3 · 0.75) · ln 2 / 4
    tensor(0.4332)
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = known_reduction("FocalLoss", reduction)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            inputs: logits ``[N, C]`` or ``[N, C, H, W]``.
            targets: class indices ``[N]`` or ``[N, H, W]``, or dense targets in [0, 1] of the shape of ``inputs``.

        Returns:
            A scalar; without reduction ``[N]`` or ``[N·H·W]``.
        """
        check_tensor("FocalLoss", "inputs", inputs)
        check_tensor("FocalLoss", "targets", targets)
        dense = targets.shape == inputs.shape
        if not dense and targets.shape != inputs.shape[:1] + inputs.shape[2:]:
            raise ValueError(
                "FocalLoss: expected logits [N, C] or [N, C, H, W] with class indices [N] or [N, H, W], or dense targets of "
                f"the shape of the logits; got {shape_of(inputs)} and {shape_of(targets)}"
            )
        if inputs.ndim == 4:
            inputs = channels_last(inputs)
            targets = channels_last(targets) if dense else targets.reshape(-1)
        if dense:
            count: Tensor | int = inputs.shape[:-1].numel()
        else:
            valid = targets >= 0
            count, targets = valid.sum(), torch.where(valid, targets, IGNORED)
        loss = sigmoid_focal_loss(
            inputs, targets, gamma=self.gamma, alpha=self.alpha, ignore_index=IGNORED, reduction=self.reduction,
            avg_factor=count if self.reduction == "mean" else None,
        )  # fmt: skip
        return loss.sum(-1) if self.reduction == "none" else loss


def weighted_average(weights: Tensor | None, reduction: str) -> Tensor | None:
    """What a weighted mean divides by in autotimm: the sum of the weights."""
    return weights.sum() if weights is not None and reduction == "mean" else None


class GIoULoss(nn.Module):
    """1 − GIoU of paired boxes: :func:`detloss.functional.giou_loss`.

    What differs: ``eps`` is relative to the enclosing box, so an exact match costs 0 for boxes of every size (there 0.9 for a
    box of 1e-4); a box turned inside out counts as empty and pays for it (there it is perfect); without reduction no boxes
    give ``[0]`` (there a scalar).

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. With weights a mean is Σ w l / Σ w, as there.
        eps: lower bound of the union relative to the enclosing area.

    >>> GIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
    tensor(1.5000)
    """

    def __init__(self, reduction: str = "mean", eps: float = 1e-7) -> None:
        super().__init__()
        self.reduction = known_reduction("GIoULoss", reduction)
        self.eps = eps

    def forward(self, pred_boxes: Tensor, target_boxes: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the loss.

        Args:
            pred_boxes: ``[N, 4]`` corners (x1, y1, x2, y2).
            target_boxes: likewise.
            weights: ``[N]`` factors; 0 removes a box.
        """
        return giou_loss(
            float_boxes("GIoULoss", "pred_boxes", pred_boxes), target_boxes, eps=relative_eps(self.eps), weight=weights,
            avg_factor=weighted_average(weights, self.reduction), reduction=self.reduction,
        )  # fmt: skip


class CenternessLoss(nn.Module):
    """Binary cross entropy of centerness logits: :func:`detloss.functional.centerness_loss`.

    What differs: maps of any memory layout are fine (there a permuted one is an error).

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``. With weights a mean is Σ w l / Σ w, as there.

    >>> CenternessLoss()(torch.zeros(3, 1), torch.tensor([0.0, 0.5, 1.0]))
    tensor(0.6931)
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = known_reduction("CenternessLoss", reduction)

    def forward(self, pred: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the loss; without reduction it is flat, ``[N]``.

        Args:
            pred: logits of any shape.
            target: centerness in [0, 1], as many as ``pred``.
            weights: factors, as many; 0 removes an element.
        """
        flat = None if weights is None else weights.reshape(-1)
        return centerness_loss(
            pred.reshape(-1), target.reshape(-1), weight=flat, avg_factor=weighted_average(weights, self.reduction),
            reduction=self.reduction,
        )  # fmt: skip
