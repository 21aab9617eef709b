"""``visdet``: its losses, ``MODELS`` and ``build_loss`` on this engine, at the paths they have there.

``from visdet.registry import MODELS`` becomes ``from detloss.compat.visdet.registry import MODELS``. The losses are those of
:mod:`detloss.compat.mmdet`, of which visdet is a copy, with all their names; what is different is said here.

* ``MODELS`` lists them as soon as it is imported (there after ``visdet.models`` is).
* ``GaussianFocalLoss`` has no ``pos_inds``: the third argument of a call is ``weight``.
* ``FocalLoss`` takes targets of the logits' shape and ``activated=True``, and so does ``QualityFocalLoss`` (there targets are
  indices, and ``activated`` is not implemented).
* fp16 boxes are computed in fp32 (there the area of 300 px overflows).
* VarifocalLoss, GHMC, SeesawLoss, DIoULoss and the others that only mmdet has are here too.

>>> from detloss.compat.visdet.registry import MODELS
>>> [name for name in sorted(MODELS.module_dict.keys()) if "L1" in name]
['BalancedL1Loss', 'L1Loss', 'SmoothL1Loss']
"""

from typing import Any

from detloss.compat.visdet import models, registry
from detloss.compat.visdet.models import losses
from detloss.compat.visdet.registry import MODELS, build_loss

__all__ = ["MODELS", "build_loss", "models", "registry", *losses.__all__]


def __getattr__(name: str) -> Any:
    """The losses, by their names."""
    if name in losses.__all__:
        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
