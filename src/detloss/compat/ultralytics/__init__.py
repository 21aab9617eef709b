"""``ultralytics``: the losses, assigners and criteria of its detection models and RT-DETR, at the paths they have there."""

from detloss.compat.ultralytics import models, utils

__all__ = ["models", "utils"]
