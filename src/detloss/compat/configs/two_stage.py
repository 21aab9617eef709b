"""RPN and RoI heads of mmdet, and whole Faster and Mask R-CNN models, as criteria."""

from __future__ import annotations

from typing import Any

from detloss.assigners.samplers import PseudoSampler
from detloss.compat.configs import parts
from detloss.compat.configs.dense import SIGMOID, SMALL_STDS, assigner_of, box_space, head_classes, term
from detloss.compat.configs.losses import LossConfig
from detloss.compat.configs.sections import Section
from detloss.criteria.mask_head import MaskHeadLoss
from detloss.criteria.mask_rcnn import MaskRCNNLoss
from detloss.criteria.roi_head import RoIHeadLoss
from detloss.criteria.rpn import RPNLoss

__all__ = ["box_head", "mask_head", "roi_head", "rpn", "two_stage"]

BOX_HEADS = ("BBoxHead", "ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")
MASK_HEADS = ("FCNMaskHead",)
RPN_ANCHORS = {
    "type": "AnchorGenerator", "scales": [8, 16, 32], "ratios": [0.5, 1.0, 2.0], "strides": [4, 8, 16, 32, 64],
}  # fmt: skip


def rpn_options(head: Section, train: Section | None) -> dict[str, Any]:
    """Options of :class:`detloss.RPNLoss` from an ``RPNHead`` and its ``train_cfg``."""
    loss_box = term(head, "loss_bbox", {"type": "SmoothL1Loss", "beta": 1 / 9})
    options = {
        **parts.anchor_options(head, RPN_ANCHORS),
        "delta_weights": parts.delta_weights(head, (1.0, 1.0, 1.0, 1.0)),
        "loss_rpn_cls": term(head, "loss_cls", SIGMOID),
        "loss_rpn_box": loss_box,
    }
    parts.decoded(head, box_space(loss_box))
    head.expect("num_classes", (1,), "an RPN has one class")
    assigner = assigner_of(head, train, "MaxIoUAssigner")
    if assigner is not None:
        options["assigner"] = parts.max_iou_assigner(assigner)
    return {**options, **_sampling(train, ground_truth=False)}


def _sampling(train: Section | None, ground_truth: bool) -> dict[str, Any]:
    """``sampler`` and, where it may add the objects, ``append_ground_truth``."""
    section = None if train is None else train.part("sampler")
    parts.train_options(train)
    if section is None:
        return {}
    found, adds = parts.sampler(section)
    if isinstance(found, PseudoSampler):
        raise section.error("two-stage heads learn from a sample; got PseudoSampler")
    if ground_truth:
        return {"sampler": found, "append_ground_truth": adds}
    if adds and "add_gt_as_proposals" in section:
        section.refuse("add_gt_as_proposals", "objects are no anchors")
    return {"sampler": found}


def rpn(head: Section, train: Section | None) -> RPNLoss:
    """``RPNHead`` → :class:`detloss.RPNLoss` as mmdet normalises it."""
    return RPNLoss.preset("mmdet", **rpn_options(head, train))


def _softmax(head: Section, loss: LossConfig) -> LossConfig:
    """The classification loss of a box head; one with a sigmoid sees no column of the background here."""
    sigmoid = loss.get("use_sigmoid", loss["type"] != "CrossEntropyLoss") if isinstance(loss, dict) else True
    if sigmoid:
        head.log.note(
            f"{head.path_of('loss_cls')}: losses with a sigmoid take C logits here, in mmdet C + 1 with one for the background"
        )
    return loss


def box_options(head: Section, train: Section | None) -> dict[str, Any]:
    """Options of :class:`detloss.RoIHeadLoss` from a box head and the ``rcnn`` part of ``train_cfg``, without the classes."""
    if head.kind() not in BOX_HEADS:
        raise head.error(f"expected one of {', '.join(BOX_HEADS)}; got {head.kind()}")
    loss_box = term(head, "loss_bbox", {"type": "SmoothL1Loss"})
    options = {
        "class_agnostic": bool(head.get("reg_class_agnostic", False)),
        "delta_weights": parts.delta_weights(head, SMALL_STDS),
        "loss_cls": _softmax(head, term(head, "loss_cls", {"type": "CrossEntropyLoss"})),
        "loss_box": loss_box,
    }
    parts.decoded(head, box_space(loss_box))
    assigner = assigner_of(head, train, "MaxIoUAssigner")
    if assigner is not None:
        options["assigner"] = parts.max_iou_assigner(assigner)
    return {**options, **_sampling(train, ground_truth=True)}


def mask_options(head: Section) -> dict[str, Any]:
    """Options of :class:`detloss.MaskHeadLoss` from an ``FCNMaskHead``, without the classes."""
    if head.kind() not in MASK_HEADS:
        raise head.error(f"expected one of {', '.join(MASK_HEADS)}; got {head.kind()}")
    return {
        "class_agnostic": bool(head.get("class_agnostic", False)),
        "loss_mask": term(head, "loss_mask", {"type": "CrossEntropyLoss", "use_mask": True}),
    }


def box_head(head: Section, train: Section | None) -> RoIHeadLoss:
    """A box head → :class:`detloss.RoIHeadLoss` as mmdet normalises it."""
    return RoIHeadLoss.preset("mmdet", num_classes=head_classes(head), **box_options(head, train))


def mask_head(head: Section, train: Section | None) -> MaskHeadLoss:
    """``FCNMaskHead`` → :class:`detloss.MaskHeadLoss`; masks take the size of the logits, whatever ``mask_size`` says."""
    parts.train_options(train)
    return MaskHeadLoss.preset("mmdet", num_classes=head_classes(head), **mask_options(head))


def roi_head(head: Section, train: Section | None) -> RoIHeadLoss:
    """``StandardRoIHead`` without a mask head → :class:`detloss.RoIHeadLoss`."""
    if head.part("mask_head") is not None:
        raise head.error("a RoI head with a mask_head is part of a whole model, type='MaskRCNN'; got it alone")
    inner = head.part("bbox_head")
    if inner is None:
        raise head.error("expected bbox_head")
    return box_head(inner, train)


def two_stage(model: Section, train: Section | None) -> MaskRCNNLoss:
    """``FasterRCNN`` or ``MaskRCNN`` → :class:`detloss.MaskRCNNLoss`; without a mask head its calls have no mask logits."""
    rpn_section, roi_section = model.part("rpn_head"), model.part("roi_head")
    if rpn_section is None or roi_section is None:
        raise model.error("expected rpn_head and roi_head")
    if rpn_section.kind("RPNHead") != "RPNHead" or roi_section.kind("StandardRoIHead") != "StandardRoIHead":
        raise model.error(f"expected RPNHead and StandardRoIHead; got {rpn_section.kind()} and {roi_section.kind()}")
    boxes, masks = roi_section.part("bbox_head"), roi_section.part("mask_head")
    if boxes is None:
        raise roi_section.error("expected bbox_head")
    stages = [None if train is None else train.part(name) for name in ("rpn", "rcnn")]
    if train is not None:
        train.skip("rpn_proposal")
    classes = head_classes(boxes)
    if masks is not None and head_classes(masks) != classes:
        raise masks.error(f"num_classes must be that of bbox_head, {classes}; got {head_classes(masks)}")
    return MaskRCNNLoss.preset(
        "mmdet",
        num_classes=classes,
        rpn=rpn_options(rpn_section, stages[0]),
        roi=box_options(boxes, stages[1]),
        mask={} if masks is None else mask_options(masks),
    )
