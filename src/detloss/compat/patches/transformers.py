"""What ``patch("transformers")`` replaces: criteria and matchers of DETR, RT-DETR, D-FINE and their relatives."""

from __future__ import annotations

from detloss.compat.patches.registry import PatchMismatchError, Plan, Replacement, version_of
from detloss.compat.patches.transformers_detr import image_losses
from detloss.compat.patches.transformers_lw_detr import group_losses
from detloss.compat.patches.transformers_matching import matched_pairs
from detloss.compat.patches.transformers_rtdetr import dense_set_losses, set_losses

__all__ = ["plan"]

LEFT = {
    "transformers.loss.loss_for_object_detection.ImageLoss.loss_masks": "the masks of panoptic DETR; the rest is replaced",
    "transformers.loss.loss_deimv2.Deimv2Loss._get_dense_o2o_indices": "the union of matches, whose order among ties is theirs",
    "transformers.loss.loss_grounding_dino.GroundingDinoForObjectDetectionLoss": "its classes are tokens of a text",
    "transformers.loss.loss_rf_detr.RfDetrForSegmentationLoss": "it matches masks at random points; boxes alone are replaced",
}
# Fingerprints of transformers 5.24.0; "missing" stands for a method that the class inherits.
KNOWN: dict[str, tuple[str, ...]] = {
    "transformers.loss.loss_for_object_detection.ImageLoss.forward": ("be74b6522c02",),
    "transformers.loss.loss_rt_detr.RTDetrLoss.forward": ("742346f63618",),
    "transformers.loss.loss_deimv2.Deimv2Loss.forward": ("90f22e0bf046",),
    "transformers.loss.loss_lw_detr.LwDetrImageLoss.forward": ("a0551f96e48e",),
    "transformers.loss.loss_for_object_detection.HungarianMatcher.forward": ("058762fee07a",),
    "transformers.loss.loss_deformable_detr.DeformableDetrHungarianMatcher.forward": ("57d7c1bd3f40",),
    "transformers.loss.loss_rt_detr.RTDetrHungarianMatcher.forward": ("6e08449ef900",),
    "transformers.loss.loss_lw_detr.LwDetrHungarianMatcher.forward": ("c5d2baae16e7",),
    "transformers.loss.loss_for_object_detection.ImageLoss.loss_labels": ("0a4ffb9d5a20",),
    "transformers.loss.loss_for_object_detection.ImageLoss.loss_cardinality": ("91f437e363bc",),
    "transformers.loss.loss_for_object_detection.ImageLoss.loss_boxes": ("d0e7b95be934",),
    "transformers.loss.loss_for_object_detection.ImageLoss.get_loss": ("77b99481e68f",),
    "transformers.loss.loss_deformable_detr.DeformableDetrImageLoss.forward": ("missing",),
    "transformers.loss.loss_deformable_detr.DeformableDetrImageLoss.loss_labels": ("d334a185632a",),
    "transformers.loss.loss_deformable_detr.DeformableDetrImageLoss.loss_cardinality": ("03847cc11160",),
    "transformers.loss.loss_deformable_detr.DeformableDetrImageLoss.loss_boxes": ("missing",),
    "transformers.loss.loss_rt_detr.RTDetrLoss.loss_labels_vfl": ("31431bfd59e4",),
    "transformers.loss.loss_rt_detr.RTDetrLoss.loss_boxes": ("8ab313f01f57",),
    "transformers.loss.loss_rt_detr.RTDetrLoss.get_loss": ("88749b16df2f",),
    "transformers.loss.loss_rt_detr.RTDetrLoss.get_cdn_matched_indices": ("176d7de84360",),
    "transformers.loss.loss_d_fine.DFineLoss.forward": ("missing",),
    "transformers.loss.loss_d_fine.DFineLoss.loss_labels_vfl": ("missing",),
    "transformers.loss.loss_d_fine.DFineLoss.loss_boxes": ("missing",),
    "transformers.loss.loss_d_fine.DFineLoss.loss_local": ("1a37dcc5fb25",),
    "transformers.loss.loss_d_fine.DFineLoss.unimodal_distribution_focal_loss": ("0544b908e057",),
    "transformers.loss.loss_d_fine.DFineLoss.get_loss": ("a3ab082e350b",),
    "transformers.loss.loss_deimv2.Deimv2Loss.loss_labels_vfl": ("missing",),
    "transformers.loss.loss_deimv2.Deimv2Loss.loss_labels_mal": ("3ae9f0ddd02d",),
    "transformers.loss.loss_deimv2.Deimv2Loss.loss_boxes": ("missing",),
    "transformers.loss.loss_deimv2.Deimv2Loss.loss_local": ("missing",),
    "transformers.loss.loss_deimv2.Deimv2Loss._get_dense_o2o_indices": ("3ffd5131775c",),
    "transformers.loss.loss_deimv2.Deimv2Loss.get_loss": ("22144ed6d25d",),
    "transformers.loss.loss_lw_detr.LwDetrImageLoss.loss_labels": ("7e623a00e9d8",),
    "transformers.loss.loss_lw_detr.LwDetrImageLoss.loss_cardinality": ("03847cc11160",),
    "transformers.loss.loss_lw_detr.LwDetrImageLoss.loss_boxes": ("d0e7b95be934",),
    "transformers.loss.loss_lw_detr.LwDetrImageLoss.get_loss": ("77b99481e68f",),
    "transformers.loss.loss_d_fine.bbox2distance": ("b6635771593e",),
    "transformers.loss.loss_d_fine.translate_gt": ("9ae98767fb96",),
    "transformers.loss.loss_d_fine.weighting_function": ("1281e9bcc9c3",),
    "transformers.loss.loss_for_object_detection.sigmoid_focal_loss": ("bece2241e78b",),
    "transformers.loss.loss_for_object_detection.box_iou": ("776157f0fab9",),
    "transformers.loss.loss_for_object_detection.generalized_box_iou": ("19853fa159ea",),
    "transformers.image_transforms.center_to_corners_format": ("baa23b30ecbf",),
}


