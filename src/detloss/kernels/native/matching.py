"""Matching of priors with objects for assigners."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from detloss.kernels.match_checks import refuses_match as refuses
from detloss.kernels.matches import MATCH_OPS, AlignedMatch, ATSSMatch, Match, MaxIoUMatch, PairCostMatch
from detloss.kernels.native import aligned
from detloss.kernels.native.arguments import fresh, pointer
from detloss.kernels.native.library import library

__all__ = ["OPS", "match", "refuses"]

OPS = MATCH_OPS


class _MaxIoU(ctypes.Structure):
    """``struct MaxIoU`` of matching.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("boxes", "valid", "truth", "present", "index", "quality", "ignore")),
        *((name, ctypes.c_int64) for name in ("images", "priors", "objects")),
        *((name, ctypes.c_int32) for name in ("boxes_per_image", "valid_per_image", "claims", "last_claims")),
        *((name, ctypes.c_float) for name in ("positive", "low", "high", "least")),
    ]


class _ATSS(ctypes.Structure):
    """``struct Atss`` of matching.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("boxes", "valid", "truth", "present", "counts", "owner", "quality")),
        *((name, ctypes.c_int64) for name in ("images", "priors", "objects", "levels", "topk", "memory")),
        ("boxes_per_image", ctypes.c_int32),
        ("margin", ctypes.c_float),
    ]


class _PairCost(ctypes.Structure):
    """``struct PairCost`` of matching.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("boxes", "truth", "units", "usable", "valid", "cost")),
        *((name, ctypes.c_int64) for name in ("images", "objects", "queries")),
        ("hull", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("l1_weight", "iou_weight", "limit")),
    ]


def match(match: Match) -> tuple[Tensor, ...]:
    """What the rule finds; see :mod:`detloss.kernels.matches`."""
    if isinstance(match, AlignedMatch):
        return aligned.run(match)
    if isinstance(match, PairCostMatch):
        return (_pair_cost(match),)
    return _max_iou(match) if isinstance(match, MaxIoUMatch) else _atss(match)


def _found(match: MaxIoUMatch | ATSSMatch) -> tuple[Tensor, Tensor]:
    """Memory for an object and a quality per prior."""
    shape = match.objects.shape[0], match.boxes.shape[-2]
    return fresh(*shape, dtype=torch.long), fresh(*shape)


def _run(name: str, arguments: ctypes.Structure) -> None:
    function: Any = getattr(library(), f"detloss_{name}")
    function(ctypes.byref(arguments), torch.get_num_threads())


def _max_iou(match: MaxIoUMatch) -> tuple[Tensor, Tensor, Tensor]:
    index, quality = _found(match)
    ignore = fresh(*index.shape, dtype=torch.bool)
    boxes, objects, present = (x.contiguous() for x in (match.boxes, match.objects, match.present))
    valid = None if match.valid is None else match.valid.contiguous()
    per_image = int(boxes.ndim == 3 and len(boxes) > 1), int(valid is not None and len(valid) > 1)
    arguments = _MaxIoU(
        *(pointer(x) for x in (boxes, valid, objects, present, index, quality, ignore)),
        *index.shape, objects.shape[1], *per_image, match.claims, match.last_claims,
        match.positive, *match.negative, match.least,
    )  # fmt: skip
    _run("max_iou", arguments)
    return index, quality, ignore


def _atss(match: ATSSMatch) -> tuple[Tensor, Tensor]:
    index, quality = _found(match)
    boxes, objects, present = (x.contiguous() for x in (match.boxes, match.objects, match.present))
    valid = None if match.valid is None else match.valid.contiguous()
    counts = (ctypes.c_int64 * len(match.counts))(*match.counts)
    arguments = _ATSS(
        *(pointer(x) for x in (boxes, valid, objects, present)), ctypes.addressof(counts), pointer(index), pointer(quality),
        *index.shape, objects.shape[1], len(counts), match.topk, match.memory, boxes.ndim == 3, match.margin,
    )  # fmt: skip
    _run("atss", arguments)
    return index, quality


def _pair_cost(match: PairCostMatch) -> Tensor:
    cost = match.cost.contiguous()
    images, objects, queries = cost.shape
    read = (match.boxes, match.objects, match.units, match.usable, match.valid)
    places = [x.contiguous() for x in read]
    arguments = _PairCost(
        *map(pointer, (*places, cost)), images, objects, queries, match.iou == "giou",
        match.l1_weight, match.iou_weight, match.limit,
    )  # fmt: skip
    _run("pair_cost", arguments)
    return cost
