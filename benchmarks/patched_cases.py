"""The detectors of `patched_models.py`: real models with random weights, a batch, and where their losses are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

COCO_LABELS, COCO_CLASSES = 91, 80
FEWEST, MOST = 7, 20  # objects per image, as in COCO and a little more


@dataclass(frozen=True)
class Size:
    """Images of a batch and their side in pixels."""

    images: int
    side: int


class Training(NamedTuple):
    """A model that is trained.

    Attributes:
        model: in training mode.
        losses: forward pass; the terms by name, those under ``"total"`` or else all of them summed are differentiated.
        entries: (owner, name) of the functions that are all of loss and assignment; none is called by another one.
    """

    model: nn.Module
    losses: Callable[[], dict[str, Tensor]]
    entries: tuple[tuple[Any, str], ...]


class Case(NamedTuple):
    """One detector at one size, and a smaller size for a quick look."""

    framework: str
    build: Callable[[Size], Training]
    size: Size
    quick: Size


def objects(size: Size, classes: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Corners in pixels and labels of every image; sides are log-uniform from 1/20 of the image to 3/4 of it."""
    for _ in range(size.images):
        count = int(torch.randint(FEWEST, MOST + 1, ()))
        sides = size.side / 20 * 15 ** torch.rand(count, 2)
        corner = torch.rand(count, 2) * (size.side - sides)
        yield torch.cat((corner, corner + sides), 1), torch.randint(first, classes, (count,))


def relative(boxes: Tensor, side: int) -> Tensor:
    """(cx, cy, w, h) in units of the image."""
    return torch.cat((boxes[:, :2] + boxes[:, 2:], 2 * (boxes[:, 2:] - boxes[:, :2])), 1) / (2 * side)


def masks_of(boxes: Tensor, side: int, step: int = 1) -> Tensor:
    """``[N, side / step, side / step]`` ellipses within the boxes, 1 inside."""
    place = torch.arange(side // step) * step + step / 2
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x, y = (((place - middle[:, k, None]) / half[:, k, None]).square() for k in (0, 1))
    return (x[:, None] + y[:, :, None] < 1).to(torch.uint8)


def of_torchvision(name: str, entries: Callable[[], tuple[tuple[Any, str], ...]], size: Size) -> Training:
    """A detector of `torchvision.models.detection` with ResNet-50 and FPN."""
    from torchvision.models import detection

    build = getattr(detection, f"{name}_resnet50_fpn")
    sides = {"min_size": size.side, "max_size": size.side}
    model = build(weights=None, weights_backbone=None, num_classes=COCO_LABELS, **sides).train()
    images = [torch.rand(3, size.side, size.side) for _ in range(size.images)]
    targets = [{"boxes": boxes, "labels": labels} for boxes, labels in objects(size, COCO_LABELS, 1)]
    if name == "maskrcnn":
        targets = [{**target, "masks": masks_of(target["boxes"], size.side)} for target in targets]
    return Training(model, lambda: model(images, targets), entries())


def dense_entries(model: str, kind: str) -> tuple[tuple[Any, str], ...]:
    from torchvision.models.detection import fcos, retinanet

    return ((getattr({"fcos": fcos, "retinanet": retinanet}[model], kind), "compute_loss"),)


def two_stage_entries() -> tuple[tuple[Any, str], ...]:
    from torchvision.models.detection import roi_heads, rpn

    return (
        (rpn.RegionProposalNetwork, "assign_targets_to_anchors"),
        (rpn.RegionProposalNetwork, "compute_loss"),
        (roi_heads.RoIHeads, "assign_targets_to_proposals"),
        (roi_heads, "fastrcnn_loss"),
        (roi_heads, "maskrcnn_loss"),
    )


def of_ultralytics(file: str, kind: str, size: Size) -> Training:
    """A detection, segmentation or RT-DETR model of ultralytics."""
    from ultralytics.models.utils.loss import RTDETRDetectionLoss
    from ultralytics.nn import tasks
    from ultralytics.utils.loss import v8DetectionLoss

    model = getattr(tasks, kind)(file, nc=COCO_CLASSES, verbose=False).train()
    # As their trainers do.
    model.args, model.nc = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, overlap_mask=True, epochs=100), COCO_CLASSES
    truth = list(objects(size, COCO_CLASSES))
    numbers = [torch.full((len(boxes),), float(image)) for image, (boxes, _) in enumerate(truth)]
    batch: dict[str, Any] = {
        "img": torch.rand(size.images, 3, size.side, size.side),
        "batch_idx": torch.cat(numbers),
        "cls": torch.cat([labels for _, labels in truth]).float()[:, None],
        "bboxes": torch.cat([relative(boxes, size.side) for boxes, _ in truth]),
        "masks": torch.stack([numbered(masks_of(boxes, size.side, 4)) for boxes, _ in truth]),
    }

    def losses() -> dict[str, Tensor]:
        total, items = model.loss(batch)
        return {"total": total.sum(), **{name: value.detach() for name, value in items.items()}}

    return Training(model, losses, ((RTDETRDetectionLoss, "forward"), (v8DetectionLoss, "__call__")))


