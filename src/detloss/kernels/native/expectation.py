"""Means of bins, for decoding what a head predicts."""

from __future__ import annotations

from torch import Tensor

from detloss.kernels.means import BinMeans
from detloss.kernels.native.arguments import TYPES, fresh, launch, packer, pointer

__all__ = ["OPS", "refuses", "run"]

OPS = frozenset({BinMeans.op})


_expectation = packer(("x out", "P"), ("images stride groups bins inner", "q"), ("type", "i"))


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
    arguments = _expectation(pointer(x), pointer(out), images, x.stride(0), groups, bins, inner, TYPES[x.dtype])
    launch("detloss_expectation", arguments, 1.0)
    return out
