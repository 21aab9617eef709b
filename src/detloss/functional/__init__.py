"""Losses as pure functions: ``x_loss(pred, target, *, <hyper-parameters>, weight=None, avg_factor=None, reduction="mean")``."""

from detloss.functional.classification import binary_cross_entropy_loss, cross_entropy_loss
from detloss.functional.distillation import kl_distillation_loss, localization_distillation_loss
from detloss.functional.distribution import distribution_focal_loss
from detloss.functional.federated import federated_loss, sample_federated_classes
from detloss.functional.focal import sigmoid_focal_loss, softmax_focal_loss
from detloss.functional.focusing import asymmetric_loss, poly1_focal_loss
from detloss.functional.fused_linear import fused_linear_sigmoid_loss
from detloss.functional.gaussian_boxes import gwd_loss, kld_loss, nwd_loss, probiou_loss
from detloss.functional.harmonized import ghm_classification_loss, ghm_regression_loss
from detloss.functional.iou import ciou_loss, diou_loss, eiou_loss, giou_loss, iou_loss, siou_loss
from detloss.functional.iou_variants import alpha_iou_loss, bounded_iou_loss, inner_iou_loss, mpdiou_loss, shape_iou_loss
from detloss.functional.iou_weighted import focal_eiou_loss, wiou_loss
from detloss.functional.longtail import class_balanced_weights, equalization_v2_loss, seesaw_loss
from detloss.functional.mask import dice_loss, mask_bce_loss, tversky_loss
from detloss.functional.quality import centerness_loss, gaussian_focal_loss, quality_focal_loss, varifocal_loss
from detloss.functional.ranking import alrp_loss, ap_loss, rank_sort_loss
from detloss.functional.regression import balanced_l1_loss, l1_loss, mse_loss, smooth_l1_loss
from detloss.functional.robust import huber_loss
from detloss.functional.segmentation import lovasz_hinge_loss, mask_focal_loss

__all__ = [
    "alpha_iou_loss",
    "alrp_loss",
    "ap_loss",
    "asymmetric_loss",
    "balanced_l1_loss",
    "binary_cross_entropy_loss",
    "bounded_iou_loss",
    "centerness_loss",
    "ciou_loss",
    "class_balanced_weights",
    "cross_entropy_loss",
    "dice_loss",
    "diou_loss",
    "distribution_focal_loss",
    "eiou_loss",
    "equalization_v2_loss",
    "federated_loss",
    "focal_eiou_loss",
    "fused_linear_sigmoid_loss",
    "gaussian_focal_loss",
    "ghm_classification_loss",
    "ghm_regression_loss",
    "giou_loss",
    "gwd_loss",
    "huber_loss",
    "inner_iou_loss",
    "iou_loss",
    "kl_distillation_loss",
    "kld_loss",
    "l1_loss",
    "localization_distillation_loss",
    "lovasz_hinge_loss",
    "mask_bce_loss",
    "mask_focal_loss",
    "mpdiou_loss",
    "mse_loss",
    "nwd_loss",
    "poly1_focal_loss",
    "probiou_loss",
    "quality_focal_loss",
    "rank_sort_loss",
    "sample_federated_classes",
    "seesaw_loss",
    "shape_iou_loss",
    "sigmoid_focal_loss",
    "siou_loss",
    "smooth_l1_loss",
    "softmax_focal_loss",
    "tversky_loss",
    "varifocal_loss",
    "wiou_loss",
]
