"""``transformers.loss.loss_utils``: the losses of detectors by the name of the model that they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detloss.compat.transformers.loss.loss_d_fine import DFineForObjectDetectionLoss
from detloss.compat.transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from detloss.compat.transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, ForSegmentationLoss
from detloss.compat.transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

__all__ = ["LOSS_MAPPING"]

LOSS_MAPPING: dict[str, Callable[..., Any]] = {
    "ForSegmentation": ForSegmentationLoss,
    "ForObjectDetection": ForObjectDetectionLoss,
    "DeformableDetrForObjectDetection": DeformableDetrForObjectDetectionLoss,
    "ConditionalDetrForObjectDetection": DeformableDetrForObjectDetectionLoss,
    "DabDetrForObjectDetection": DeformableDetrForObjectDetectionLoss,
    "RTDetrForObjectDetection": RTDetrForObjectDetectionLoss,
    "RTDetrV2ForObjectDetection": RTDetrForObjectDetectionLoss,
    "DFineForObjectDetection": DFineForObjectDetectionLoss,
}
