"""``mmdet`` 3: its losses, ``MODELS`` and ``build_loss`` on this engine, at the paths they have there.

``from mmdet.models.losses import FocalLoss`` becomes ``from detloss.compat.mmdet.models.losses import FocalLoss``, and likewise
``mmdet.registry.MODELS``. All names are here as well. Numbers are those of mmdet but for its defects, of which the
docstrings tell: NaN and inf, means of nothing, divisions by an ``avg_factor`` of 0, the sign of SIoU.

>>> build_loss(dict(type="FocalLoss", gamma=1.5))
FocalLoss(use_sigmoid=True, gamma=1.5, alpha=0.25, reduction='mean', loss_weight=1.0, activated=False)
"""

from typing import Any

from detloss.compat.mmdet import models, registry
from detloss.compat.mmdet.models import losses
from detloss.compat.mmdet.registry import MODELS, build_loss

__all__ = ["MODELS", "build_loss", "models", "registry", *losses.__all__]


def __getattr__(name: str) -> Any:
    """The losses, by their names."""
    if name in losses.__all__:
        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
