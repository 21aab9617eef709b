"""DETRLoss in the tests that all criteria must pass: softmax, focal and varifocal classes, with all kinds of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from criteria_cases import EXTENT, NUM_CLASSES, Case, Tree
from torch import Tensor

from detloss.criteria.detr import DETRLoss

QUERIES, DENOISING = 12, 4
SIZE = (int(EXTENT), int(EXTENT))


def random_layer(images: int, queries: int, channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Leaf tensors: logits ``[images, queries, channels]`` and boxes (cx, cy, w, h) of 0.1 to 0.6 of the image."""
    logits = torch.randn(images, queries, channels)
    boxes = torch.cat((torch.rand(images, queries, 2) * 0.6 + 0.2, torch.rand(images, queries, 2) * 0.5 + 0.1), dim=-1)
    return logits.to(dtype).requires_grad_(), boxes.to(dtype).requires_grad_()


def random_layers(images: int, channels: int, dtype: torch.dtype = torch.float32, dn: int = DENOISING) -> dict[str, Tree]:
    """Last layer, two auxiliary ones, the encoder with as many queries, and two denoising layers."""
    return {
        "last": random_layer(images, QUERIES, channels, dtype),
        "aux": [random_layer(images, QUERIES, channels, dtype) for _ in range(2)],
        "enc": random_layer(images, QUERIES, channels, dtype),
        "dn": [random_layer(images, dn, channels, dtype) for _ in range(2)],
    }


def call_plain(criterion: Any, layers: dict[str, Tree], targets: Sequence[dict[str, Tensor]]) -> Any:
    """Last and auxiliary layers."""
    return criterion(*layers["last"], targets, layers["aux"], SIZE)


def call_all(criterion: Any, layers: dict[str, Tree], targets: Sequence[dict[str, Tensor]]) -> Any:
    """Also the encoder, and denoising queries: all but one reconstruct the largest objects, which no order changes."""
    images = len(layers["last"][0])
    index = [torch.full((DENOISING,), -1) for _ in range(images)]
    for image, target in enumerate(targets[:images] if isinstance(targets, list) else ()):
        area = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
        if "iscrowd" in target:
            area = torch.where(target["iscrowd"].bool(), -1.0, area)
        largest = area.argsort(descending=True)[: DENOISING - 1]
        index[image] = torch.cat((torch.where(area[largest] < 0, -1, largest), index[image][len(largest) :]))
    given = torch.stack(index) if index else torch.zeros(0, DENOISING, dtype=torch.long)
    return criterion(
        *layers["last"], targets, layers["aux"], SIZE, enc_outputs=layers["enc"], dn_outputs=layers["dn"], dn_gt_index=given
    )


def plain_layers(images: int, channels: int, dtype: torch.dtype) -> dict[str, Tree]:
    layers = random_layers(images, channels, dtype)
    return {"last": layers["last"], "aux": layers["aux"]}


BOX_TERMS = tuple(f"{name}{layer}" for name in ("loss_box", "loss_iou") for layer in ("", "_0", "_1"))
MORE = tuple(f"{name}{layer}" for name in ("loss_box", "loss_iou") for layer in ("_enc", "_dn_0", "_dn_1"))

CASES = [
    Case(
        "detr",
        lambda **more: DETRLoss(NUM_CLASSES, **more),
        lambda images, dtype: plain_layers(images, NUM_CLASSES + 1, dtype),
        call=call_plain,
        box_terms=BOX_TERMS,
    ),
    Case(
        "deformable-detr",
        lambda **more: DETRLoss.preset("deformable_detr", num_classes=NUM_CLASSES, **more),
        lambda images, dtype: plain_layers(images, NUM_CLASSES, dtype),
        call=call_plain,
        box_terms=BOX_TERMS,
    ),
    Case(
        "rtdetr",
        lambda **more: DETRLoss.preset("rtdetr", num_classes=NUM_CLASSES, **{"encoder_class_agnostic": True, **more}),
        lambda images, dtype: random_layers(images, NUM_CLASSES, dtype),
        call=call_all,
        box_terms=(*BOX_TERMS, *MORE),
    ),
    Case(
        "detr-denoising-smooth",
        lambda **more: DETRLoss(NUM_CLASSES, **{"loss_box": "SmoothL1Loss", "aux_weight": 0.5, **more}),
        lambda images, dtype: random_layers(images, NUM_CLASSES + 1, dtype),
        call=call_all,
        box_terms=(*BOX_TERMS, *MORE),
    ),
]
