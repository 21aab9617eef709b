"""The settings of transformers' DETR models as options of the criterion."""

from __future__ import annotations

from typing import Any

from detloss.assigners.hungarian import HungarianAssigner

__all__ = ["RT_DETR", "SINGLE_COLUMNS", "WITH_BACKGROUND", "settings_of"]

WITH_BACKGROUND = ("DetrForObjectDetection", "TableTransformerForObjectDetection", "YolosForObjectDetection")
SINGLE_COLUMNS = (
    "ConditionalDetrForObjectDetection",
    "DabDetrForObjectDetection",
    "DeformableDetrForObjectDetection",
)
RT_DETR = ("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection")


def settings_of(name: str, config: Any, chosen: bool) -> dict[str, Any]:
    """Options of DETRLoss from the configuration of a model.

    Args:
        name: name of the class of the model.
        config: its configuration.
        chosen: the user has chosen a loss of the classes; the cost of the classes then follows from that.
    """
    if name in RT_DETR:
        costs = (config.matcher_class_cost, config.matcher_bbox_cost, config.matcher_giou_cost)
        weights = (config.weight_loss_vfl, config.weight_loss_bbox, config.weight_loss_giou)
        loss = {"type": "MatchedVarifocalLoss", "alpha": config.focal_loss_alpha, "gamma": config.focal_loss_gamma}
        assigner = HungarianAssigner("focal", *costs, alpha=config.matcher_alpha, gamma=config.matcher_gamma)
    else:
        costs = (config.class_cost, config.bbox_cost, config.giou_cost)
        weights = (1.0, config.bbox_loss_coefficient, config.giou_loss_coefficient)
        if name in WITH_BACKGROUND:
            loss, assigner = {"type": "CrossEntropyLoss"}, HungarianAssigner("softmax", *costs)
        else:
            loss, assigner = {"type": "FocalLoss", "alpha": config.focal_alpha}, HungarianAssigner("focal", *costs)
    known = {
        "num_classes": int(config.num_labels),
        "target_format": "cxcywh_normalized",
        "weights": dict(zip(("loss_cls", "loss_box", "loss_iou"), map(float, weights), strict=True)),
    }
    if name in WITH_BACKGROUND:
        known["no_object_weight"] = config.eos_coefficient
    if chosen and name in WITH_BACKGROUND:
        return known
    return {**known, "loss_cls": loss, "assigner": assigner}
