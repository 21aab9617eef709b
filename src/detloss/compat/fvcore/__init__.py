"""The losses of fvcore, in :mod:`detloss.compat.fvcore.nn` as there."""

from detloss.compat.fvcore import nn

__all__ = ["nn"]
