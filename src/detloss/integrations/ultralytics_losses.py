"""Criteria in the form in which ultralytics' models call theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detloss.compat.patches.ultralytics_detr import objects_of_queries, rtdetr_targets
from detloss.criteria.base import Criterion
from detloss.criteria.detr import DETRLoss
from detloss.criteria.levels import map_sizes
from detloss.criteria.yolov8 import YOLOv8Loss
from detloss.geometry.boxes import to_xyxy
from detloss.integrations.attach import Kinds, agree, on_device_of
from detloss.integrations.meter import detached
from detloss.types import LossDict, Target

__all__ = ["FITS", "DETRCriterion", "YOLOCriterion", "objects_by_image"]

TERMS = {"box_loss": "loss_box", "cls_loss": "loss_cls", "dfl_loss": "loss_dfl"}
DETR_TERMS = {"class": "loss_cls", "bbox": "loss_box", "giou": "loss_iou"}
GAINS = {"box": "box_weight", "cls": "cls_weight", "dfl": "dfl_weight"}


class YOLOCriterion:
    """``loss, items = criterion(preds, batch)`` as ``v8DetectionLoss`` gives them.

    ``loss [3]`` holds box, class and distribution loss times the number of images; ``items`` are the same, not multiplied,
    without gradient, by their names.

    Attributes:
        criterion: the YOLOv8Loss.
        last_losses: its losses of the last call, without their graph.
    """

    loss_names = tuple(TERMS)

    def __init__(self, criterion: YOLOv8Loss) -> None:
        self.criterion = criterion
        self.last_losses: LossDict | None = None

    def __call__(self, preds: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        found = preds[1] if isinstance(preds, tuple) else preds
        criterion: Any = on_device_of(self.criterion, found["boxes"])
        scores, sides = criterion.split_outputs(found)
        height, width = (length * float(criterion.strides[0]) for length in map_sizes(found["feats"])[0])
        targets = objects_by_image(batch, len(scores[0]), (height, width), sides[0].device)
        losses: LossDict = criterion(scores, sides, targets)
        self.last_losses = detached(losses)
        images = len(targets)
        terms = torch.stack([losses[name] for name in TERMS.values()])
        times, each = (terms, terms / images) if criterion.times_batch else (terms * images, terms)
        return times, dict(zip(TERMS, each.detach(), strict=True))


class DETRCriterion:
    """``losses = criterion(preds, batch, dn_bboxes=…, dn_scores=…, dn_meta=…)`` as ``RTDETRDetectionLoss`` gives them.

    Attributes:
        criterion: the DETRLoss.
        last_losses: its losses of the last call, without their graph.
    """

    def __init__(self, criterion: DETRLoss) -> None:
        self.criterion = criterion
        self.last_losses: LossDict | None = None

    def __call__(self, preds: tuple[Tensor, Tensor], batch: Mapping[str, Any], **denoising: Any) -> dict[str, Tensor]:
        losses = rtdetr_losses(on_device_of(self.criterion, preds[0]), preds, batch, **denoising)
        self.last_losses = detached(losses)
        return in_their_words(losses, denoising.get("dn_meta") is not None)


def rtdetr_losses(
    criterion: DETRLoss,
    preds: tuple[Tensor, Tensor],
    batch: Mapping[str, Any],
    dn_bboxes: Tensor | None = None,
    dn_scores: Tensor | None = None,
    dn_meta: Mapping[str, Any] | None = None,
) -> LossDict:
    """The criterion of all decoder layers ``preds`` (boxes ``[L, B, Q, 4]``, scores ``[L, B, Q, C]``) and denoising layers."""
    boxes, scores = preds
    layers = list(zip(scores, boxes, strict=True))
    denoising: dict[str, Any] = {}
    if dn_meta is not None and dn_scores is not None and dn_bboxes is not None:
        index = objects_of_queries(dn_meta, batch["gt_groups"], dn_scores)
        denoising = {"dn_outputs": list(zip(dn_scores, dn_bboxes, strict=True)), "dn_gt_index": index}
    losses: LossDict = criterion(*layers[-1], rtdetr_targets(batch), layers[:-1], **denoising)
    return losses


def in_their_words(losses: LossDict, denoising: bool) -> dict[str, Tensor]:
    """Terms by their names: last layer, sum of the others, and the same of the denoising layers."""
    found: dict[str, Tensor] = {}
    nothing = next(iter(losses.values())).detach() * 0
    last = str(sum(key.startswith("loss_cls_dn_") for key in losses) - 1)
    for kind in ("", "_dn"):
        for layer in ("", "_aux"):
            for theirs, name in DETR_TERMS.items():
                keys = [key for key in losses if key.startswith(name) and ("_dn_" in key) == bool(kind)]
                plain = name if not kind else f"{name}_dn_{last}"
                own = [key for key in keys if (key == plain) == (not layer)]
                terms = [losses[key] for key in own] if denoising or not kind else []
                found[f"loss_{theirs}{layer}{kind}"] = torch.stack(terms).sum() if terms else nothing
    return found


def objects_by_image(batch: Mapping[str, Any], images: int, side: tuple[float, float], device: torch.device) -> list[Target]:
    """The objects of a batch of an ultralytics loader, image by image. The host waits once for their numbers.

    Args:
        batch: ``batch_idx [N]``, image of each object; ``cls``, and ``bboxes`` (cx, cy, w, h) in units of the image.
        images: number of images.
        side: height and width of the images in pixels.
        device: where the targets are to be.
    """
    image = batch["batch_idx"].reshape(-1).long()
    order = image.argsort(stable=True)
    counts = torch.bincount(image, minlength=images).tolist()
    if len(counts) != images:
        raise ValueError(f"batch_idx must be below the number of images, {images}; got {len(counts) - 1}")
    height, width = side
    boxes = batch["bboxes"].reshape(-1, 4)[order].to(device).float()
    boxes = to_xyxy(boxes * boxes.new_tensor([width, height, width, height]), "cxcywh")
    labels = batch["cls"].reshape(-1)[order].to(device).long()
    parts = zip(boxes.split(counts), labels.split(counts), strict=True)
    return [{"boxes": own, "labels": classes} for own, classes in parts]


class Fit(NamedTuple):
    """A kind of model: whether a model is of it and can be served, the criteria that its outputs fit, and their form for it."""

    takes: Callable[[Any], bool]
    check_model: Callable[[Any, str], None]
    kinds: Callable[[Any], Kinds]
    check: Callable[[Any, Criterion, str, bool], None]
    made: Callable[[Any], Any]


def _is_yolo(model: Any) -> bool:
    from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel

    # Segmentation, pose and the rest derive from it, with losses of their own besides those of the boxes.
    return isinstance(model, DetectionModel) and not _is_rtdetr(model) and _inherits(model, DetectionModel, RTDETRDetectionModel)


def _inherits(model: Any, *owners: type) -> bool:
    """Whether the model makes its criterion as one of ``owners`` does."""
    return any(getattr(type(model), "init_criterion", None) is vars(owner).get("init_criterion") for owner in owners)


def _is_rtdetr(model: Any) -> bool:
    from ultralytics.nn.tasks import RTDETRDetectionModel

    return isinstance(model, RTDETRDetectionModel)


def _yolo_kinds(model: Any) -> Kinds:
    head, args = model.model[-1], getattr(model, "args", {})
    gains = args if isinstance(args, Mapping) else vars(args)
    return {
        YOLOv8Loss: {
            "num_classes": head.nc,
            "strides": _strides(head),
            "reg_max": head.reg_max,
            **{option: float(gains[name]) for name, option in GAINS.items() if name in gains},
        }
    }


def _strides(head: Any) -> tuple[int, ...]:
    return tuple(int(stride) for stride in head.stride.tolist())


def _check_yolo_model(model: Any, where: str) -> None:
    head = model.model[-1]
    if getattr(head, "one2one_cv2", None) is not None:
        raise ValueError(
            f"{where}: expected one head, as YOLOv8, YOLOv9 and YOLO11 have it; got an end-to-end model, whose second head is "
            "matched by rules of its own"
        )
    if head.reg_max < 2:
        raise ValueError(f"{where}: expected a head with bins for the distances, reg_max >= 2; got {head.reg_max}")
    if getattr(model, "class_weights", None) is not None:
        raise ValueError(f"{where}: weights of the classes are options of loss_cls here (class_weight=…); got cls_pw > 0")


def _check_yolo(model: Any, criterion: Any, where: str, early: bool) -> None:
    head = model.model[-1]
    expected = {"reg_max": head.reg_max, "strides": _strides(head)}
    agree(where, criterion, expected if early else {"num_classes": head.nc, **expected})


def _rtdetr_kinds(model: Any) -> Kinds:
    return {DETRLoss: {"num_classes": model.model[-1].nc, "target_format": "cxcywh_normalized"}}


def _check_rtdetr(model: Any, criterion: Any, where: str, early: bool) -> None:
    expected = {"target_format": "cxcywh_normalized", "background_column": False}
    agree(where, criterion, expected if early else {"num_classes": model.model[-1].nc, **expected})


FITS: Sequence[Fit] = (
    Fit(_is_rtdetr, lambda model, where: None, _rtdetr_kinds, _check_rtdetr, DETRCriterion),
    Fit(_is_yolo, _check_yolo_model, _yolo_kinds, _check_yolo, YOLOCriterion),
)
