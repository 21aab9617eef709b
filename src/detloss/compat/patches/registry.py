"""Put functions of an installed framework aside for ours, and back: only if its code is the one that a patch was written for."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import io
import textwrap
import threading
import tokenize
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from importlib import metadata
from types import TracebackType
from typing import Any

__all__ = ["Patch", "PatchMismatchError", "Plan", "Replacement", "fingerprint", "function_at"]

Function = Callable[..., Any]
HASH_LENGTH = 12
_lock = threading.RLock()


class PatchMismatchError(RuntimeError):
    """The installed framework is not the one that the patch knows; nothing was changed."""


@dataclass(frozen=True)
class Replacement:
    """A function of a framework and what takes its place.

    Attributes:
        owner: module, class or dict that holds the function.
        name: its name, or key, there.
        make: original → replacement, which falls back on the original for what it does not cover.
        path: dotted name of a dict; that of modules and classes is their own.
    """

    owner: Any
    name: str
    make: Callable[[Function], Function]
    path: str = ""

    @property
    def where(self) -> str:
        """The dotted name, as ``package.module.Class.method``."""
        if isinstance(self.owner, MutableMapping):
            return f"{self.path}[{self.name!r}]"
        return function_path(self.owner, self.name)

    def get(self) -> Any:
        """What is there now."""
        return self.owner[self.name] if isinstance(self.owner, MutableMapping) else vars(self.owner)[self.name]

    def set(self, value: Any) -> None:
        """Put ``value`` there."""
        if isinstance(self.owner, MutableMapping):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)


@dataclass(frozen=True)
class Plan:
    """What a patch does to a framework, and the code that it was written for.

    Attributes:
        framework: name of the distribution.
        replacements: what is replaced.
        relied_on: (owner, name) of further functions whose results the replacements reproduce.
        known: dotted name → fingerprints of the code that the replacements are equal to.
        left: dotted name → why it stays as it is, for functions that one might expect to be replaced.
    """

    framework: str
    replacements: tuple[Replacement, ...]
    relied_on: tuple[tuple[Any, str], ...]
    known: Mapping[str, tuple[str, ...]]
    left: Mapping[str, str]

    def found(self) -> dict[str, str]:
        """Dotted name → fingerprint of all functions that must be known, as they are installed."""
        holders = [(r.owner, r.name) for r in self.replacements if not isinstance(r.owner, MutableMapping)]
        return {function_path(owner, name): fingerprint(function_at(owner, name)) for owner, name in (*holders, *self.relied_on)}

    def check(self) -> None:
        """Raise :class:`PatchMismatchError` unless every function is one that the patch knows."""
        strange = [f"{where} ({code})" for where, code in self.found().items() if code not in self.known.get(where, ())]
        if strange:
            raise PatchMismatchError(
                f"patch({self.framework!r}) does not know the installed {self.framework} {version_of(self.framework)}; "
                "nothing was changed. Functions that differ from the code the patch was written for (fingerprint): "
                f"{', '.join(strange)}. "
                f"Expected a version whose functions are the same as in those tested; update detloss or {self.framework}, "
                "or train without the patch."
            )


def version_of(framework: str) -> str:
    """The installed version; ``"?"`` when it has no metadata."""
    try:
        return metadata.version(framework)
    except metadata.PackageNotFoundError:
        return "?"


def function_path(owner: Any, name: str) -> str:
    """``package.module.Class.method``."""
    return f"{owner.__name__}.{name}" if inspect.ismodule(owner) else f"{owner.__module__}.{owner.__qualname__}.{name}"


def function_at(owner: Any, name: str) -> Any:
    """The function ``name`` of a module or class itself, not bound; ``None`` if it has none."""
    found = vars(owner).get(name)
    return found.__func__ if isinstance(found, (staticmethod, classmethod)) else found


def fingerprint(function: Any) -> str:
    """Hash of the code of a function without docstring, comments and white space; says why when there is no source.

    Decorators of torch such as ``no_grad`` are looked through; other wrappers are code of their own.
    """
    while "_contextlib" in getattr(getattr(function, "__code__", None), "co_filename", "") and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is None:
        return "missing" if function is None else "not a Python function"
    try:
        source = textwrap.dedent(inspect.getsource(code))
    except OSError:
        return "source not available"
    return hashlib.sha256(_bare(source).encode()).hexdigest()[:HASH_LENGTH]


def _bare(source: str) -> str:
    """Source text without docstring, comments and differences in white space, whatever the version of Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    body = ast.parse(source).body[0]
    first = body.body[0] if isinstance(body, (ast.FunctionDef, ast.AsyncFunctionDef)) else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del lines[first.lineno - 1 : first.end_lineno]
    return " ".join(" ".join(lines).split())


class Patch:
    """A patch of one framework: a context manager, and what :func:`detloss.patch` returns.

    Leaving the ``with`` block takes the patch off again, unless it was there before.

    Attributes:
        framework: its name.
        replaced: dotted names of all that is replaced.
        left: dotted name → why it stays as it is.
    """

    _active: dict[str, list[tuple[Replacement, Any, Any]]] = {}  # noqa: RUF012 (the state of the process)

    def __init__(self, plan: Plan) -> None:
        self.framework = plan.framework
        self.replaced: tuple[str, ...] = tuple(replacement.where for replacement in plan.replacements)
        self.left = dict(plan.left)
        self._plan = plan
        self._owns = False
        self.apply()

    @property
    def active(self) -> bool:
        """Whether the framework is patched now."""
        return self.framework in self._active

    def apply(self) -> None:
        """Replace the functions; nothing happens where they are replaced already."""
        with _lock:
            if self.active:
                return
            self._plan.check()
            done: list[tuple[Replacement, Any, Any]] = []
            for replacement in self._plan.replacements:
                original = replacement.get()
                new = _like(original, replacement.make)
                replacement.set(new)
                done.append((replacement, original, new))
            self._active[self.framework] = done
            self._owns = True

    @classmethod
    def remove(cls, framework: str) -> None:
        """Put the original functions back; nothing happens where none were replaced."""
        with _lock:
            for replacement, original, new in reversed(cls._active.pop(framework, [])):
                if replacement.get() is new:
                    replacement.set(original)
                else:
                    warnings.warn(f"unpatch: {replacement.where} was replaced again since, and stays as it is", stacklevel=3)

    def __enter__(self) -> Patch:
        self.apply()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._owns:
            self._owns = False
            self.remove(self.framework)

    def __repr__(self) -> str:
        state = "active" if self.active else "not active"
        return f"Patch({self.framework!r}, {state}, replaced={list(self.replaced)})"


def _like(original: Any, make: Callable[[Function], Function]) -> Any:
    """The replacement with the name and documentation of the original, a static method where that is one."""
    static = isinstance(original, staticmethod)
    function = original.__func__ if static else original
    new = functools.wraps(function)(make(function))
    return staticmethod(new) if static else new
