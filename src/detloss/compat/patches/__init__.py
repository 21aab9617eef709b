"""Make an installed framework compute its losses and assignments here: ``detloss.patch("torchvision")``."""

from __future__ import annotations

import importlib

from detloss.checks import did_you_mean
from detloss.compat.patches.registry import Patch, PatchMismatchError, Plan

__all__ = ["FRAMEWORKS", "Patch", "PatchMismatchError", "patch", "plan", "unpatch"]

FRAMEWORKS = ("autotimm", "torchvision", "transformers", "ultralytics")


def _check(framework: object) -> str:
    if not isinstance(framework, str) or framework not in FRAMEWORKS:
        meant = did_you_mean(framework, FRAMEWORKS) if isinstance(framework, str) else ""
        raise ValueError(f"patch: expected one of {', '.join(map(repr, FRAMEWORKS))}; got {framework!r}.{meant}")
    return framework


def plan(framework: str) -> Plan:
    """What :func:`patch` replaces in the installed framework; nothing is changed.

    ``plan(framework).found()`` are the fingerprints of the installed code.

    Raises:
        ValueError: unknown framework.
        ImportError: the framework is not installed.
    """
    name = _check(framework)
    try:
        made: Plan = importlib.import_module(f"{__name__}.{name}").plan()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name:
            raise
        raise ImportError(f"patch({name!r}) needs {name}, which is not installed: pip install {name}") from error
    return made


def patch(framework: str) -> Patch:
    """Let a framework compute its losses and assignments here, in models that exist already too.

    ``detloss.patch("torchvision")`` stays until :func:`unpatch`; ``with detloss.patch("torchvision"):`` until the end of the
    block. Patching twice does no harm. The result lists the dotted names of what was ``replaced``.

    Args:
        framework: ``"autotimm"``, ``"torchvision"``, ``"transformers"`` or ``"ultralytics"``.

    Raises:
        ValueError: unknown framework.
        ImportError: the framework is not installed.
        PatchMismatchError: its code is not the one that the patch was written for. Nothing is changed then.
    """
    return Patch(plan(framework))


def unpatch(framework: str | None = None) -> None:
    """Put the original functions of a framework back, or of all; nothing happens where none were replaced."""
    for name in FRAMEWORKS if framework is None else (_check(framework),):
        Patch.remove(name)