def numbered(masks: Tensor) -> Tensor:
    """One map with the number of the last object at every place, from 1; 0 for none."""
    return (masks * torch.arange(1, len(masks) + 1)[:, None, None]).amax(0).float()


def of_transformers(model_type: str, name: str, options: Mapping[str, Any], size: Size) -> Training:
    """A detector of transformers with random weights, by its configuration."""
    import transformers
    from transformers.loss import loss_utils

    config = transformers.AutoConfig.for_model(model_type, num_labels=COCO_CLASSES, **options)
    model = getattr(transformers, f"{name}ForObjectDetection")(config).train()
    pixels = torch.rand(size.images, 3, size.side, size.side)
    labels = [{"boxes": relative(boxes, size.side), "class_labels": classes} for boxes, classes in objects(size, COCO_CLASSES)]

    def losses() -> dict[str, Tensor]:
        found = model(pixel_values=pixels, labels=labels)
        terms = {name: value.detach() for name, value in found.loss_dict.items() if isinstance(value, Tensor)}
        return {"total": found.loss, **terms}

    return Training(model, losses, ((loss_utils.LOSS_MAPPING, model.loss_type),))


DETR = {"use_timm_backbone": False, "use_pretrained_backbone": False, "auxiliary_loss": True}
FCOS, RETINANET = partial(dense_entries, "fcos", "FCOS"), partial(dense_entries, "retinanet", "RetinaNet")

CASES: dict[str, Case] = {
    "torchvision FCOS": Case("torchvision", partial(of_torchvision, "fcos", FCOS), Size(4, 512), Size(2, 128)),
    "torchvision RetinaNet": Case("torchvision", partial(of_torchvision, "retinanet", RETINANET), Size(4, 512), Size(2, 128)),
    "torchvision Faster R-CNN": Case(
        "torchvision", partial(of_torchvision, "fasterrcnn", two_stage_entries), Size(2, 512), Size(1, 128)
    ),
    "torchvision Mask R-CNN": Case(
        "torchvision", partial(of_torchvision, "maskrcnn", two_stage_entries), Size(2, 512), Size(1, 128)
    ),
    "ultralytics YOLOv8n": Case(
        "ultralytics", partial(of_ultralytics, "yolov8n.yaml", "DetectionModel"), Size(16, 320), Size(4, 128)
    ),
    "ultralytics YOLOv8n-seg": Case(
        "ultralytics", partial(of_ultralytics, "yolov8n-seg.yaml", "SegmentationModel"), Size(16, 320), Size(4, 128)
    ),
    "ultralytics RT-DETR-l": Case(
        "ultralytics", partial(of_ultralytics, "rtdetr-l.yaml", "RTDETRDetectionModel"), Size(4, 320), Size(2, 128)
    ),
    "transformers DETR": Case("transformers", partial(of_transformers, "detr", "Detr", DETR), Size(2, 512), Size(2, 128)),
    "transformers RT-DETR": Case("transformers", partial(of_transformers, "rt_detr", "RTDetr", {}), Size(2, 320), Size(2, 128)),
    "transformers D-FINE": Case("transformers", partial(of_transformers, "d_fine", "DFine", {}), Size(2, 320), Size(2, 128)),
}
