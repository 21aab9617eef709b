"""ATSSLoss and GFLLoss for the tests that all criteria must pass."""

from __future__ import annotations

from typing import Any

import torch
from criteria_cases import NUM_CLASSES, Case
from fcos_cases import SIZES, STRIDES
from torch import Tensor

from detloss import ATSSLoss, GFLLoss

BINS = 8  # reg_max


def random_levels(images: int, channels: int, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """One map per level with normal numbers."""
    return [(torch.randn(images, channels, h, w) * scale).to(dtype).requires_grad_() for h, w in SIZES]


def atss_maps(images: int, dtype: torch.dtype) -> tuple[list[Tensor], ...]:
    """Class logits, box codes and centerness logits."""
    codes = random_levels(images, 4, dtype)
    return random_levels(images, NUM_CLASSES, dtype), codes, random_levels(images, 1, dtype)


def gfl_maps(images: int, dtype: torch.dtype) -> tuple[list[Tensor], ...]:
    """Class logits and bins."""
    return random_levels(images, NUM_CLASSES, dtype), random_levels(images, 4 * (BINS + 1), dtype)


ATSS: dict[str, dict[str, Any]] = {
    "atss": {},
    "atss-distance-ciou": {"box_coding": "distance", "anchor_offset": 0.5, "loss_box": "ciou"},
    "atss-vfl-l1": {"loss_cls": "VarifocalLoss", "loss_box": "L1Loss"},
}
GFL: dict[str, dict[str, Any]] = {
    "gfl": {},
    "gfl-vfl-l1": {"loss_cls": "VarifocalLoss", "loss_box": "SmoothL1Loss", "anchor_offset": 0.5},
    "gfl-fcos": {"assigner": {"type": "FCOSAssigner"}, "loss_cls": "FocalLoss"},
}
CASES = [
    Case(
        name,
        lambda _options=options, **more: ATSSLoss(NUM_CLASSES, STRIDES, **_options, **more),
        atss_maps,
        box_terms=("loss_box", "loss_centerness"),
    )
    for name, options in ATSS.items()
] + [
    Case(
        name,
        lambda _options=options, **more: GFLLoss(NUM_CLASSES, STRIDES, reg_max=BINS, **_options, **more),
        gfl_maps,
        box_terms=("loss_box", "loss_dfl"),
    )
    for name, options in GFL.items()
]