def plan() -> Plan:
    """The functions of the installed transformers, what replaces them, and the code that the replacements are equal to."""
    try:
        from transformers import image_transforms
        from transformers.loss import loss_d_fine as d_fine
        from transformers.loss import loss_deformable_detr as deformable
        from transformers.loss import loss_deimv2 as deimv2
        from transformers.loss import loss_for_object_detection as detr
        from transformers.loss import loss_lw_detr as lw_detr
        from transformers.loss import loss_rt_detr as rt_detr
    except ImportError as error:
        if error.name == "transformers" and isinstance(error, ModuleNotFoundError):
            raise
        raise PatchMismatchError(
            f"patch('transformers') does not know the installed transformers {version_of('transformers')}; nothing was changed. "
            f"It lacks a module that the patch expects: {error}"
        ) from error
    return Plan(
        framework="transformers",
        replacements=(
            Replacement(detr.ImageLoss, "forward", image_losses),
            Replacement(rt_detr.RTDetrLoss, "forward", set_losses),
            Replacement(deimv2.Deimv2Loss, "forward", dense_set_losses),
            Replacement(lw_detr.LwDetrImageLoss, "forward", group_losses),
            Replacement(detr.HungarianMatcher, "forward", matched_pairs),
            Replacement(deformable.DeformableDetrHungarianMatcher, "forward", matched_pairs),
            Replacement(rt_detr.RTDetrHungarianMatcher, "forward", matched_pairs),
            Replacement(lw_detr.LwDetrHungarianMatcher, "forward", matched_pairs),
        ),
        relied_on=(
            *((detr.ImageLoss, name) for name in ("loss_labels", "loss_cardinality", "loss_boxes", "get_loss")),
            *((deformable.DeformableDetrImageLoss, name) for name in (
                "forward", "loss_labels", "loss_cardinality", "loss_boxes",
            )),
            *((rt_detr.RTDetrLoss, name) for name in ("loss_labels_vfl", "loss_boxes", "get_loss", "get_cdn_matched_indices")),
            *((d_fine.DFineLoss, name) for name in (
                "forward", "loss_labels_vfl", "loss_boxes", "loss_local", "unimodal_distribution_focal_loss", "get_loss",
            )),
            *((deimv2.Deimv2Loss, name) for name in (
                "loss_labels_vfl", "loss_labels_mal", "loss_boxes", "loss_local", "_get_dense_o2o_indices", "get_loss",
            )),
            *((lw_detr.LwDetrImageLoss, name) for name in ("loss_labels", "loss_cardinality", "loss_boxes", "get_loss")),
            *((d_fine, name) for name in ("bbox2distance", "translate_gt", "weighting_function")),
            *((detr, name) for name in ("sigmoid_focal_loss", "box_iou", "generalized_box_iou")),
            (image_transforms, "center_to_corners_format"),
        ),
        known=KNOWN,
        left=LEFT,
    )  # fmt: skip
