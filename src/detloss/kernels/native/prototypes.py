"""Masks that are linear in prototypes, compared inside the boxes of their objects."""

from __future__ import annotations

import torch
from torch import Tensor

from detloss.kernels.native.arguments import launch, packer, pointer
from detloss.kernels.prototypes import PrototypeMasks

__all__ = ["OPS", "refuses", "run"]

OPS = frozenset({PrototypeMasks.op})


_prototypes = packer(("rows maps masks weight crops first by_rows by_maps", "P"), ("images count height width", "q"))


def refuses(masks: PrototypeMasks) -> str | None:
    """Calls in another dtype than fp32 are not taken."""
    others = {str(x.dtype) for x in (masks.coefficients, masks.prototypes) if x.dtype != torch.float32}
    return f"{others.pop().removeprefix('torch.')} masks" if others else None


def run(masks: PrototypeMasks, need_grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sum (0-dim), and the gradients of coefficients and of prototypes; see :class:`PrototypeMasks`."""
    rows, maps, truth = (x.detach().contiguous() for x in (masks.coefficients, masks.prototypes, masks.masks.float()))
    images, count, height, width = maps.shape
    by_rows, by_maps = (torch.zeros_like(x) if need_grad else None for x in (rows, maps))
    weight, crops, first = masks.weight.float().contiguous(), masks.crops.contiguous(), masks.first_crops()
    places = map(pointer, (rows, maps, truth, weight, crops, first, by_rows, by_maps))
    total, _ = launch("detloss_prototypes", _prototypes(*places, images, count, height, width), 1.0)
    return total, by_rows, by_maps
