"""What ``patch("ultralytics")`` replaces: loss and assignment of detection and segmentation models, and the loss of RT-DETR."""

from __future__ import annotations

from detloss.compat.patches.registry import Plan, Replacement
from detloss.compat.patches.ultralytics_detr import detr_loss
from detloss.compat.patches.ultralytics_masks import mask_loss, segmentation_loss
from detloss.compat.patches.ultralytics_yolo import detection_loss, task_aligned_targets

__all__ = ["plan"]

LEFT = {
    "ultralytics.utils.loss.v8OBBLoss": "rotated boxes have an assigner of their own",
    "ultralytics.utils.loss.E2ELoss.one2one": "its assigner has a second top-k",
}

# Fingerprints of ultralytics 8.4.190.
KNOWN = {
    "ultralytics.utils.loss.v8DetectionLoss.get_assigned_targets_and_loss": ("2439b3d0f9db",),
    "ultralytics.utils.tal.TaskAlignedAssigner.forward": ("275681b7f2c0",),
    "ultralytics.utils.loss.v8SegmentationLoss.single_mask_loss": ("cce1eed54a59",),
    "ultralytics.utils.loss.v8SegmentationLoss.calculate_segmentation_loss": ("9eb576cfcb85",),
    "ultralytics.models.utils.loss.RTDETRDetectionLoss.forward": ("0a69def2557a",),
    "ultralytics.utils.loss.v8DetectionLoss.preprocess": ("0584ca0a1310",),
    "ultralytics.utils.loss.v8DetectionLoss.bbox_decode": ("5e5afae5304f",),
    "ultralytics.utils.loss.v8DetectionLoss.loss": ("0ba686799f9a",),
    "ultralytics.utils.tal.TaskAlignedAssigner._forward": ("e61f434fc7a1",),
    "ultralytics.utils.tal.TaskAlignedAssigner.get_pos_mask": ("46ebd43dbcd1",),
    "ultralytics.utils.tal.TaskAlignedAssigner.get_box_metrics": ("f166deef1a70",),
    "ultralytics.utils.tal.TaskAlignedAssigner.pair_overlaps": ("55aceafc475a",),
    "ultralytics.utils.tal.TaskAlignedAssigner.iou_calculation": ("d9686b5fca77",),
    "ultralytics.utils.tal.TaskAlignedAssigner.select_topk_candidates": ("e61c66710697",),
    "ultralytics.utils.tal.TaskAlignedAssigner.get_targets": ("ca0d3070da45",),
    "ultralytics.utils.tal.TaskAlignedAssigner.select_candidates_in_gts": ("920705ff656a",),
    "ultralytics.utils.tal.TaskAlignedAssigner.select_highest_overlaps": ("62ae10c3b985",),
    "ultralytics.utils.loss.BboxLoss.forward": ("f9dd8a86e269",),
    "ultralytics.utils.loss.DFLoss.__call__": ("6c20392c8351",),
    "ultralytics.utils.loss.VarifocalLoss.forward": ("19fc27421fad",),
    "ultralytics.utils.metrics.bbox_iou": ("a8ca390560ab",),
    "ultralytics.utils.tal.make_anchors": ("325206f3dfd7",),
    "ultralytics.utils.tal.dist2bbox": ("d8c21f6e036f",),
    "ultralytics.utils.tal.bbox2dist": ("b7f78a263f02",),
    "ultralytics.utils.loss.crop_mask": ("a1f9f67d5e8c",),
    "ultralytics.models.utils.loss.DETRLoss.forward": ("9513488f8590",),
    "ultralytics.models.utils.loss.DETRLoss._get_loss": ("de6f0956c34d",),
    "ultralytics.models.utils.loss.DETRLoss._get_loss_class": ("5885dd26d6a4",),
    "ultralytics.models.utils.loss.DETRLoss._get_loss_bbox": ("ab209fd41046",),
    "ultralytics.models.utils.loss.DETRLoss._get_loss_aux": ("1b5b33172028",),
    "ultralytics.models.utils.loss.RTDETRDetectionLoss.get_dn_match_indices": ("b724bffd1952",),
    "ultralytics.models.utils.ops.HungarianMatcher.forward": ("ec37abc45165",),
}


def plan() -> Plan:
    """The functions of the installed ultralytics, what replaces them, and the code that the replacements are equal to."""
    from ultralytics.models.utils import loss as detr
    from ultralytics.models.utils import ops
    from ultralytics.utils import loss, metrics, tal

    detection, assigner = loss.v8DetectionLoss, tal.TaskAlignedAssigner
    return Plan(
        framework="ultralytics",
        replacements=(
            Replacement(detection, "get_assigned_targets_and_loss", detection_loss),
            Replacement(assigner, "forward", task_aligned_targets),
            Replacement(loss.v8SegmentationLoss, "single_mask_loss", mask_loss),
            Replacement(loss.v8SegmentationLoss, "calculate_segmentation_loss", segmentation_loss),
            Replacement(detr.RTDETRDetectionLoss, "forward", detr_loss),
        ),
        relied_on=(
            *((detection, name) for name in ("preprocess", "bbox_decode", "loss")),
            *((assigner, name) for name in (
                "_forward", "get_pos_mask", "get_box_metrics", "pair_overlaps", "iou_calculation", "select_topk_candidates",
                "get_targets", "select_candidates_in_gts", "select_highest_overlaps",
            )),
            (loss.BboxLoss, "forward"),
            (loss.DFLoss, "__call__"),
            (loss.VarifocalLoss, "forward"),
            (metrics, "bbox_iou"),
            (tal, "make_anchors"),
            (tal, "dist2bbox"),
            (tal, "bbox2dist"),
            (loss, "crop_mask"),
            *((detr.DETRLoss, name) for name in ("forward", "_get_loss", "_get_loss_class", "_get_loss_bbox", "_get_loss_aux")),
            (detr.RTDETRDetectionLoss, "get_dn_match_indices"),
            (ops.HungarianMatcher, "forward"),
        ),
        known=KNOWN,
        left=LEFT,
    )  # fmt: skip
