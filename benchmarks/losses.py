"""Losses against every installed peer: forward and backward, time in interleaved rounds and peak memory.

    python benchmarks/losses.py [--only focal giou] [--rounds 7] [--threads 2] [--small] [--json losses.json]

Values and gradients are compared first. Peak memory is the high-water mark of a process of its own, less what the process
held before the step, so it includes the gradient. The floor is the time to move the bytes that any implementation must move
(read the inputs, write the gradient into fresh memory) as a copy into fresh memory does it, measured in the same rounds.
``reference`` is the readable formula of detloss without kernels, ``plain`` a formula in the fewest operations of PyTorch.
"""

from __future__ import annotations

import box_cases
import class_cases
import mask_cases
from measure import Entry

__all__ = ["entries"]


def entries(size: str) -> list[Entry]:
    """Every loss that has a kernel or a peer, at a size, ``"tiny"``, ``"quick"`` or ``"full"``."""
    return [*class_cases.entries(size), *box_cases.entries(size), *mask_cases.entries(size)]


if __name__ == "__main__":
    from command import main

    main("losses", __doc__)
