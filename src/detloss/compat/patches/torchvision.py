"""What ``patch("torchvision")`` replaces: losses and assignment of FCOS, RetinaNet, SSD, Faster, Mask and Keypoint R-CNN."""

from __future__ import annotations

from detloss.compat.patches.registry import Plan, Replacement
from detloss.compat.patches.torchvision_dense import fcos_loss, retinanet_loss, ssd_loss
from detloss.compat.patches.torchvision_two_stage import (
    anchor_targets,
    box_losses,
    keypoint_loss,
    mask_loss,
    proposal_losses,
    proposal_targets,
)

__all__ = ["plan"]

LEFT = {
    "torchvision.models.detection._utils.SSDMatcher.__call__": "each object takes its best anchor, a rule no assigner here has",
    "torchvision.models.detection._utils.BalancedPositiveNegativeSampler.__call__": "so that the same anchors are drawn",
}

# Fingerprints of torchvision 0.29.1.
KNOWN = {
    "torchvision.models.detection.fcos.FCOS.compute_loss": ("20758044fbb6",),
    "torchvision.models.detection.retinanet.RetinaNet.compute_loss": ("787d94d9bf1e",),
    "torchvision.models.detection.ssd.SSD.compute_loss": ("edf6e15e2cf9",),
    "torchvision.models.detection.rpn.RegionProposalNetwork.assign_targets_to_anchors": ("95dea248dac2",),
    "torchvision.models.detection.rpn.RegionProposalNetwork.compute_loss": ("06add9561e86",),
    "torchvision.models.detection.roi_heads.RoIHeads.assign_targets_to_proposals": ("8039ce2e2c4e",),
    "torchvision.models.detection.roi_heads.fastrcnn_loss": ("ff72f64780a2",),
    "torchvision.models.detection.roi_heads.maskrcnn_loss": ("76c77aad3d7a",),
    "torchvision.models.detection.roi_heads.keypointrcnn_loss": ("51beb25abf25",),
    "torchvision.models.detection.fcos.FCOSHead.compute_loss": ("4502d1ea0a3a",),
    "torchvision.models.detection.retinanet.RetinaNetHead.compute_loss": ("4cd9618b1b71",),
    "torchvision.models.detection.retinanet.RetinaNetClassificationHead.compute_loss": ("7aff0e99abac",),
    "torchvision.models.detection.retinanet.RetinaNetRegressionHead.compute_loss": ("3c9a83c60056",),
    "torchvision.models.detection.roi_heads.project_masks_on_boxes": ("7546f208b232",),
    "torchvision.models.detection.roi_heads.keypoints_to_heatmap": ("eee837c907a9",),
    "torchvision.models.detection._utils._box_loss": ("becbe7497f96",),
    "torchvision.models.detection._utils.encode_boxes": ("1cc49db49f00",),
    "torchvision.models.detection._utils.BoxCoder.decode_single": ("a40dbcca63d1",),
    "torchvision.models.detection._utils.BoxLinearCoder.decode": ("ddb9d3595a1b",),
    "torchvision.models.detection._utils.Matcher.__call__": ("2d005bc5c3c3",),
    "torchvision.models.detection._utils.Matcher.set_low_quality_matches_": ("115665bdb6c1",),
    "torchvision.ops.boxes.box_iou": ("baed8d27d304",),
    "torchvision.ops.focal_loss.sigmoid_focal_loss": ("3046150fec63",),
    "torchvision.ops.giou_loss.generalized_box_iou_loss": ("b789aaabdc8c",),
    "torchvision.ops.diou_loss.distance_box_iou_loss": ("5fd38cb08c26",),
    "torchvision.ops.ciou_loss.complete_box_iou_loss": ("4f8daf0a65b8",),
}


def plan() -> Plan:
    """The functions of the installed torchvision, what replaces them, and the code that the replacements are equal to."""
    from torchvision.models.detection import _utils, fcos, retinanet, roi_heads, rpn, ssd
    from torchvision.ops import boxes, ciou_loss, diou_loss, focal_loss, giou_loss

    rpn_class, heads = rpn.RegionProposalNetwork, roi_heads.RoIHeads
    return Plan(
        framework="torchvision",
        replacements=(
            Replacement(fcos.FCOS, "compute_loss", fcos_loss),
            Replacement(retinanet.RetinaNet, "compute_loss", retinanet_loss),
            Replacement(ssd.SSD, "compute_loss", ssd_loss),
            Replacement(rpn_class, "assign_targets_to_anchors", anchor_targets),
            Replacement(rpn_class, "compute_loss", proposal_losses),
            Replacement(heads, "assign_targets_to_proposals", proposal_targets),
            Replacement(roi_heads, "fastrcnn_loss", box_losses),
            Replacement(roi_heads, "maskrcnn_loss", mask_loss),
            Replacement(roi_heads, "keypointrcnn_loss", keypoint_loss),
        ),
        relied_on=(
            (fcos.FCOSHead, "compute_loss"),
            (retinanet.RetinaNetHead, "compute_loss"),
            (retinanet.RetinaNetClassificationHead, "compute_loss"),
            (retinanet.RetinaNetRegressionHead, "compute_loss"),
            (roi_heads, "project_masks_on_boxes"),
            (roi_heads, "keypoints_to_heatmap"),
            (_utils, "_box_loss"),
            (_utils, "encode_boxes"),
            (_utils.BoxCoder, "decode_single"),
            (_utils.BoxLinearCoder, "decode"),
            (_utils.Matcher, "__call__"),
            (_utils.Matcher, "set_low_quality_matches_"),
            (boxes, "box_iou"),
            (focal_loss, "sigmoid_focal_loss"),
            (giou_loss, "generalized_box_iou_loss"),
            (diou_loss, "distance_box_iou_loss"),
            (ciou_loss, "complete_box_iou_loss"),
        ),
        known=KNOWN,
        left=LEFT,
    )
