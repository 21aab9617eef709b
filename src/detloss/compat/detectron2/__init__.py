"""The losses of detectron2, in :mod:`detloss.compat.detectron2.layers` as there; the others it has from fvcore."""

from detloss.compat.detectron2 import layers

__all__ = ["layers"]
