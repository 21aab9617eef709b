"""The losses of effdet, in :mod:`detloss.compat.effdet.loss` as there."""

from detloss.compat.effdet import loss

__all__ = ["loss"]
