"""The losses on a GPU: time by CUDA events, peak memory of the allocator, beside peers and ``torch.compile`` of the formula."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import box_cases
import class_cases
import command
import torch
from loss_case import with_options
from measure import Entry, Settings, measure, quartiles, show

__all__ = ["cuda_seconds", "on_cuda"]

COPIED = 2**30
BUDGET = 0.3  # seconds for the rounds of a case
# Compiling takes seconds a case, and a lent GPU is short.
COMPILED = ("focal rows", "focal maps", "qfl", "ce", "dfl", "giou 1e3", "giou 1e6", "ciou 1e6")
DTYPES = {"": torch.float32, " bf16": torch.bfloat16}


def cuda_seconds(work: Callable[[], object]) -> float:
    """Time of one call on the device, the waits between its launches included."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _peak_of(entry: Entry) -> Callable[[str, str, str], int]:
    """Bytes that an implementation of this case allocates at most."""

    def peak(_suite: str, _key: str, name: str) -> int:
        case = entry.make()
        for _ in range(2):  # the first call compiles
            case.reset()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            case.steps[name]()
            torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    return peak


def _cases(size: str, only: list[str]) -> list[Entry]:
    """Classification and boxes; the precision is chosen here, for all of them."""
    entries = [e for e in (*class_cases.entries(size), *box_cases.entries(size)) if not e.key.endswith("bf16")]
    beginnings = tuple(word.lower() for word in only)
    return [entry for entry in entries if not only or entry.key.lower().startswith(beginnings)]


def copy_bandwidth() -> list[float]:
    """GB/s read and written together."""
    source = torch.ones(COPIED // 4)
    there = source.clone()
    return quartiles([2 * COPIED / 1e9 / cuda_seconds(lambda: there.copy_(source)) for _ in range(15)])


def on_cuda(given: argparse.Namespace) -> dict[str, Any]:
    """Measure on the current device. A case in which detloss is wrong is an error of the run, after the others."""
    torch.set_default_device("cuda")
    budget, bounds, _ = command.BUDGET[given.size]
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    gpu = {"name": found.name, "memory_gib": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    result: dict[str, Any] = {"gpu": gpu, "copy_gb_s": copy_bandwidth(), "rows": [], "errors": []}
    for suffix, dtype in DTYPES.items():
        for entry in _cases(given.size, given.only):
            torch.manual_seed(0)
            peak = None if given.no_memory else _peak_of(entry)
            how = Settings(given.rounds, min(budget, BUDGET), bounds, cuda_seconds, peak)
            try:
                with with_options(dtype, compile=dtype == torch.float32 and entry.key in COMPILED):
                    row = measure("losses", entry._replace(key=entry.key + suffix), how)
            except RuntimeError as error:
                result["errors"].append(f"{entry.key}{suffix}: {error}")
                print(result["errors"][-1], file=sys.stderr)
                continue
            result["rows"].append(row)
            show(row)
    return result
