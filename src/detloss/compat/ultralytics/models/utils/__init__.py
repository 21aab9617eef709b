"""``ultralytics.models.utils``: the criterion of RT-DETR and its matcher."""

from detloss.compat.ultralytics.models.utils import loss, ops

__all__ = ["loss", "ops"]
