"""Task alignment on CUDA: pairs, choice and claims by kernels, roots, powers and angles by torch, whose rounding decides.

How many pairs of an object and a prior inside it there are depends on the values, and the host does not wait for them: columns
are dense, and objects are dealt with in parts whose columns fit the memory that is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from detloss.kernels.match_checks import refuses_match as refuses
from detloss.kernels.matches import AlignedMatch
from detloss.kernels.triton_backend.aligned_claims import choose_best, claim_priors, settle_priors, write_quality
from detloss.kernels.triton_backend.aligned_pairs import complete_overlaps, write_pairs
from detloss.kernels.triton_backend.exact import EXACT

__all__ = ["OPS", "match", "refuses"]

OPS = frozenset({AlignedMatch.op})
LANES = 64  # a multiple of the numbers of a vector register: on the CPU ATen rounds some functions otherwise in what is left over
IN_CACHE = 2**15  # numbers that torch deals with at a time on the CPU, where it gives each thread a range of more of them
PAIR_BLOCK, CHOICE_BLOCK, FLAT_BLOCK = 256, 1024, 1024
CLAIM_ROWS, CLAIM_BLOCK = 16, 32


class _State(NamedTuple):
    """What is known of all N = B · P priors between two parts; see :func:`claim_priors`."""

    whole: Tensor
    real: Tensor


def match(match: AlignedMatch) -> tuple[Tensor, Tensor]:
    """Object and quality of every prior; see :class:`detloss.kernels.matches.AlignedMatch`.

    An object whose class has no logit, which is an error elsewhere, gets nothing: the host does not see it.
    """
    images, priors, _ = match.scores.shape
    rows, device = len(match.region), match.boxes.device
    if rows == 0:
        index = torch.full((images, priors), -1, dtype=torch.long, device=device)
        return index, torch.zeros((images, priors), dtype=torch.float32, device=device)
    given = [x.contiguous() for x in (match.region, match.objects, match.labels, match.xy, match.valid, match.boxes)]
    count = images * priors
    state = _State(
        torch.empty((count, 3), dtype=torch.int32, device=device), torch.empty((count, 4), dtype=torch.float32, device=device)
    )
    for first, last, columns, bar in _parts(match):
        _part(match, given, first, last, columns, bar, state)
    return _settled(match, state)


def _parts(match: AlignedMatch) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(first, last, columns, bars) of runs of objects, each as many as the memory holds, or a single one."""
    rows, priors = len(match.region), match.boxes.shape[1]
    width, padded = 7 if match.iou == "ciou" else 3, priors + -priors % LANES
    step = min(rows, max(1, match.memory // (width * 4 * padded)))
    memory = torch.empty(width * step * padded, dtype=torch.float32, device=match.boxes.device)
    bar = torch.empty(step, dtype=torch.long, device=match.boxes.device)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        yield first, last, memory[: width * (last - first) * padded].view(width, -1), bar


def _part(
    match: AlignedMatch, given: list[Tensor], first: int, last: int, columns: Tensor, bar: Tensor, state: _State
) -> None:  # fmt: skip
    """Takes the objects ``first`` … ``last`` − 1 into account; ``columns [3 or 7, their pairs]``."""
    (images, priors, classes), size, objects = match.scores.shape, columns.shape[1], last - first
    per_image, padded, complete = len(match.region) // images, size // objects, match.iou == "ciou"
    write_pairs[(objects * triton.cdiv(padded, PAIR_BLOCK),)](
        columns, *given, match.scores, first, per_image, priors, 2 * priors if match.xy.ndim == 3 else 0, classes,
        *match.scores.stride(), padded, size, COMPLETE=complete, BLOCK=PAIR_BLOCK, **EXACT,
    )  # fmt: skip
    blocks = columns.split(IN_CACHE if columns.device.type == "cpu" else size, dim=1)
    for block in blocks:
        block[0].sigmoid_().pow_(match.alpha)
        if complete:
            torch.atan2(block[3], block[4], out=block[3])
            torch.atan2(block[5], block[6], out=block[5])
    if complete:
        complete_overlaps[(triton.cdiv(size, FLAT_BLOCK),)](columns, size, BLOCK=FLAT_BLOCK, **EXACT)
    for block in blocks:
        torch.pow(block[1], match.beta, out=block[2])
    choose_best[(objects,)](
        columns, bar, padded, size, match.topk, PLACES=triton.next_power_of_2(match.topk), BLOCK=CHOICE_BLOCK, **EXACT
    )
    touched = (last - 1) // per_image - first // per_image + 1
    claim_priors[(touched * triton.cdiv(priors, CLAIM_BLOCK),)](
        columns, bar, *state, first, last, per_image, priors, padded, size, ROWS=CLAIM_ROWS, BLOCK=CLAIM_BLOCK, **EXACT,
    )  # fmt: skip


def _settled(match: AlignedMatch, state: _State) -> tuple[Tensor, Tensor]:
    """Index and quality ``[B, P]`` once all objects were taken into account."""
    images, priors, _ = match.scores.shape
    rows, device = len(match.region), match.boxes.device
    index = torch.empty((images, priors), dtype=torch.long, device=device)
    quality = torch.empty((images, priors), dtype=torch.float32, device=device)
    largest = torch.zeros((rows, 2), dtype=torch.int32, device=device)
    sizes, grid = (rows // images, priors, images * priors), (triton.cdiv(images * priors, FLAT_BLOCK),)
    settle_priors[grid](*state, largest, index, *sizes, BLOCK=FLAT_BLOCK, **EXACT)
    write_quality[grid](index, state.real, largest, quality, *sizes, match.eps, BLOCK=FLAT_BLOCK, **EXACT)
    return index, quality
