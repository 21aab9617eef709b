"""``mmdet.models``: the losses, and ``build_loss``."""

from detloss.compat.mmdet.models import losses
from detloss.compat.mmdet.registry import MODELS, build_loss

__all__ = ["MODELS", "build_loss", "losses"]
