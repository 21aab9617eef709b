"""The losses of torchvision, in :mod:`detloss.compat.torchvision.ops` as there, and here too."""

from detloss.compat.torchvision import ops
from detloss.compat.torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

__all__ = ["complete_box_iou_loss", "distance_box_iou_loss", "generalized_box_iou_loss", "ops", "sigmoid_focal_loss"]
