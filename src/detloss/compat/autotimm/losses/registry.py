"""``autotimm.losses.registry``: losses by name for its tasks.

What differs: a custom loss can be listed under a task and taken out again; replacing a loss by another one warns; an unknown name
is an error that says the nearest.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from torch import nn

from detloss.checks import check_option, did_you_mean
from detloss.compat.autotimm.losses.detection import CenternessLoss, FCOSLoss, FocalLoss, GIoULoss
from detloss.compat.autotimm.losses.segmentation import (
    CombinedSegmentationLoss,
    DiceLoss,
    FocalLossPixelwise,
    MaskLoss,
    TverskyLoss,
)

__all__ = ["LossRegistry", "get_loss_registry", "list_available_losses", "register_custom_loss"]

TASKS = ("classification", "detection", "segmentation")


class LossRegistry:
    """Loss classes by name, with short names for some.

    >>> registry = LossRegistry()
    >>> registry.get_loss("dice", num_classes=10).num_classes
    10
    >>> registry.list_losses("detection")
    ['centerness', 'fcos', 'focal', 'giou']
    """

    CLASSIFICATION_LOSSES: ClassVar[dict[str, type[nn.Module]]] = {
        "cross_entropy": nn.CrossEntropyLoss,
        "bce": nn.BCEWithLogitsLoss,
        "bce_with_logits": nn.BCEWithLogitsLoss,
        "nll": nn.NLLLoss,
        "mse": nn.MSELoss,
    }
    DETECTION_LOSSES: ClassVar[dict[str, type[nn.Module]]] = {
        "focal": FocalLoss,
        "giou": GIoULoss,
        "centerness": CenternessLoss,
        "fcos": FCOSLoss,
    }
    SEGMENTATION_LOSSES: ClassVar[dict[str, type[nn.Module]]] = {
        "dice": DiceLoss,
        "focal_pixelwise": FocalLossPixelwise,
        "tversky": TverskyLoss,
        "mask": MaskLoss,
        "combined_segmentation": CombinedSegmentationLoss,
    }

    def __init__(self) -> None:
        families = (self.CLASSIFICATION_LOSSES, self.DETECTION_LOSSES, self.SEGMENTATION_LOSSES)
        self._tasks = {task: set(family) for task, family in zip(TASKS, families, strict=True)}
        self._registry: dict[str, type[nn.Module]] = {name: loss for family in families for name, loss in family.items()}
        self._aliases = {"ce": "cross_entropy", "bce": "bce_with_logits", "combined": "combined_segmentation"}

    def register_loss(self, name: str, loss_class: type[nn.Module], alias: str | None = None, *, task: str | None = None) -> None:
        """Add a loss. Another class under a name that is taken replaces it, with a warning.

        Args:
            name: name of the loss.
            loss_class: its class, a subclass of ``nn.Module``; anything else is a ``ValueError``.
            alias: a second name.
            task: ``"classification"``, ``"detection"`` or ``"segmentation"``, under which it is listed.
        """
        if not (isinstance(loss_class, type) and issubclass(loss_class, nn.Module)):
            raise ValueError(f"LossRegistry: loss_class must be a subclass of nn.Module; got {loss_class!r}")
        if task is not None:
            check_option("LossRegistry", "task", task, TASKS)
        known = self._registry.get(self._resolved(name), loss_class)
        if known is not loss_class:
            warnings.warn(f"LossRegistry: {name!r} was {known.__name__} and is now {loss_class.__name__}", stacklevel=2)
        self._aliases.pop(name, None)
        self._registry[name] = loss_class
        if alias:
            self._aliases[alias] = name
        if task is not None:
            self._tasks[task].add(name)

    def unregister_loss(self, name: str) -> None:
        """Take a loss and its aliases out; an unknown name is a ``ValueError``."""
        full = self._known(name)
        del self._registry[full]
        self._aliases = {short: target for short, target in self._aliases.items() if target != full}
        for names in self._tasks.values():
            names.discard(full)

    def get_loss(self, name: str, **kwargs: Any) -> nn.Module:
        """An instance of the loss called ``name`` or so for short, made with ``kwargs``; an unknown name is a ``ValueError``."""
        return self._registry[self._known(name)](**kwargs)

    def list_losses(self, task: str | None = None) -> list[str]:
        """Sorted names of all losses, or of those of a task; an unknown task is a ``ValueError``."""
        if task is None:
            return sorted(self._registry)
        check_option("LossRegistry", "task", task.lower(), TASKS)
        return sorted(self._tasks[task.lower()])

    def has_loss(self, name: str) -> bool:
        """Whether ``name`` is a loss or a short name of one."""
        return self._resolved(name) in self._registry

    def get_loss_info(self) -> dict[str, list[str]]:
        """Sorted names by task."""
        return {task: self.list_losses(task) for task in TASKS}

    def _resolved(self, name: str) -> str:
        return self._aliases.get(name, name)

    def _known(self, name: str) -> str:
        full = self._resolved(name)
        if full not in self._registry:
            raise ValueError(
                f"LossRegistry: {name!r} not found in registry.{did_you_mean(name, self._registry)} "
                f"Losses: {', '.join(self.list_losses())}"
            )
        return full


_global_registry = LossRegistry()


def get_loss_registry() -> LossRegistry:
    """The registry of this process."""
    return _global_registry


def register_custom_loss(name: str, loss_class: type[nn.Module], alias: str | None = None, *, task: str | None = None) -> None:
    """:meth:`LossRegistry.register_loss` of the registry of this process."""
    _global_registry.register_loss(name, loss_class, alias, task=task)


def list_available_losses(task: str | None = None) -> list[str]:
    """:meth:`LossRegistry.list_losses` of the registry of this process."""
    return _global_registry.list_losses(task=task)
