"""``ultralytics.models``: what its RT-DETR learns with."""

from detloss.compat.ultralytics.models import utils

__all__ = ["utils"]
