"""Task alignment: pairs, choice and claims are computed here, roots, powers and angles by torch, whose rounding decides."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from detloss.kernels.matches import AlignedMatch
from detloss.kernels.native.arguments import TYPES, fresh, pointer
from detloss.kernels.native.library import library

__all__ = ["run"]

PAIR_BYTES = 40  # of a pair: its columns, its prior, and whether it is chosen
TILE, TILE_BYTES, STATE_BYTES = 64, 528, 28  # ANCHORS, PriorTile and PriorState of matching.h
IN_CACHE = 2**15  # numbers that torch deals with at a time
LANES = 64  # a multiple of the numbers of a vector register: ATen rounds some functions otherwise in what is left over

_POINTERS = ("xy", "valid", "region", "truth", "labels", "scores", "boxes", "tiles", "state", "count", "position", "columns",
             "power", "chosen", "index", "quality")  # fmt: skip


class _Aligned(ctypes.Structure):
    """``struct Aligned`` of matching.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in ("images", "priors", "objects", "classes", "topk", "tile_count")),
        ("score_stride", ctypes.c_int64 * 3),
        *((name, ctypes.c_int64) for name in ("pairs", "first_row", "last_row")),
        *((name, ctypes.c_int32) for name in ("xy_per_image", "score_type", "complete")),
        ("eps", ctypes.c_float),
    ]


def run(match: AlignedMatch) -> tuple[Tensor, Tensor]:
    """Object and quality of every prior; see :class:`detloss.kernels.matches.AlignedMatch`."""
    images, priors, classes = match.scores.shape
    rows, tiles = len(match.region), -(-priors // TILE)
    index, quality = fresh(images, priors, dtype=torch.long), fresh(images, priors)
    tensors = [x.contiguous() for x in (match.xy, match.valid, match.region, match.objects, match.labels)]
    boxes = match.boxes.contiguous()
    points = fresh((images if match.xy.ndim == 3 else 1) * tiles * TILE_BYTES, dtype=torch.uint8)
    state = fresh(images * priors * STATE_BYTES, dtype=torch.uint8)
    count = fresh(rows, dtype=torch.long)
    a = _Aligned(
        *map(pointer, (*tensors, match.scores, boxes, points, state, count)), None, None, None, None, pointer(index),
        pointer(quality), images, priors, rows // images, classes, match.topk, tiles,
        (ctypes.c_int64 * 3)(*match.scores.stride()), 0, 0, 0, match.xy.ndim == 3, TYPES[match.scores.dtype],
        match.iou == "ciou", match.eps,
    )  # fmt: skip
    threads = torch.get_num_threads()
    library().detloss_aligned_count(ctypes.byref(a), threads)
    _check_labels(match.labels, count, classes)
    for first, last, pairs in _parts(count.tolist(), match.memory // PAIR_BYTES):
        a.first_row, a.last_row = first, last
        _part(a, match, pairs, threads)
    library().detloss_aligned_settle(ctypes.byref(a), threads)
    return index, quality


def _check_labels(labels: Tensor, count: Tensor, classes: int) -> None:
    """``IndexError`` when an object with pairs has a class whose logit there is none of."""
    wrong = ((labels < -classes) | (labels >= classes)) & (count > 0)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise IndexError(f"TaskAlignedAssigner: labels must be in 0…{classes - 1}; got {int(labels[row])}")


def _parts(counts: list[int], limit: int) -> Iterator[tuple[int, int, int]]:
    """(first, last, pairs) of runs of objects, each with at most ``limit`` pairs or with a single object."""
    first, total = 0, 0
    for row, count in enumerate(counts):
        if total and total + count > limit:
            yield first, row, total
            first, total = row, 0
        total += count
    if total:
        yield first, len(counts), total


def _part(a: _Aligned, match: AlignedMatch, pairs: int, threads: int) -> None:
    """Take the pairs of the objects ``first_row`` … ``last_row`` into account."""
    a.pairs = pairs + -pairs % LANES
    columns = fresh(7 if a.complete else 3, a.pairs)
    columns[:, pairs:] = 0
    position, chosen = fresh(pairs, dtype=torch.int32), fresh(pairs, dtype=torch.uint8)
    score, overlap, power = columns[:3]
    a.columns, a.power, a.position, a.chosen = map(pointer, (columns, power, position, chosen))
    library().detloss_aligned_pairs(ctypes.byref(a), threads)
    blocks = [slice(start, start + IN_CACHE) for start in range(0, a.pairs, IN_CACHE)]
    for block in blocks:
        score[block].sigmoid_().pow_(match.alpha)
    if a.complete:
        for block in blocks:
            for wide, high in (columns[3:5], columns[5:7]):
                torch.atan2(wide[block], high[block], out=wide[block])
        library().detloss_aligned_overlap(ctypes.byref(a), threads)
    for block in blocks:
        torch.pow(overlap[block], match.beta, out=power[block])
    library().detloss_aligned_claim(ctypes.byref(a), threads)
