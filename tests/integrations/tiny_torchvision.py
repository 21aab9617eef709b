"""torchvision's detectors in small, by name, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from compat.test_patch_torchvision import CLASSES, SIDE, batch, fcos, rcnn, retinanet
from torch import Tensor, nn

import detloss

__all__ = ["CLASSES", "MODELS", "SIDE", "STRIDES", "Batch", "light_retinanet", "objects", "train"]

STRIDES = (8, 16, 32)
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def light_retinanet() -> nn.Module:
    """One anchor per cell and towers of no depth: the tests are about what comes out of it."""
    from torchvision.models.detection import anchor_utils

    model: Any = retinanet()
    model.anchor_generator = anchor_utils.AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    for head in (model.head.classification_head, model.head.regression_head):
        head.conv = nn.Sequential()
    model.head.classification_head.cls_logits = nn.Conv2d(8, CLASSES, 3, padding=1)
    model.head.regression_head.bbox_reg = nn.Conv2d(8, 4, 3, padding=1)
    found: nn.Module = model
    return found


# name → how the model is made, the label of its first class, its criterion
MODELS: dict[str, tuple[Callable[[], nn.Module], int, Any]] = {
    "fcos-ciou": (fcos, 0, lambda: detloss.FCOSLoss(CLASSES, strides=STRIDES, loss_box="CIoULoss")),
    "fcos-atss-assigner": (fcos, 0, lambda: detloss.FCOSLoss(CLASSES, strides=STRIDES, assigner="atss")),
    "fcos-atss": (fcos, 0, lambda: "ATSSLoss"),
    "fcos-gfl": (fcos, 0, lambda: detloss.GFLLoss(CLASSES, STRIDES, reg_max=7)),
    "retinanet-giou": (light_retinanet, 0, lambda: {"type": "RetinaNetLoss", "loss_box": "GIoULoss"}),
    "retinanet-atss": (light_retinanet, 0, lambda: {"type": "RetinaNetLoss", "assigner": "atss"}),
    "faster": (lambda: rcnn("faster"), 1, lambda: {"type": "MaskRCNNLoss", "roi": {"loss_box": "GIoULoss"}}),
    "mask": (lambda: rcnn("mask"), 1, lambda: "MaskRCNNLoss"),
}


def objects(index: int = 0, labels_from: int = 0, counts: Sequence[int] | None = None) -> Batch:
    """A batch without crowds; with ``counts`` of (0, 0), one without objects."""
    images, targets = batch(index, labels_from)
    for target in targets:
        del target["iscrowd"]
    if counts is not None:
        targets = [{key: value[:n] for key, value in t.items()} for t, n in zip(targets, counts, strict=True)]
    return images, targets


def train(model: nn.Module, data: Batch, steps: int, rate: float = 0.01) -> list[float]:
    """The loss of every step on one batch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(0)  # the same sample of anchors and proposals
        total = sum(model(*data).values())
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    return history
