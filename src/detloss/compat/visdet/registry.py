"""``visdet.registry``: ``MODELS``, which lists the losses and builds them from configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detloss.compat.mmdet.registry import ModelRegistry
from detloss.compat.visdet.models import losses

__all__ = ["MODELS", "build_loss"]

MODELS = ModelRegistry("visdet loss")
for _name in losses.__all__:
    if isinstance(_found := getattr(losses, _name), type) and _name != "Accuracy":
        MODELS.register_module(module=_found)


def build_loss(cfg: Mapping[str, Any]) -> Any:
    """The loss of a configuration, by ``MODELS``; an unknown type or option is an error that names the nearest one."""
    return MODELS.build(cfg)
