"""What ``patch("autotimm")`` replaces: targets and losses inside its detectors, and its loss modules."""

from __future__ import annotations

from detloss.compat.autotimm import losses as ours
from detloss.compat.patches.autotimm_tasks import detection_loss, module_forward, yolox_step
from detloss.compat.patches.registry import Plan, Replacement

__all__ = ["plan"]

LEFT = {
    "autotimm.losses.detection.FCOSLoss.forward": "no task uses it, and its numbers are defects; see detloss.compat.autotimm",
    "autotimm.losses.segmentation.CombinedSegmentationLoss.forward": "its Dice part is replaced, the rest is PyTorch's",
    "autotimm.tasks.instance_segmentation.InstanceSegmentor._compute_mask_loss": "cuts masks out; its loss module is replaced",
}

# Fingerprints of autotimm 0.7.37.
KNOWN = {
    "autotimm.tasks._fcos_targets.compute_fcos_detection_loss": ("61707960a0e8",),
    "autotimm.tasks.object_detection.compute_fcos_detection_loss": ("61707960a0e8",),
    "autotimm.tasks.instance_segmentation.compute_fcos_detection_loss": ("61707960a0e8",),
    "autotimm.tasks.yolox_detector.YOLOXDetector.training_step": ("a59f760d1c3a",),
    "autotimm.losses.detection.FocalLoss.forward": ("71c74e1906dc",),
    "autotimm.losses.detection.GIoULoss.forward": ("8c7b182e738a",),
    "autotimm.losses.detection.CenternessLoss.forward": ("1ec40ed1ede7",),
    "autotimm.losses.segmentation.DiceLoss.forward": ("b6999a8116a3",),
    "autotimm.losses.segmentation.FocalLossPixelwise.forward": ("b85c79221eac",),
    "autotimm.losses.segmentation.TverskyLoss.forward": ("1954547b1b89",),
    "autotimm.losses.segmentation.MaskLoss.forward": ("7adb209ed9a0",),
    "autotimm.tasks._fcos_targets.compute_targets_per_level": ("2361245f6fc9",),
    "autotimm.tasks._fcos_targets.compute_iou_loss": ("f82c3527a97a",),
    "autotimm.tasks._fcos_targets._grid_points": ("c6565c4ccee8",),
    "autotimm.tasks._fcos_targets._ltrb_to_relative_boxes": ("41335a9482e4",),
    "autotimm.losses.detection.GIoULoss._compute_giou": ("d27a72d0cf1b",),
    "autotimm.tasks.yolox_detector.YOLOXDetector._compute_targets_per_level": ("87971892695c",),
    "autotimm.tasks.yolox_detector.YOLOXDetector._compute_iou_loss": ("427d6be86214",),
}

DETECTION = ("FocalLoss", "GIoULoss", "CenternessLoss")
SEGMENTATION = ("DiceLoss", "FocalLossPixelwise", "TverskyLoss", "MaskLoss")


def plan() -> Plan:
    """The functions of the installed autotimm, what replaces them, and the code that the replacements are equal to."""
    from autotimm.losses import detection, segmentation
    from autotimm.tasks import _fcos_targets, instance_segmentation, object_detection, yolox_detector

    detector = yolox_detector.YOLOXDetector
    modules = [(detection, name) for name in DETECTION] + [(segmentation, name) for name in SEGMENTATION]
    return Plan(
        framework="autotimm",
        replacements=(
            *(
                Replacement(module, "compute_fcos_detection_loss", detection_loss)
                for module in (_fcos_targets, object_detection, instance_segmentation)
            ),
            Replacement(detector, "training_step", yolox_step),
            *(Replacement(getattr(home, name), "forward", module_forward(getattr(ours, name))) for home, name in modules),
        ),
        relied_on=(
            *((_fcos_targets, name) for name in ("compute_targets_per_level", "compute_iou_loss", "_grid_points")),
            (_fcos_targets, "_ltrb_to_relative_boxes"),
            (detection.GIoULoss, "_compute_giou"),
            (detector, "_compute_targets_per_level"),
            (detector, "_compute_iou_loss"),
        ),
        known=KNOWN,
        left=LEFT,
    )
