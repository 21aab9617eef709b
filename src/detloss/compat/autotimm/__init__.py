"""The losses of autotimm. The rest of the package, such as its tasks and heads, is handed on where autotimm is installed.

``from autotimm import FCOSLoss``, ``autotimm.losses`` and ``autotimm.losses.detection`` have their likes here;
``ObjectDetector`` is autotimm's own.
"""

from typing import Any

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


def __getattr__(name: str) -> Any:
    """What is no loss, from autotimm itself."""
    if not name.startswith("_"):
        try:
            import autotimm
        except ImportError:
            raise AttributeError(
                f"module {__name__!r} has the losses of autotimm; for {name!r} install autotimm itself: pip install autotimm"
            ) from None
        if hasattr(autotimm, name):
            return getattr(autotimm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
