"""The heads of the DETR family of mmdet as criteria."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detloss.compat.configs.dense import GIOU, head_classes
from detloss.compat.configs.losses import LossConfig, loss_config
from detloss.compat.configs.sections import Section
from detloss.criteria.base import Criterion
from detloss.criteria.detr import DETRLoss

__all__ = ["detr"]

SOFTMAX_HEADS = ("DETRHead",)
FOCAL_HEADS = ("DeformableDETRHead", "ConditionalDETRHead", "DABDETRHead", "DINOHead")
COSTS: dict[str, dict[str, Any]] = {
    "cls": {"type": "ClassificationCost", "weight": 1.0},
    "reg": {"type": "BBoxL1Cost", "weight": 5.0},
    "iou": {"type": "IoUCost", "weight": 2.0},
}


def detr(head: Section, train: Section | None) -> Criterion:
    """``DETRHead``, ``DeformableDETRHead``, ``DINOHead`` … → :class:`detloss.DETRLoss`.

    The weight of "no object" is ``bg_cls_weight``. Losses of two ranks with ``sync_cls_avg_factor=False`` are those of one
    process with the whole batch here, not of each rank.
    """
    if not head.get("sync_cls_avg_factor", False):
        head.log.note(
            f"{head.path_of('sync_cls_avg_factor')} = False: with several ranks loss_cls is divided by their mean all the same"
        )
    loss_cls, background = _classification(head)
    options: dict[str, Any] = {
        "num_classes": head_classes(head),
        "loss_cls": loss_cls,
        "loss_box": _term(head, "loss_bbox", {"type": "L1Loss", "loss_weight": 5.0}),
        "loss_iou": _term(head, "loss_iou", {**GIOU, "loss_weight": 2.0}),
        "weights": {"loss_cls": 1.0, "loss_box": 1.0, "loss_iou": 1.0},
        "encoder_class_agnostic": head.kind() == "DeformableDETRHead",
        "no_object_weight": background,
    }
    section = None if train is None else train.part("assigner")
    if section is not None:
        options["assigner"] = hungarian_assigner(section)
    return DETRLoss(**options)


def _term(head: Section, name: str, default: Mapping[str, Any]) -> LossConfig:
    section = head.part(name, default)
    if section is None:
        raise head.error(f"expected {name}")
    return loss_config(section)


def _classification(head: Section) -> tuple[LossConfig, float]:
    """The classification loss and the weight of "no object"."""
    softmax = {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "class_weight": 1.0}
    section = head.part("loss_cls", softmax if head.kind() in SOFTMAX_HEADS else {"type": "FocalLoss", "loss_weight": 2.0})
    if section is None:
        raise head.error("expected loss_cls")
    if section.kind() != "CrossEntropyLoss" or section.get("use_sigmoid", False):
        return loss_config(section), 0.1
    section.expect("class_weight", (None, 1, 1.0), "all classes weigh 1 and no object bg_cls_weight")
    background = float(section.get("bg_cls_weight", section.get("class_weight", 1.0) or 1.0))
    if "class_weight" not in section.values:
        section.log.note(
            f"{section.path}: without class_weight mmdet divides by the objects alone; here by the weights of all rows"
        )
    config = loss_config(section)
    if isinstance(config, dict):
        config.pop("class_weight", None)
    return config, background


def hungarian_assigner(section: Section) -> dict[str, Any]:
    """The configuration of a ``HungarianAssigner`` from ``match_costs``, or from ``cls_cost``, ``reg_cost`` and ``iou_cost``."""
    if section.kind() != "HungarianAssigner":
        raise section.error(f"expected a HungarianAssigner; got {section.kind()}")
    costs = section.get("match_costs")
    if costs is None:
        parts = [section.part(f"{name}_cost", default) for name, default in COSTS.items()]
    else:
        entries = costs if isinstance(costs, (list, tuple)) else [costs]
        parts = [Section(entry, f"{section.path_of('match_costs')}[{n}]", section.log) for n, entry in enumerate(entries)]
    found: dict[str, Any] = {"type": "HungarianAssigner", "cls_weight": 0.0, "l1_weight": 0.0, "iou_weight": 0.0}
    for part in parts:
        if part is not None:
            found.update(_cost(part))
    return found


def _cost(part: Section) -> dict[str, Any]:
    """Options of the assigner from one match cost."""
    kind, weight = part.kind(), float(part.get("weight", 1.0))
    if kind == "ClassificationCost":
        return {"cls_cost": "softmax", "cls_weight": weight}
    if kind == "FocalLossCost":
        part.expect("binary_input", (False,), "the cost is that of classes")
        part.skip("eps")
        return {"cls_cost": "focal", "cls_weight": weight, **part.take("alpha", "gamma")}
    if kind == "BBoxL1Cost":
        part.expect("box_format", ("xywh",), "boxes are compared as (cx, cy, w, h)")
        return {"l1_weight": weight}
    if kind == "IoUCost":
        return {"iou": part.get("iou_mode", "giou"), "iou_weight": weight}
    raise part.error(f"expected ClassificationCost, FocalLossCost, BBoxL1Cost or IoUCost; got {kind}")
