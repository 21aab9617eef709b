"""``mmdet.registry``: ``MODELS``, which lists the losses and builds them from configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from detloss.registry import Registry

__all__ = ["MODELS", "ModelRegistry", "build_loss"]


class ModelRegistry(Registry):
    """:class:`detloss.registry.Registry` with the calls of mmengine's: ``register_module(module=…)``, classes as ``type``."""

    def register_module(  # type: ignore[override]
        self, name: str | None = None, force: bool = False, module: type | None = None
    ) -> Callable[[Any], Any] | type:
        """Decorator that adds a class under ``name`` (its own by default), or, with ``module``, add that class at once.

        A second class of the same name is a ``ValueError`` (there a ``KeyError``) unless ``force``.
        """
        add = super().register_module(name, family="mmdet", force=force)
        return add if module is None else add(module)

    def build(self, config: Mapping[str, Any] | str | object, **defaults: Any) -> Any:
        """A module from ``dict(type=name or class, **options)``; see :meth:`detloss.registry.Registry.build`."""
        if isinstance(config, Mapping) and inspect.isclass(config.get("type")):
            kind = config["type"]
            if kind in self.module_dict.values():
                config = {**config, "type": kind.__name__}
        return super().build(config, **defaults)


MODELS = ModelRegistry("mmdet loss")


def build_loss(cfg: Mapping[str, Any]) -> Any:
    """The loss of a configuration, by ``MODELS``; an unknown type or option is an error that names the nearest one."""
    return MODELS.build(cfg)
