"""Names, order and defaults of all arguments are those of the installed peers; what is added comes after and has a default."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from typing import Any

import pytest
from compat.sides import peer

BOX_LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
DETECTION = ("FocalLoss", "GIoULoss", "CenternessLoss", "FCOSLoss")
SEGMENTATION = ("DiceLoss", "FocalLossPixelwise", "TverskyLoss", "MaskLoss", "CombinedSegmentationLoss")
REGISTRY = ("register_loss", "get_loss", "list_losses", "has_loss", "get_loss_info")
KORNIA = ("focal_loss", "binary_focal_loss_with_logits", "dice_loss", "tversky_loss", "lovasz_hinge_loss")
KORNIA_CLASSES = ("FocalLoss", "BinaryFocalLossWithLogits", "DiceLoss", "TverskyLoss", "LovaszHingeLoss")
EFFDET = ("focal_loss_legacy", "new_focal_loss", "huber_loss", "smooth_l1_loss", "loss_fn")
YOLO = ("VarifocalLoss", "FocalLoss", "BboxLoss")
YOLO_CRITERION = (".__init__", ".__call__", ".parse_output", ".loss", ".bbox_decode", ".get_assigned_targets_and_loss")
RT_DETR = ("vfl", "bce", "focal")
TERMS = (".get_loss", ".loss_labels", ".loss_boxes", ".loss_masks", ".loss_cardinality", ".forward")
TRANSFORMERS = {
    "loss_for_object_detection": (
        "sigmoid_focal_loss", "dice_loss", "box_iou", "generalized_box_iou", "HungarianMatcher", "HungarianMatcher.forward",
        "ImageLoss", *(f"ImageLoss{name}" for name in TERMS), "ForObjectDetectionLoss", "ForSegmentationLoss",
    ),
    "loss_deformable_detr": (
        "DeformableDetrHungarianMatcher", "DeformableDetrHungarianMatcher.forward", "DeformableDetrImageLoss",
        *(f"DeformableDetrImageLoss{name}" for name in TERMS), "DeformableDetrForObjectDetectionLoss",
    ),
    "loss_rt_detr": (
        "RTDetrHungarianMatcher", "RTDetrHungarianMatcher.forward", "RTDetrLoss", *(f"RTDetrLoss{name}" for name in TERMS),
        *(f"RTDetrLoss.loss_labels_{name}" for name in RT_DETR), "RTDetrLoss.get_cdn_matched_indices",
        "RTDetrForObjectDetectionLoss",
    ),
    "loss_d_fine": (
        "weighting_function", "translate_gt", "bbox2distance", "DFineLoss", "DFineLoss.unimodal_distribution_focal_loss",
        "DFineLoss.loss_local", "DFineLoss.get_loss", "DFineForObjectDetectionLoss",
    ),
}  # fmt: skip

CALLABLES = (
    *(f"torchvision.ops.{name}" for name in ("sigmoid_focal_loss", *BOX_LOSSES)),
    *(f"fvcore.nn.{name}" for name in ("sigmoid_focal_loss", "sigmoid_focal_loss_star", "giou_loss", "smooth_l1_loss")),
    *(f"autotimm.losses.{name}" for name in (*DETECTION, *SEGMENTATION)),
    *(f"autotimm.losses.{name}.forward" for name in (*DETECTION, *SEGMENTATION)),
    *(f"autotimm.losses.LossRegistry.{name}" for name in REGISTRY),
    *(f"autotimm.losses.{name}" for name in ("get_loss_registry", "register_custom_loss", "list_available_losses")),
    *(f"kornia.losses.{name}" for name in (*KORNIA, *KORNIA_CLASSES)),
    *(f"kornia.losses.{name}.forward" for name in KORNIA_CLASSES),
    *(f"effdet.loss.{name}" for name in (*EFFDET, "DetectionLoss", "DetectionLoss.forward")),
    *(f"ultralytics.utils.loss.{name}" for name in (*YOLO, *(f"{name}.forward" for name in YOLO), "DFLoss")),
    *(f"ultralytics.utils.loss.v8DetectionLoss{name}" for name in YOLO_CRITERION),
    *(f"ultralytics.utils.loss.E2ELoss.{name}" for name in ("__call__", "update", "decay")),
    *(f"ultralytics.utils.metrics.{name}" for name in ("bbox_iou", "probiou")),
    *(f"ultralytics.utils.tal.TaskAlignedAssigner{name}" for name in ("", ".forward")),
    *(f"ultralytics.models.utils.loss.{name}" for name in ("DETRLoss", "DETRLoss.forward")),
    *(f"ultralytics.models.utils.loss.RTDETRDetectionLoss.{name}" for name in ("forward", "get_dn_match_indices")),
    *(f"ultralytics.models.utils.ops.HungarianMatcher{name}" for name in ("", ".forward")),
    *(f"transformers.loss.{module}.{name}" for module, names in TRANSFORMERS.items() for name in names),
)
# Arguments that the peer requires and that have a default here: FCOSLoss has a second form, without them.
OPTIONAL_HERE = {"autotimm.losses.FCOSLoss.forward": {"cls_targets", "reg_targets", "centerness_targets"}}


def ours(path: str) -> Any:
    """``torchvision.ops.sigmoid_focal_loss`` of ``detloss.compat``."""
    return pkgutil.resolve_name(f"detloss.compat.{path}")


def theirs(path: str) -> Any:
    package, *names = path.split(".")
    found = peer(package)
    for name in names:  # a function goes before the module of the same name
        if not hasattr(found, name):
            importlib.import_module(f"{found.__name__}.{name}")
        found = getattr(found, name)
    return found


def parameters(function: Any) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize("path", CALLABLES)
def test_same_arguments(path: str) -> None:
    mine, other = parameters(ours(path)), parameters(theirs(path))
    assert list(mine)[: len(other)] == list(other)
    for name in other:
        if name in OPTIONAL_HERE.get(path, set()):
            assert mine[name] is None and other[name] is inspect.Parameter.empty
        else:
            assert mine[name] == other[name] or mine[name] is other[name], name


@pytest.mark.parametrize("path", CALLABLES)
def test_added_arguments_are_keywords(path: str) -> None:
    added = [p for name, p in inspect.signature(ours(path)).parameters.items() if name not in parameters(theirs(path))]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in added)


def test_jit_names_are_the_functions() -> None:
    for path in ("fvcore.nn.sigmoid_focal_loss", "fvcore.nn.sigmoid_focal_loss_star"):
        assert ours(f"{path}_jit") is ours(path)
    assert ours("effdet.loss.loss_jit") is ours("effdet.loss.loss_fn")


@pytest.mark.parametrize("path", ["autotimm.losses", "autotimm.losses.detection", "autotimm.losses.segmentation"])
def test_all_public_losses_are_here(path: str) -> None:
    module = functools.reduce(getattr, path.split(".")[1:], peer("autotimm"))
    public = getattr(module, "__all__", None) or [n for n, x in vars(module).items() if getattr(x, "__module__", "") == path]
    here = importlib.import_module(f"detloss.compat.{path}")
    assert public and [name for name in public if not hasattr(here, name)] == []


def test_detectron2_takes_what_fvcore_takes() -> None:
    """detectron2.layers.diou_loss and ciou_loss are called as fvcore's giou_loss is."""
    for name in ("diou_loss", "ciou_loss"):
        assert parameters(ours(f"detectron2.layers.{name}")) == parameters(theirs("fvcore.nn.giou_loss"))
