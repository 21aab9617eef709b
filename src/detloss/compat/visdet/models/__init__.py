"""``visdet.models``: the losses."""

from detloss.compat.visdet.models import losses

__all__ = ["losses"]
