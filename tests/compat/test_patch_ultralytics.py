"""Patched YOLOv8 and RT-DETR of ultralytics train with the losses of the unpatched ones, step by step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compat.patched_training import Losses, compare, compare_each_step
from torch import nn

tasks = pytest.importorskip("ultralytics.nn.tasks")

SIDE, CLASSES, RATE = 128, 5, 1e-3  # small maps with batch norm, or long steps, turn a rounding error into another training
COUNTS = ((3, 1, 2), (2, 0, 1), (4, 6, 0), (1, 2, 3))
RTDETR = {
    "nc": CLASSES,
    "backbone": [[-1, 1, "Conv", [8, 8, 8]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[[0, 1, 2], 1, "RTDETRDecoder", ["nc", 16, 12, 2, 2, 3, 16, 0.0, None, -1, 20]]],
}  # fmt: skip


def batch(index: int, side: int = SIDE) -> dict[str, Any]:
    """What their loader gives: images, and objects (cx, cy, w, h) relative to them with the number of their image."""
    generator = torch.Generator().manual_seed(index)
    groups = COUNTS[index % len(COUNTS)]
    total = sum(groups)
    size = 0.2 + 0.5 * torch.rand(total, 2, generator=generator)
    centre = size / 2 + torch.rand(total, 2, generator=generator) * (1 - size)
    image = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))
    masks = torch.zeros(len(groups), side // 4, side // 4)
    place = torch.arange(side // 4) / (side // 4)
    for row, (c, s) in enumerate(zip(centre, size, strict=True)):
        inside = [(place - c[k]).abs() < s[k] / 2 for k in (0, 1)]
        number = row - int((image < image[row]).sum()) + 1
        masks[image[row]][inside[1][:, None] & inside[0]] = number
    return {
        "img": torch.rand(len(groups), 3, side, side, generator=generator), "batch_idx": image.float(),
        "cls": torch.randint(CLASSES, (total, 1), generator=generator).float(), "bboxes": torch.cat((centre, size), 1),
        "masks": masks,
    }  # fmt: skip


def model_of(file: str | dict[str, Any], kind: str = "DetectionModel") -> nn.Module:
    model = getattr(tasks, kind)(file, nc=CLASSES, verbose=False)
    model.args, model.nc = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, overlap_mask=True, epochs=10), CLASSES  # as trainers do
    return model


def step(model: Any, index: int) -> Losses:
    losses, items = model.loss(batch(index))
    return dict(zip(items, losses, strict=True))


def test_yolov8_trains_alike() -> None:
    history = compare("ultralytics", lambda: model_of("yolov8n.yaml"), step, 20, RATE)
    assert set(history[0]) == {"box_loss", "cls_loss", "dfl_loss"}


def test_yolov8_from_the_same_weights() -> None:
    compare_each_step("ultralytics", lambda: model_of("yolov8n.yaml"), step, 10, 2 * RATE)


def test_segmentation_trains_alike() -> None:
    history = compare("ultralytics", lambda: model_of("yolov8n-seg.yaml", "SegmentationModel"), step, 20, RATE)
    assert history[0]["seg_loss"] > 0


def test_segmentation_from_the_same_weights() -> None:
    compare_each_step("ultralytics", lambda: model_of("yolov8n-seg.yaml", "SegmentationModel"), step, 6, 2 * RATE)


def rtdetr_step(model: Any, index: int) -> Losses:
    """The total has the gradient; its parts are shown."""
    total, items = model.loss(batch(index, 64))
    return {"total": total, **{name: value.detach() for name, value in items.items()}}


def test_rtdetr_trains_alike() -> None:
    history = compare("ultralytics", lambda: model_of(RTDETR, "RTDETRDetectionModel"), rtdetr_step, 20, RATE)
    assert set(history[0]) == {"total", "giou_loss", "cls_loss", "l1_loss"}
