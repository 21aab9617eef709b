"""Assigners against those of the peers and against dense algorithms, and their memory in crowds.

    python benchmarks/assigners.py [--only ATSS] [--rounds 7] [--threads 2] [--quick] [--json assigners.json]

The results are compared first: nothing is timed that is not the same. Peak memory is the high-water mark of a process of its
own, less what the process held before the call. At the end every registered dense assigner matches 1000 objects in one image,
to compare its peak with its memory budget.
"""

from __future__ import annotations

from collections.abc import Callable

import memory
import torch
from assigner_cases import entries
from measure import MIB, cpu_seconds
from scenes import anchors_of, objects

from detloss.registry import ASSIGNERS
from detloss.types import Assignment

__all__ = ["crowds", "entries"]

NOT_DENSE = ("HungarianAssigner",)


def _crowd(name: str, quick: bool, covering: bool) -> Callable[[], Assignment]:
    """A registered assigner with 1000 objects in one image, spread over it or each covering all of it."""
    torch.manual_seed(0)
    height, width, count = (256, 320, 20) if quick else (800, 1216, 1000)
    anchors, targets = anchors_of(height, width), objects(1, count, height, width)
    if covering:
        edge = torch.tensor([0.0, 0.0, width, height])
        targets = [{**t, "boxes": edge + torch.rand(count, 4) * torch.tensor([-8.0, -8.0, 8.0, 8.0])} for t in targets]
    assigner = ASSIGNERS.get(name)()
    logits = torch.randn(1, len(anchors.stride), 80)
    boxes = anchors.boxes + torch.randn(1, len(anchors.stride), 4) * 8
    return lambda: assigner(anchors, targets, logits, boxes)


def _peak_of_crowd(name: str, covering: bool, quick: bool, threads: int) -> tuple[int, float]:
    """Rise in bytes and seconds of one assigner."""
    torch.set_num_threads(threads)
    _crowd(name, quick=True, covering=covering)()
    work = _crowd(name, quick, covering)
    return memory.rise(work), cpu_seconds(work)


def crowds(quick: bool, threads: int) -> list[dict[str, object]]:
    """Peak, budget and time of every dense assigner where an image is full of objects."""
    rows: list[dict[str, object]] = []
    for name in (n for n in ASSIGNERS if n not in NOT_DENSE):
        for covering in (False, True):
            peak, seconds = memory.fresh(_peak_of_crowd, name, covering, quick, threads)
            rows.append({
                "assigner": name, "objects": 20 if quick else 1000, "where": "all covering it" if covering else "spread over it",
                "peak_mib": round(peak / MIB, 1), "budget_mib": ASSIGNERS.get(name)().memory_budget / MIB,
                "ms": round(1e3 * seconds, 1),
            })  # fmt: skip
            print(
                "  {assigner:28s} {objects} {where:16s} {peak_mib:7.1f} MiB of {budget_mib:.0f} MiB, {ms:7.0f} ms".format(
                    **rows[-1]
                )
            )
    return rows


if __name__ == "__main__":
    from command import main

    main("assigners", __doc__)
