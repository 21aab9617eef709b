"""Detectors of other packages with a criterion of this one, in one call.

``detloss.integrations.torchvision.with_criterion(model, criterion)``, and the same of ``ultralytics`` and ``transformers``.
A package is imported when one of its models is given, not before.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from detloss.integrations.meter import LossMeter

__all__ = ["LossMeter", "torchvision", "transformers", "ultralytics"]

FRAMEWORKS = ("torchvision", "transformers", "ultralytics")


def __getattr__(name: str) -> Any:
    """Load the module of a framework when it is first asked for."""
    if name in FRAMEWORKS:
        found: ModuleType = importlib.import_module(f"{__name__}.{name}")
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *FRAMEWORKS])
