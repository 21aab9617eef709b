"""CenterNetLoss in the tests that all criteria must pass: one map of stride 4, and two levels."""

from __future__ import annotations

import torch
from criteria_cases import EXTENT, NUM_CLASSES, Case
from torch import Tensor

from detloss.criteria.centernet import CenterNetLoss


def random_centre_maps(
    images: int, strides: tuple[int, ...] = (4,), dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Leaf tensors per level: class logits, sizes in (0, 8) cells and offsets in (0, 1)."""
    sides = [int(EXTENT) // stride for stride in strides]
    heat = [torch.randn(images, NUM_CLASSES, n, n).to(dtype).requires_grad_() for n in sides]
    size = [(torch.rand(images, 2, n, n) * 8).to(dtype).requires_grad_() for n in sides]
    offset = [torch.rand(images, 2, n, n).to(dtype).requires_grad_() for n in sides]
    return heat, size, offset


# Presets with one normaliser over ranks, and the smallest owner: with the last one the order of objects would matter.
VARIANTS = {
    "centernet": {},
    "centernet-official": {**CenterNetLoss.PRESETS["centernet"], "normalizer": "sync"},
    "centernet-mmdet-smooth": {
        **CenterNetLoss.PRESETS["mmdet"], "cell_owner": "smallest", "normalizer": "sync", "loss_size": "SmoothL1Loss",
    },
    "centernet-levels": {"strides": (4, 8), "loss_cls": "QualityFocalLoss", "size_unit": "pixel"},
}  # fmt: skip

CASES = [
    Case(
        name,
        lambda _options=options, **more: CenterNetLoss(NUM_CLASSES, **{**_options, **more}),
        lambda images, dtype, _options=options: random_centre_maps(images, _options.get("strides", (4,)), dtype),
        box_terms=("loss_size", "loss_offset"),
    )
    for name, options in VARIANTS.items()
]
