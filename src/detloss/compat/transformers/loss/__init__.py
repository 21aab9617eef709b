"""``transformers.loss``: the matchers and criteria of DETR, Deformable DETR, RT-DETR and D-FINE."""

from detloss.compat.transformers.loss import (
    loss_d_fine,
    loss_deformable_detr,
    loss_for_object_detection,
    loss_rt_detr,
    loss_utils,
)

__all__ = ["loss_d_fine", "loss_deformable_detr", "loss_for_object_detection", "loss_rt_detr", "loss_utils"]
