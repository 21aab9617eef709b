"""YOLOv8Loss and YOLOXLoss for the tests that all criteria must pass."""

from __future__ import annotations

from typing import Any

import torch
from criteria_cases import NUM_CLASSES, Case
from criteria_cases_atss import random_levels
from fcos_cases import STRIDES
from torch import Tensor

from detloss import YOLOv8Loss, YOLOXLoss

BINS = 8  # reg_max


def yolov8_maps(images: int, dtype: torch.dtype) -> tuple[list[Tensor], ...]:
    """Class logits and bins."""
    return random_levels(images, NUM_CLASSES, dtype), random_levels(images, 4 * BINS, dtype)


def yolox_maps(images: int, dtype: torch.dtype) -> tuple[list[Tensor], ...]:
    """Class logits, boxes around their cells and objectness."""
    return random_levels(images, NUM_CLASSES, dtype), random_levels(images, 4, dtype, 0.5), random_levels(images, 1, dtype)


V8: dict[str, dict[str, Any]] = {
    "yolov8": {},
    "yolov8-tood": {
        "assigner": {"type": "TaskAlignedAssigner", "topk": 13, "alpha": 1.0, "iou": "iou", "enlarge_small": False},
        "loss_cls": "QualityFocalLoss",
        "loss_box": "giou",
    },
    "yolov8-weighted-l1": {
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "class_weight": [1, 2, 0.5], "label_smoothing": 0.1},
        "loss_box": "L1Loss",
    },
    "yolov8-fcos-focal": {"assigner": "FCOSAssigner", "loss_cls": "FocalLoss"},
}
X: dict[str, dict[str, Any]] = {
    "yolox": {},
    "yolox-l1": {"use_l1": True, "loss_cls": "VarifocalLoss", "loss_box": "giou"},
    "yolox-mmdet": YOLOXLoss.PRESETS["mmdet"],
}
CASES = [
    Case(
        name,
        lambda _options=options, **more: YOLOv8Loss(NUM_CLASSES, strides=STRIDES, reg_max=BINS, **_options, **more),
        yolov8_maps,
        box_terms=("loss_box", "loss_dfl"),
    )
    for name, options in V8.items()
] + [
    Case(
        name,
        lambda _options=options, **more: YOLOXLoss(NUM_CLASSES, strides=STRIDES, **_options, **more),
        yolox_maps,
        box_terms=("loss_cls", "loss_box", *(("loss_l1",) if options.get("use_l1") else ())),
    )
    for name, options in X.items()
]
