"""The losses of kornia that detectors use, in :mod:`detloss.compat.kornia.losses` as there."""

from detloss.compat.kornia import losses

__all__ = ["losses"]
