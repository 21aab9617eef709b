"""Losses of classes, of distributions and of boxes, as :mod:`detloss.compat.ultralytics.utils.loss` gives them."""

from __future__ import annotations

import torch  # noqa: F401  (the examples use it)
from torch import Tensor, nn

from detloss.checks import check_same_shape, upcast
from detloss.compat.arguments import binary_focal_loss
from detloss.criteria.distances import distribution_term
from detloss.criteria.yolov8 import BIN_MARGIN
from detloss.functional.classification import binary_cross_entropy
from detloss.functional.distribution import distribution_focal_loss
from detloss.functional.focal import power
from detloss.functional.iou import ciou_loss
from detloss.functional.regression import l1_loss
from detloss.geometry.boxes import box_to_distance
from detloss.losses.distribution import DistributionFocalLoss
from detloss.reduction import reduce_loss

__all__ = ["BboxLoss", "DFLoss", "FocalLoss", "VarifocalLoss"]


class VarifocalLoss(nn.Module):
    """Varifocal loss: (α σ(x)^γ (1 − label) + score · label) · BCE(x, score), summed and divided by the size of dimension 1.

    ``label`` alone says what is positive: as there, a positive with a score of 0 costs nothing, while
    :func:`detloss.functional.varifocal_loss` makes it a negative. float64 stays float64 (float32 there).

    Args:
        gamma: exponent of the modulating factor of the negatives.
        alpha: weight of the negatives.

    >>> VarifocalLoss()(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))  # (1 + 0.75/4) ln 2 / 2
    tensor(0.4116)
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.75) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, pred_score: Tensor, gt_score: Tensor, label: Tensor) -> Tensor:
        """Compute the loss of logits ``[N, C]`` against scores and labels in [0, 1] of the same shape."""
        for target in (gt_score, label):
            check_same_shape("VarifocalLoss", pred_score, target)
        x = upcast(pred_score)
        score, positive = gt_score.to(x.dtype), label.to(x.dtype)
        factor = self.alpha * power(x.sigmoid(), self.gamma) * (1 - positive) + score * positive
        return reduce_loss(factor * binary_cross_entropy(x, score), avg_factor=x.shape[1], where="VarifocalLoss")


class FocalLoss(nn.Module):
    """Focal loss of logits ``[N, C]``, summed and divided by C: :func:`detloss.functional.sigmoid_focal_loss`.

    ``alpha`` is a number (there a tensor that the device has to be asked for), and γ < 1 has a finite gradient at saturated
    logits.

    Args:
        gamma: focusing exponent.
        alpha: weight of the positives; 0 and less for no weights.

    >>> FocalLoss(gamma=2.0)(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # (0.25 + 0.75) · ln 2 / 4 / 2
    tensor(0.0866)
    """

    def __init__(self, gamma: float = 1.5, alpha: float = 0.25) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        """Compute the loss of logits against labels in [0, 1] of the same shape."""
        total = binary_focal_loss("FocalLoss", pred, label, self.alpha if self.alpha > 0 else None, self.gamma, "sum")
        return total / max(pred.shape[1], 1)


class DFLoss(nn.Module):
    """Distribution focal loss of the four sides of a box, their mean: :func:`detloss.functional.distribution_focal_loss`.

    The targets given are not written (they are clamped in place there).

    Args:
        reg_max: number of bins; targets are clamped to [0, reg_max − 1.01], as there.

    >>> DFLoss(4)(torch.zeros(4, 4), torch.tensor([[0.0, 1.0, 1.5, 9.0]]))  # ln 4
    tensor([[1.3863]])
    """

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.reg_max = reg_max

    def forward(self, pred_dist: Tensor, target: Tensor) -> Tensor:
        """Compute ``[N, 1]`` from logits ``[N · 4, reg_max]`` and distances ``[N, 4]`` in bins."""
        bins = pred_dist.reshape(*target.shape, pred_dist.shape[-1])
        distance = target.clamp(0, self.reg_max - 1 - BIN_MARGIN)
        return distribution_focal_loss(bins, distance, reduction="none").mean(-1, keepdim=True)


class BboxLoss(nn.Module):
    """CIoU loss and distribution focal loss of the positives, each weighed by its score.

    Args:
        reg_max: number of bins per side; with one the second loss is the L1 distance of the sides in units of the image.
    """

    def __init__(self, reg_max: int = 16) -> None:
        super().__init__()
        self.dfl_loss = DFLoss(reg_max) if reg_max > 1 else None

    def forward(
        self,
        pred_dist: Tensor,
        pred_bboxes: Tensor,
        anchor_points: Tensor,
        target_bboxes: Tensor,
        target_scores: Tensor,
        target_scores_sum: Tensor,
        fg_mask: Tensor,
        imgsz: Tensor,
        stride: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Compute both losses. Boxes, points and distances are in strides.

        Args:
            pred_dist: ``[B, P, 4 · reg_max]`` logits of the bins.
            pred_bboxes: ``[B, P, 4]`` corners.
            anchor_points: ``[P, 2]``.
            target_bboxes: ``[B, P, 4]`` corners.
            target_scores: ``[B, P, C]``.
            target_scores_sum: what both sums are divided by.
            fg_mask: ``[B, P]`` the positives.
            imgsz: (height, width) in pixels.
            stride: ``[P, 1]`` pixels.
        """
        at = fg_mask.nonzero(as_tuple=True)
        weight, own, prior = target_scores[at].sum(-1), upcast(pred_dist[at]), at[-1]
        loss_iou = ciou_loss(pred_bboxes[at], target_bboxes[at], weight=weight, avg_factor=target_scores_sum)
        true = box_to_distance(anchor_points[prior], target_bboxes[at])
        if self.dfl_loss:
            return loss_iou, distribution_term(DistributionFocalLoss(), own, true, weight, target_scores_sum, BIN_MARGIN)
        unit = stride[prior] / imgsz.flip(0).repeat(2).to(own.dtype)
        return loss_iou, l1_loss(own * unit, true * unit, weight=weight, avg_factor=4 * target_scores_sum)
