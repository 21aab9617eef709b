"""The dense heads of mmdet as criteria: RetinaHead, FCOSHead, ATSSHead, GFLHead, YOLOXHead and CenterNetHead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detloss.compat.configs import parts
from detloss.compat.configs.losses import LossConfig, loss_config
from detloss.compat.configs.sections import Section
from detloss.criteria.atss import ATSSLoss
from detloss.criteria.base import Criterion
from detloss.criteria.centernet import CenterNetLoss
from detloss.criteria.fcos import FCOSLoss
from detloss.criteria.gfl import GFLLoss
from detloss.criteria.retinanet import RetinaNetLoss
from detloss.criteria.yolox import YOLOXLoss
from detloss.registry import LOSSES

__all__ = ["atss", "centernet", "fcos", "gfl", "head_classes", "retinanet", "term", "yolox"]

SIGMOID = {"type": "CrossEntropyLoss", "use_sigmoid": True}
FOCAL = {"type": "FocalLoss"}
GIOU = {"type": "GIoULoss"}
SMALL_STDS = (0.1, 0.1, 0.2, 0.2)
RETINA_ANCHORS = {
    "type": "AnchorGenerator", "octave_base_scale": 4, "scales_per_octave": 3, "ratios": [0.5, 1.0, 2.0],
    "strides": [8, 16, 32, 64, 128],
}  # fmt: skip
SQUARE_ANCHORS = {**RETINA_ANCHORS, "octave_base_scale": 8, "scales_per_octave": 1, "ratios": [1.0]}


def term(head: Section, name: str, default: Mapping[str, Any]) -> LossConfig:
    """The loss ``name`` of a head; ``default`` is that of its class."""
    section = head.part(name, default)
    if section is None:
        raise head.error(f"expected {name}")
    return loss_config(section)


def head_classes(head: Section, default: int = 80) -> int:
    """``num_classes``; that of mmdet's heads is required, but for the RoI heads."""
    found = head.get("num_classes", default)
    if isinstance(found, bool) or not isinstance(found, int):
        raise head.error(f"num_classes must be an integer; got {found!r}")
    return found


def assigner_of(head: Section, train: Section | None, name: str) -> Section | None:
    """The assigner of ``train_cfg``, checked to be a ``name``; ``None`` when there is none."""
    found = None if train is None else train.part("assigner")
    if found is not None and found.kind() != name:
        raise found.error(f"{head.kind()} has a {name}; got {found.kind()}")
    return found


def everything_sampled(train: Section | None) -> None:
    """Dense heads learn from all priors: a sampler other than the PseudoSampler is an error."""
    section = None if train is None else train.part("sampler")
    if section is not None:
        if section.kind() != "PseudoSampler":
            raise section.error(f"dense heads learn from all priors, by a PseudoSampler; got {section.kind()}")
        section.skip_rest()


def box_space(loss: LossConfig) -> str:
    """``"corners"`` or ``"distances"``: what a box loss compares."""
    kind = LOSSES.get(loss["type"]) if isinstance(loss, dict) else loss
    return str(getattr(kind, "box_space", "corners"))


def retinanet(head: Section, train: Section | None) -> Criterion:
    """``RetinaHead`` → :class:`detloss.RetinaNetLoss` as mmdet normalises it."""
    loss_box = term(head, "loss_bbox", {"type": "SmoothL1Loss", "beta": 1 / 9})
    options = {
        "num_classes": head_classes(head),
        **parts.anchor_options(head, RETINA_ANCHORS),
        "delta_weights": parts.delta_weights(head, (1.0, 1.0, 1.0, 1.0)),
        "loss_cls": term(head, "loss_cls", SIGMOID),
        "loss_box": loss_box,
    }
    parts.decoded(head, box_space(loss_box))
    assigner = assigner_of(head, train, "MaxIoUAssigner")
    if assigner is not None:
        options["assigner"] = parts.max_iou_assigner(assigner)
    everything_sampled(train)
    return RetinaNetLoss.preset("mmdet", **options)


