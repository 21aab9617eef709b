"""The losses of other packages under their own names, with their signatures, shapes and reductions, on this engine.

A peer's module has the path it has there: ``torchvision.ops`` is ``detloss.compat.torchvision.ops``, so only the import line of
existing code changes. No peer needs to be installed. Where the number of a peer is a defect, such as NaN for an empty batch,
the one here is right, and the docstring says so.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def _modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]


def __getattr__(name: str) -> ModuleType:
    """Load a peer when it is first asked for: ``detloss.compat.kornia`` needs no import of its own."""
    if name in _modules():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_modules())}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_modules()])
