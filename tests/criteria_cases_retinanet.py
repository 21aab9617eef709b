"""RetinaNetLoss for the tests that all criteria must pass."""

from __future__ import annotations

from typing import Any

import torch
from criteria_cases import NUM_CLASSES, Case
from criteria_cases_atss import random_levels
from fcos_cases import STRIDES
from torch import Tensor

from detloss import RetinaNetLoss

PER_CELL = 4  # two sizes, two ratios


def retinanet_maps(images: int, dtype: torch.dtype) -> tuple[list[Tensor], ...]:
    """Class logits and deltas of the anchors."""
    scores = random_levels(images, PER_CELL * NUM_CLASSES, dtype)
    return scores, random_levels(images, PER_CELL * 4, dtype, scale=0.3)


OPTIONS: dict[str, dict[str, Any]] = {
    "retinanet": {},
    "retinanet-of-image": {"normalize_by": "positives_of_image", "loss_box": "SmoothL1Loss"},
    "retinanet-qfl-giou": {"loss_cls": "QualityFocalLoss", "loss_box": "giou", "normalize_by": "positives_at_least_images"},
}
SIZES = {"anchor_sizes": [[2 * s, 3 * s] for s in STRIDES], "anchor_ratios": (0.5, 1.5)}
CASES = [
    Case(
        name,
        lambda _options=options, **more: RetinaNetLoss(NUM_CLASSES, STRIDES, **SIZES, **_options, **more),
        retinanet_maps,
        local_differs="of-image" not in name,  # every rank has as many images
    )
    for name, options in OPTIONS.items()
]
