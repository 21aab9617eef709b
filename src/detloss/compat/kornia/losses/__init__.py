"""``kornia.losses``: focal, Dice, Tversky and Lovász hinge losses as functions and modules.

What differs: fp16 and bf16 are computed and returned in fp32; a mean of nothing is 0; wrong shapes and labels are a
``ValueError``; ``alpha`` outside [0, 1] is one too. The losses of kornia that have nothing to do with detection (SSIM, total
variation, mutual information …) are not here.
"""

from detloss.compat.kornia.losses.dice import DiceLoss, dice_loss
from detloss.compat.kornia.losses.focal import (
    BinaryFocalLossWithLogits,
    FocalLoss,
    binary_focal_loss_with_logits,
    focal_loss,
)
from detloss.compat.kornia.losses.lovasz_hinge import LovaszHingeLoss, lovasz_hinge_loss
from detloss.compat.kornia.losses.tversky import TverskyLoss, tversky_loss

__all__ = [
    "BinaryFocalLossWithLogits",
    "DiceLoss",
    "FocalLoss",
    "LovaszHingeLoss",
    "TverskyLoss",
    "binary_focal_loss_with_logits",
    "dice_loss",
    "focal_loss",
    "lovasz_hinge_loss",
    "tversky_loss",
]
