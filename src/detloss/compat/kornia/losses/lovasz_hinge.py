"""``kornia.losses.lovasz_hinge``: the Lovász extension of 1 − IoU."""

from __future__ import annotations

from torch import Tensor, nn

from detloss.compat.kornia.losses.maps import check_maps
from detloss.functional import segmentation

__all__ = ["LovaszHingeLoss", "lovasz_hinge_loss"]


def lovasz_hinge_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Lovász hinge of each image, then the mean: :func:`detloss.functional.lovasz_hinge_loss`.

    Targets must be 0 or 1; −100 is ignored (there any value is taken, and the loss can fall below 0).

    Args:
        pred: logits ``[B, 1, H, W]``.
        target: masks ``[B, H, W]``.

    >>> import torch
    >>> lovasz_hinge_loss(torch.tensor([[[[2.0, -0.5, -2.0]]]]), torch.tensor([[[1, 1, 0]]]))  # 1.5 · 1/2
    tensor(0.7500)
    """
    check_maps("lovasz_hinge_loss", pred, target, "1")
    return segmentation.lovasz_hinge_loss(pred.squeeze(1), target)


class LovaszHingeLoss(nn.Module):
    """:func:`lovasz_hinge_loss` as a module."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the loss."""
        return lovasz_hinge_loss(pred, target)
