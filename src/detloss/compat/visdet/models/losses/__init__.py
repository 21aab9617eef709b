"""``visdet.models.losses``: the losses of :mod:`detloss.compat.mmdet.models.losses`, with visdet's ``GaussianFocalLoss``."""

from typing import Any

from detloss.compat.mmdet.models import losses as shared
from detloss.compat.visdet.models.losses.gaussian import GaussianFocalLoss

__all__ = ["GaussianFocalLoss", *(name for name in shared.__all__ if name != "GaussianFocalLoss")]


def __getattr__(name: str) -> Any:
    """The losses that both have, by their names."""
    if name in shared.__all__:
        return getattr(shared, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
