"""``autotimm.losses.detection``: the three losses of FCOS and their combination."""

from detloss.compat.autotimm.losses.elementary import CenternessLoss, FocalLoss, GIoULoss
from detloss.compat.autotimm.losses.fcos import FCOSLoss

__all__ = ["CenternessLoss", "FCOSLoss", "FocalLoss", "GIoULoss"]
