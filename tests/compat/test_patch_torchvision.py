"""Patched torchvision detectors train with the losses of the unpatched ones, step by step."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from compat.patched_training import Losses, compare
from torch import Tensor, nn

detection = pytest.importorskip("torchvision.models.detection")
ops = pytest.importorskip("torchvision.ops")

SIDE, CLASSES, CHANNELS = 96, 4, 8
COUNTS = ((3, 1), (2, 0), (4, 6), (1, 2))
NORM = {"min_size": SIDE, "max_size": SIDE, "image_mean": [0.5] * 3, "image_std": [0.3] * 3}


class Backbone(nn.Module):
    """Three maps of strides 8, 16 and 32."""

    out_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        middle = self.middle(fine.relu())
        return OrderedDict([("0", fine), ("1", middle), ("2", self.coarse(middle.relu()))])


def batch(index: int, labels_from: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images and targets of a step, images without objects among them; masks and keypoints included."""
    generator = torch.Generator().manual_seed(100 + index)
    images, targets = [], []
    for count in COUNTS[index % len(COUNTS)]:
        images.append(torch.rand(3, SIDE, SIDE, generator=generator))
        size = 12 + torch.rand(count, 2, generator=generator) * 60
        corner = torch.rand(count, 2, generator=generator) * (SIDE - size)
        boxes = torch.cat((corner, corner + size), 1)
        grid = torch.arange(SIDE)
        inside = [(grid >= boxes[:, k, None]) & (grid < boxes[:, k + 2, None]) for k in (0, 1)]
        target = {
            "boxes": boxes,
            "labels": torch.randint(labels_from, CLASSES, (count,), generator=generator),
            "masks": (inside[1][:, :, None] & inside[0][:, None, :]).to(torch.uint8),
            "keypoints": torch.cat(((boxes[:, None, :2] + boxes[:, None, 2:]) / 2, torch.ones(count, 1, 1)), 2).repeat(1, 2, 1),
            "iscrowd": torch.ones(count, dtype=torch.long),  # a key of the COCO data set, which torchvision does not look at
        }
        targets.append(target)
    return images, targets


def fcos() -> nn.Module:
    anchors = detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    head = detection.fcos.FCOSHead(CHANNELS, 1, CLASSES, num_convs=0)
    return detection.FCOS(Backbone(), CLASSES, anchor_generator=anchors, head=head, **NORM)


def retinanet(loss_type: str = "l1") -> nn.Module:
    sizes = tuple((side, int(side * 1.4)) for side in (16, 32, 64))
    anchors = detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    model = detection.RetinaNet(Backbone(), CLASSES, anchor_generator=anchors, **NORM)
    model.head.regression_head._loss_type = loss_type
    return model


def ssd() -> nn.Module:
    boxes = detection.anchor_utils.DefaultBoxGenerator([[2], [2], [2]], steps=[8, 16, 32], scales=[0.15, 0.3, 0.5, 0.7])
    backbone = Backbone()
    backbone.out_channels = [CHANNELS] * 3
    return detection.ssd.SSD(backbone, boxes, (SIDE, SIDE), CLASSES, image_mean=[0.5] * 3, image_std=[0.3] * 3)


def rcnn(kind: str) -> nn.Module:
    """Faster, Mask or Keypoint R-CNN."""
    levels = ["0", "1", "2"]
    options: dict[str, Any] = {
        "rpn_anchor_generator": detection.rpn.AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3),
        "box_roi_pool": ops.MultiScaleRoIAlign(levels, 3, 2), "box_head": detection.faster_rcnn.TwoMLPHead(CHANNELS * 9, 16),
        "rpn_pre_nms_top_n_train": 100, "rpn_post_nms_top_n_train": 40, "box_batch_size_per_image": 24,
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(16, CLASSES), **NORM,
    }  # fmt: skip
    if kind == "mask":
        options |= {
            "mask_roi_pool": ops.MultiScaleRoIAlign(levels, 4, 2), "mask_head": nn.Conv2d(CHANNELS, 8, 1),
            "mask_predictor": detection.mask_rcnn.MaskRCNNPredictor(8, 8, CLASSES),
        }  # fmt: skip
        return detection.MaskRCNN(Backbone(), **options)
    if kind == "keypoint":
        options |= {
            "keypoint_roi_pool": ops.MultiScaleRoIAlign(levels, 4, 2), "keypoint_head": nn.Conv2d(CHANNELS, 8, 1),
            "keypoint_predictor": detection.keypoint_rcnn.KeypointRCNNPredictor(8, 2),
        }  # fmt: skip
        return detection.KeypointRCNN(Backbone(), **options)
    return detection.FasterRCNN(Backbone(), **options)


def step_with(labels_from: int) -> Any:
    def step(model: nn.Module, index: int) -> Losses:
        losses: Losses = model(*batch(index, labels_from))
        return losses

    return step


def test_fcos_trains_alike() -> None:
    history = compare("torchvision", fcos, step_with(0), 20)
    assert set(history[0]) == {"classification", "bbox_regression", "bbox_ctrness"}


@pytest.mark.parametrize(("loss_type", "steps"), [("l1", 20), ("smooth_l1", 3), ("giou", 5), ("diou", 3), ("ciou", 3)])
def test_retinanet_trains_alike(loss_type: str, steps: int) -> None:
    compare("torchvision", lambda: retinanet(loss_type), step_with(0), steps)


def test_ssd_trains_alike() -> None:
    compare("torchvision", ssd, step_with(1), 20)


@pytest.mark.parametrize(("kind", "steps"), [("faster", 20), ("mask", 20), ("keypoint", 20)])
def test_rcnn_trains_alike(kind: str, steps: int) -> None:
    history = compare("torchvision", lambda: rcnn(kind), step_with(1), steps)
    assert ("loss_mask" in history[0], "loss_keypoint" in history[0]) == (kind == "mask", kind == "keypoint")
