"""What a result was measured with: the machine, the versions, the settings, and how fast it copies. No host, no user."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import environment
import torch
from measure import PEERS, cpu_seconds, quartiles

import detloss

__all__ = ["copy_bandwidth", "description"]

COPIED = 100 * 2**20
GIB = 2**30


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    with suppress(OSError, ValueError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1)
    return None


def _system() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return platform.system()


def _versions() -> dict[str, str]:
    found = {"detloss": detloss.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in (*PEERS[1:], "triton", "scipy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def description() -> dict[str, Any]:
    """Machine, versions and settings of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {
        "processor": _processor(), "architecture": platform.machine(), "cores": cores, "memory_gib": _memory_gib(),
        "vectors": torch.backends.cpu.get_cpu_capability(), "system": _system(),
    }  # fmt: skip
    settings = {
        "threads": torch.get_num_threads(),
        "environment": environment.VARIABLES,
        "kernels": str(detloss.kernels.backend()),
    }
    return {"machine": machine, "versions": _versions(), "settings": settings}


def copy_bandwidth(times: int) -> dict[str, list[float]]:
    """GB/s read and written together, of 100 MiB, into memory that is there and into fresh memory."""
    source = torch.ones(COPIED // 4)
    there = source.clone()
    warm = [cpu_seconds(lambda: there.copy_(source)) for _ in range(times)]
    fresh = [cpu_seconds(lambda: torch.empty_like(source).copy_(source)) for _ in range(times)]
    moved = 2 * COPIED / 1e9
    return {"warm_gb_s": quartiles([moved / t for t in warm]), "fresh_gb_s": quartiles([moved / t for t in fresh])}
