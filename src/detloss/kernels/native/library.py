"""The compiled library: found beside this file, loaded once, its functions declared."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

__all__ = ["library", "problem"]

VERSION = 8
NOT_BUILT = (
    "detloss was installed without a C++ compiler, or runs from a source tree in which the library was not built "
    "(`python setup.py build_ext --inplace` builds it)"
)


def _candidates() -> list[Path]:
    folder = Path(__file__).parent
    suffixes = (".pyd", ".dll") if sys.platform == "win32" else (".so", ".dylib")
    tag = sys.implementation.cache_tag.removeprefix("cpython-")
    found = [path for path in sorted(folder.glob("_kernels*")) if path.suffix in suffixes]
    # Several Python versions may share a source tree; the library knows nothing of Python, so any of its files will do.
    return sorted(found, key=lambda path: f"cpython-{tag}-" not in path.name)


def _declare(loaded: ctypes.CDLL) -> None:
    pointer = ctypes.c_void_p
    loaded.detloss_large_pages.argtypes, loaded.detloss_large_pages.restype = [pointer, ctypes.c_int64], None
    loaded.detloss_instruction_set.restype = ctypes.c_char_p
    for name in ("sigmoid", "softmax", "boxes", "coordinates", "rotated", "masks", "expectation", "prototypes"):
        getattr(loaded, f"detloss_{name}").argtypes = [pointer, ctypes.c_int, ctypes.c_double, pointer]
    aligned = (f"aligned_{step}" for step in ("count", "pairs", "overlap", "claim", "settle"))
    for name in ("max_iou", "atss", "pair_cost", *aligned):
        function = getattr(loaded, f"detloss_{name}")
        function.argtypes, function.restype = [pointer, ctypes.c_int], None


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    problems = [NOT_BUILT]
    for path in _candidates():
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError as error:
            problems.append(f"{path.name} cannot be loaded: {error}")
            continue
        if not hasattr(loaded, "detloss_version") or loaded.detloss_version() != VERSION:
            problems.append(f"{path.name} was built from other sources; build it again")
            continue
        _declare(loaded)
        return loaded, ""
    return None, problems[-1]


def problem() -> str | None:
    """Why there is no library, or ``None``."""
    return _load()[1] or None


def library() -> ctypes.CDLL:
    """The loaded library. Call it only when :func:`problem` says ``None``."""
    loaded, why = _load()
    if loaded is None:
        raise RuntimeError(f"detloss.kernels: no native library: {why}")
    return loaded
