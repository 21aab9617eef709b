"""``mmdet.models.losses``: its losses that this engine has, by their names, signatures and defaults.

Not here: AssociativeEmbeddingLoss, DDQAuxLoss, ``isr_p`` and ``carl_loss``, which no detector of this package uses.
"""

from detloss.compat.mmdet.models.losses.accuracy import Accuracy, accuracy
from detloss.compat.mmdet.models.losses.cross_entropy import (
    CrossEntropyLoss,
    binary_cross_entropy,
    cross_entropy,
    mask_cross_entropy,
)
from detloss.compat.mmdet.models.losses.distillation import KnowledgeDistillationKLDivLoss, knowledge_distillation_kl_div_loss
from detloss.compat.mmdet.models.losses.embedding import L2Loss, MarginL2Loss, MultiPosCrossEntropyLoss, TripletLoss
from detloss.compat.mmdet.models.losses.extended_iou import EIoULoss, eiou_loss
from detloss.compat.mmdet.models.losses.focal import (
    FocalLoss,
    py_focal_loss_with_prob,
    py_sigmoid_focal_loss,
    sigmoid_focal_loss,
)
from detloss.compat.mmdet.models.losses.gaussian import (
    GaussianFocalLoss,
    gaussian_focal_loss,
    gaussian_focal_loss_with_pos_inds,
)
from detloss.compat.mmdet.models.losses.harmonized import GHMC, GHMR
from detloss.compat.mmdet.models.losses.iou import (
    BoundedIoULoss,
    CIoULoss,
    DIoULoss,
    GIoULoss,
    IoULoss,
    SIoULoss,
    bounded_iou_loss,
    ciou_loss,
    diou_loss,
    giou_loss,
    iou_loss,
    siou_loss,
)
from detloss.compat.mmdet.models.losses.long_tail import EQLV2Loss, SeesawLoss
from detloss.compat.mmdet.models.losses.mask import DiceLoss, dice_loss
from detloss.compat.mmdet.models.losses.quality import (
    DistributionFocalLoss,
    QualityFocalLoss,
    VarifocalLoss,
    distribution_focal_loss,
    quality_focal_loss,
    varifocal_loss,
)
from detloss.compat.mmdet.models.losses.reduction import reduce_loss, weight_reduce_loss, weighted_loss
from detloss.compat.mmdet.models.losses.regression import (
    BalancedL1Loss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
    balanced_l1_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)

__all__ = [
    "GHMC",
    "GHMR",
    "Accuracy",
    "BalancedL1Loss",
    "BoundedIoULoss",
    "CIoULoss",
    "CrossEntropyLoss",
    "DIoULoss",
    "DiceLoss",
    "DistributionFocalLoss",
    "EIoULoss",
    "EQLV2Loss",
    "FocalLoss",
    "GIoULoss",
    "GaussianFocalLoss",
    "IoULoss",
    "KnowledgeDistillationKLDivLoss",
    "L1Loss",
    "L2Loss",
    "MSELoss",
    "MarginL2Loss",
    "MultiPosCrossEntropyLoss",
    "QualityFocalLoss",
    "SIoULoss",
    "SeesawLoss",
    "SmoothL1Loss",
    "TripletLoss",
    "VarifocalLoss",
    "accuracy",
    "balanced_l1_loss",
    "binary_cross_entropy",
    "bounded_iou_loss",
    "ciou_loss",
    "cross_entropy",
    "dice_loss",
    "diou_loss",
    "distribution_focal_loss",
    "eiou_loss",
    "gaussian_focal_loss",
    "gaussian_focal_loss_with_pos_inds",
    "giou_loss",
    "iou_loss",
    "knowledge_distillation_kl_div_loss",
    "l1_loss",
    "mask_cross_entropy",
    "mse_loss",
    "py_focal_loss_with_prob",
    "py_sigmoid_focal_loss",
    "quality_focal_loss",
    "reduce_loss",
    "sigmoid_focal_loss",
    "siou_loss",
    "smooth_l1_loss",
    "varifocal_loss",
    "weight_reduce_loss",
    "weighted_loss",
]
