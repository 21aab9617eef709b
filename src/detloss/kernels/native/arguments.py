"""Tensors in the form that the library reads."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable

import torch
from torch import Tensor

from detloss.kernels.contract import Call
from detloss.kernels.layout import ELEMENT, ONE, POSITION, Layout, in_order, spread
from detloss.kernels.native.library import library

__all__ = [
    "TYPES",
    "as_fp32",
    "as_int64",
    "as_target",
    "fresh",
    "fresh_like",
    "launch",
    "packer",
    "per_row",
    "pointer",
    "readable",
    "spread_out",
]

# With DETLOSS_LARGE_PAGES=1, gradients from this size on are written to large pages where the system grants them: a quarter
# faster, but several times slower in virtual machines that give free large pages back to their host between two steps.
LARGE = 8 << 20
_large_pages = os.environ.get("DETLOSS_LARGE_PAGES", "0").strip() == "1"

CPU = torch.device("cpu")
_NUMBER = torch.zeros((), dtype=torch.float32, device=CPU)
FLT_MAX = torch.finfo(torch.float32).max
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def packer(*fields: tuple[str, str]) -> Callable[..., bytes]:
    """What makes the bytes of a structure of kernels.h from its numbers in order: five times as fast as ctypes.Structure.

    Args:
        fields: names, separated by spaces, and the letter of :mod:`struct` that they share, in the order of the structure.
    """
    pack = struct.Struct("".join(letter * len(names.split()) for names, letter in fields)).pack

    def packed(*numbers: float) -> bytes:
        try:
            return pack(*numbers)
        except OverflowError:  # beyond the largest fp32: an infinity, as in arithmetic
            return pack(*(math.copysign(math.inf, x) if isinstance(x, float) and abs(x) > FLT_MAX else x for x in numbers))

    return packed


def pointer(x: Tensor | None) -> int:
    """Address of the first element; 0 where there is none."""
    return 0 if x is None else x.data_ptr()


def as_int64(number: float) -> int:
    """A number that class indices are compared with, as the nearest one that they can have."""
    return max(-(2**63), min(int(number), 2**63 - 1))


def as_fp32(x: Tensor | None) -> Tensor | None:
    """Contiguous fp32."""
    return None if x is None else x.to(torch.float32).contiguous()


def per_row(values: Tensor, shape: torch.Size) -> Tensor | None:
    """Weights over the leading dimensions of the loss as one number per row; ``shape`` is that of the predictions."""
    if values.ndim == len(shape) - 1:
        return as_fp32(values)
    return as_fp32(values.reshape(*values.shape, *(1,) * (len(shape) - 1 - values.ndim)).expand(shape[:-1]))


def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory on the CPU, not yet written, whatever the default dtype and device are."""
    return torch.empty(shape, dtype=dtype, device=CPU)


def fresh_like(pred: Tensor) -> Tensor:
    """Memory for a gradient, not yet written."""
    grad = torch.empty_like(pred)
    if _large_pages and grad.nbytes >= LARGE:
        library().detloss_large_pages(grad.data_ptr(), grad.nbytes)
    return grad


def launch(kernel: str, arguments: bytes, scale: float) -> tuple[Tensor, bool]:
    """Run a kernel on a packed structure; its sum times ``scale`` (0-dim fp32), and whether a target is outside its range."""
    total = torch.empty_like(_NUMBER)  # written by the kernel; the quickest way to a tensor
    bad = getattr(library(), kernel)(arguments, torch.get_num_threads(), scale, total.data_ptr())
    return total, bool(bad)


def readable(x: Tensor) -> Tensor:
    """``x`` in a dtype that the library reads."""
    return x if x.dtype in TYPES else x.to(torch.float32)


def as_target(target: Tensor | None, layout: Layout) -> Tensor | None:
    """A dense target in the layout of the predictions."""
    return None if target is None else in_order(readable(target), layout)


def spread_out(values: Tensor | None, call: Call, layout: Layout, by_class: bool) -> tuple[Tensor | None, int]:
    """:func:`detloss.kernels.layout.spread`, with one number for all written out per position or element."""
    found, kind = spread(values, call, layout, by_class)
    if found is None or kind != ONE:
        return found, kind
    positions = layout.outer * layout.inner
    if by_class:
        return found.expand(positions).contiguous(), POSITION
    return found.expand(positions * layout.classes).contiguous(), ELEMENT
