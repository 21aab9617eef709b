"""The losses of autotimm; the rest of the package, such as its tasks and heads, stays where it is.

``from autotimm import FCOSLoss``, ``autotimm.losses`` and ``autotimm.losses.detection`` have their likes here.
"""

from detloss.compat.autotimm import losses
from detloss.compat.autotimm.losses.detection import CenternessLoss, FCOSLoss, FocalLoss, GIoULoss
from detloss.compat.autotimm.losses.segmentation import (
    CombinedSegmentationLoss,
    DiceLoss,
    FocalLossPixelwise,
    MaskLoss,
    TverskyLoss,
)

loss = losses

__all__ = [
    "CenternessLoss",
    "CombinedSegmentationLoss",
    "DiceLoss",
    "FCOSLoss",
    "FocalLoss",
    "FocalLossPixelwise",
    "GIoULoss",
    "MaskLoss",
    "TverskyLoss",
    "loss",
    "losses",
]
