"""Run a peer's own tests of its losses with the losses of ``detloss.compat`` in their place.

    python tests/compat/peer_suites.py kornia ~/kornia/tests/losses/test_focal_loss.py [more files and options of pytest]

In an installed peer, every name that ``detloss.compat`` has is replaced, in all of its modules. A peer that is not installed is
``detloss.compat.PEER`` itself, whose packages also answer for modules that they do not have. The tests may need more than the
peer: run them from its checkout, with what its contributors install. Nothing of a peer is kept in this repository.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest

HERE = "detloss.compat"
PEERS = ("autotimm", "effdet", "fvcore", "kornia", "mmdet", "torchvision", "transformers", "ultralytics", "visdet")


def modules_of(peer: str) -> Iterator[tuple[str, ModuleType]]:
    """(dotted name in the peer, our module) of all modules, packages first."""
    package = importlib.import_module(f"{HERE}.{peer}")
    yield peer, package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield found.name.removeprefix(f"{HERE}."), importlib.import_module(found.name)


def public(module: ModuleType) -> list[str]:
    """What a module of ours gives, without its modules."""
    return [name for name in getattr(module, "__all__", ()) if not isinstance(getattr(module, name), ModuleType)]


def overlay(peer: str) -> list[str]:
    """Put our losses into the installed peer; the dotted names of what was replaced."""
    replaced = []
    for path, ours in list(modules_of(peer)):
        try:
            theirs = importlib.import_module(path)
        except ModuleNotFoundError:
            continue  # a module that only we have
        for name in public(ours):
            original = getattr(theirs, name, None)
            if original is None or original is getattr(ours, name):
                continue
            for holder, module in list(sys.modules.items()):
                if holder.split(".")[0] == peer and vars(module).get(name) is original:
                    setattr(module, name, getattr(ours, name))
                    replaced.append(f"{holder}.{name}")
    return replaced


class InTheirPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes ``import mmdet.models.losses.iou_loss`` give our module of that name, or else our package above it."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.known = dict(modules_of(peer))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Every module of the peer is found."""
        if fullname.split(".")[0] != self.peer:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module with all that ours has."""
        name = spec.name
        while name not in self.known:
            name = name.rpartition(".")[0]
        ours, stand_in = self.known[name], ModuleType(spec.name)

        def look_up(key: str) -> Any:
            return getattr(ours, key, absent(spec.name, key)) if key[:1].isupper() else getattr(ours, key)

        stand_in.__getattr__ = look_up  # type: ignore[method-assign]
        return stand_in

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


def absent(module: str, name: str) -> Callable[..., Any]:
    """In the place of a class that only the peer has: the tests that use it fail, not the import of all."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{module}.{name} has no likes in {HERE}")

    return fail


def redirect(peer: str) -> str:
    """Let the name of the peer mean our losses; says how."""
    if importlib.util.find_spec(peer) is None:
        sys.meta_path.insert(0, InTheirPlace(peer))
        return f"{peer} is not installed: detloss.compat.{peer} stands in its place"
    return f"replaced in the installed {peer}: {', '.join(sorted(overlay(peer)))}"


def main(arguments: Sequence[str]) -> int:
    """Redirect the peer named first and run pytest with the rest."""
    if len(arguments) < 2 or arguments[0] not in PEERS:
        print(f"{__doc__}\nPEER is one of {', '.join(PEERS)}")
        return 2
    peer, *rest = arguments
    print(redirect(peer))
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", "/dev/null", *rest]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
