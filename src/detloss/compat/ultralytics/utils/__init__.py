"""``ultralytics.utils``: losses, the task-aligned assigner, and overlaps of boxes."""

from detloss.compat.ultralytics.utils import loss, metrics, tal

__all__ = ["loss", "metrics", "tal"]