def fcos(head: Section, train: Section | None) -> Criterion:
    """``FCOSHead`` → :class:`detloss.FCOSLoss`; with ``norm_on_bbox`` the distances are in strides."""
    strides = parts.level_strides(head, (4, 8, 16, 32, 64))
    ranges = head.get("regress_ranges", ((-1, 64), (64, 128), (128, 256), (256, 512), (512, parts.LARGE)))
    centre, radius = head.get("center_sampling", False), head.get("center_sample_radius", 1.5)
    parts.distance_coder(head)
    head.skip("centerness_on_reg")
    if train is not None:
        train.skip("assigner", "sampler", why="FCOSHead assigns by regress_ranges alone")
    loss_box = term(head, "loss_bbox", {"type": "IoULoss"})
    if box_space(loss_box) != "corners":
        head.log.note(f"{head.path_of('loss_bbox')}: coordinates are compared as distances in strides, in mmdet as corners")
    return FCOSLoss.preset(
        "mmdet",
        num_classes=head_classes(head),
        strides=strides,
        regress_ranges=[parts.finite_range(*bounds) for bounds in ranges],
        center_sampling_radius=radius if centre else None,
        distance_unit="stride" if head.get("norm_on_bbox", False) else "pixel",
        loss_cls=term(head, "loss_cls", FOCAL),
        loss_box=loss_box,
        loss_centerness=term(head, "loss_centerness", SIGMOID),
    )


def atss_assigner(head: Section, train: Section | None) -> dict[str, Any] | None:
    """The configuration of an ``ATSSAssigner``, if there is one."""
    section = assigner_of(head, train, "ATSSAssigner")
    if section is None:
        return None
    section.expect("alpha", (None,), "anchors are matched by IoU alone (no DDOD)")
    parts.iou_calculator(section)
    return {
        "type": "ATSSAssigner",
        "topk": section.get("topk", 9),
        "ignore_iof_thr": parts.iou_threshold(section),
    }


def atss(head: Section, train: Section | None) -> Criterion:
    """``ATSSHead`` → :class:`detloss.ATSSLoss`."""
    head.expect("reg_decoded_bbox", (True,), "boxes are compared decoded")
    everything_sampled(train)
    return ATSSLoss.preset(
        "mmdet",
        num_classes=head_classes(head),
        **parts.anchor_options(head, SQUARE_ANCHORS, square_only=True),
        delta_weights=parts.delta_weights(head, SMALL_STDS),
        loss_cls=term(head, "loss_cls", FOCAL),
        loss_box=term(head, "loss_bbox", GIOU),
        loss_centerness=term(head, "loss_centerness", SIGMOID),
        assigner=atss_assigner(head, train),
    )


def gfl(head: Section, train: Section | None) -> Criterion:
    """``GFLHead`` → :class:`detloss.GFLLoss`; ``reg_max`` is the last bin in both."""
    parts.distance_coder(head)
    everything_sampled(train)
    return GFLLoss.preset(
        "mmdet",
        num_classes=head_classes(head),
        **parts.anchor_options(head, SQUARE_ANCHORS, square_only=True),
        reg_max=head.get("reg_max", 16),
        loss_cls=term(head, "loss_cls", {"type": "QualityFocalLoss"}),
        loss_box=term(head, "loss_bbox", GIOU),
        loss_dfl=term(head, "loss_dfl", {"type": "DistributionFocalLoss", "loss_weight": 0.25}),
        assigner=atss_assigner(head, train),
    )


def yolox(head: Section, train: Section | None) -> Criterion:
    """``YOLOXHead`` → :class:`detloss.YOLOXLoss`; ``loss_l1`` is off until ``criterion.use_l1 = True``."""
    options: dict[str, Any] = {
        "num_classes": head_classes(head),
        "strides": parts.level_strides(head, (8, 16, 32)),
        "loss_cls": term(head, "loss_cls", SIGMOID),
        "loss_box": term(head, "loss_bbox", {"type": "IoULoss", "mode": "square", "loss_weight": 5.0}),
        "loss_obj": term(head, "loss_obj", SIGMOID),
        "loss_l1": term(head, "loss_l1", {"type": "L1Loss"}),
        "box_weight": 1.0,
    }
    everything_sampled(train)
    section = assigner_of(head, train, "SimOTAAssigner")
    if section is not None:
        parts.iou_calculator(section)
        options["assigner"] = {
            **YOLOXLoss.PRESETS["mmdet"]["assigner"],
            **section.take("center_radius", "candidate_topk", "iou_weight", "cls_weight"),
        }
    return YOLOXLoss.preset("mmdet", **options)


def centernet(head: Section, train: Section | None) -> Criterion:
    """``CenterNetHead`` → :class:`detloss.CenterNetLoss` of logits; its maps have a stride of 4."""
    if train is not None:
        train.skip_rest()
    return CenterNetLoss.preset(
        "mmdet",
        num_classes=head_classes(head),
        loss_cls=term(head, "loss_center_heatmap", {"type": "GaussianFocalLoss"}),
        loss_size=term(head, "loss_wh", {"type": "L1Loss", "loss_weight": 0.1}),
        loss_offset=term(head, "loss_offset", {"type": "L1Loss"}),
        weights={"loss_size": 1.0},
    )
