"""Means of bins, for decoding what a head predicts."""

from __future__ import annotations

import ctypes

from torch import Tensor

from detloss.kernels.means import BinMeans
from detloss.kernels.native.arguments import TYPES, fresh, launch, pointer

__all__ = ["OPS", "refuses", "run"]

OPS = frozenset({BinMeans.op})


class _Expectation(ctypes.Structure):
    """``struct Expectation`` of kernels.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "out")),
        *((name, ctypes.c_int64) for name in ("images", "stride", "groups", "bins", "inner")),
        ("type", ctypes.c_int32),
    ]


def refuses(means: BinMeans) -> str | None:
    """Every call on the CPU is taken."""
    return None


def run(means: BinMeans) -> Tensor:
    """``[B, G, I]``; see :class:`detloss.kernels.means.BinMeans`."""
    images, groups, bins, inner = means.logits.shape
    x = means.logits
    if x.stride()[1:] != (bins * inner, inner, 1):
        x = x.contiguous()
    out = fresh(images, groups, inner)
    arguments = _Expectation(pointer(x), pointer(out), images, x.stride(0), groups, bins, inner, TYPES[x.dtype])
    launch("detloss_expectation", arguments, 1.0)
    return out
