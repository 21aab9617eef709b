"""Peak memory of one implementation in a process that did nothing before: how far the high-water mark rises (Linux).

A server process imports PyTorch, detloss and the peers once and computes nothing; every weighing is a fork of it. There a
tiny case of the same kind runs first, so that code and lookup tables are loaded, then the case itself once. The rise
includes the gradient, and nothing that the inputs take.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

__all__ = ["fresh", "peak", "resident", "rise", "start"]

PRELOADED = [
    "detloss", "torchvision.models.detection.roi_heads", "fvcore.nn", "kornia.losses", "autotimm.losses", "effdet.loss",
    "ultralytics.utils.loss", "ultralytics.utils.tal", "ultralytics.models.utils.ops", "transformers.loss.loss_d_fine",
]  # fmt: skip
STATUS = Path("/proc/self/status")


def resident(key: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the largest so far) of this process in bytes; 0 where there is no such file."""
    lines = STATUS.read_text(encoding="ascii").splitlines() if STATUS.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def rise(work: Callable[[], object]) -> int:
    """Bytes by which the resident set of this process rises above its level before the call."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back, or the call would find room there
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # from here on the highest counts anew
    before = resident("VmRSS")
    kept = work()
    highest = resident("VmHWM")
    del kept
    return max(0, highest - before)


def _context() -> Any:
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def start() -> None:
    """Let the server import what it needs while this process does something else."""
    context = _context()
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(PRELOADED)
        from multiprocessing import forkserver

        forkserver.ensure_running()


def fresh(work: Callable[..., Any], *arguments: object) -> Any:
    """Result of a call in a process of its own."""
    with _context().Pool(1) as pool:
        return pool.apply(work, arguments)


def _rise_of(suite: str, key: str, name: str, size: str, threads: int) -> int:
    torch.set_num_threads(threads)
    entries = importlib.import_module(suite).entries
    torch.manual_seed(0)
    tiny = next(entry for entry in entries("tiny") if entry.key == key).make()
    if name in tiny.steps:
        tiny.reset()
        tiny.steps[name]()
    case = next(entry for entry in entries(size) if entry.key == key).make()
    case.reset()
    return rise(case.steps[name])


def peak(suite: str, key: str, name: str, size: str, threads: int) -> int | None:
    """Bytes that implementation ``name`` of a case of the module ``suite`` takes; ``None`` where they cannot be read."""
    return int(fresh(_rise_of, suite, key, name, size, threads)) if STATUS.exists() else None
