"""Losses as modules: ``loss(pred, target, weight=None, avg_factor=None, reduction_override=None)``."""

from detloss.losses.base import Loss
from detloss.losses.classification import CrossEntropyLoss, FocalLoss
from detloss.losses.distillation import KnowledgeDistillationKLDivLoss, LocalizationDistillationLoss
from detloss.losses.distribution import DistributionFocalLoss
from detloss.losses.focusing import AsymmetricLoss, Poly1FocalLoss
from detloss.losses.fused_linear import FusedLinearFocalLoss
from detloss.losses.gaussian_boxes import GWDLoss, KLDLoss, NWDLoss, ProbIoULoss
from detloss.losses.harmonized import GHMC, GHMR
from detloss.losses.iou import CIoULoss, DIoULoss, EIoULoss, GIoULoss, IoULoss, SIoULoss
from detloss.losses.iou_variants import (
    AlphaIoULoss,
    BoundedIoULoss,
    FocalEIoULoss,
    InnerIoULoss,
    MPDIoULoss,
    ShapeIoULoss,
    WIoULoss,
)
from detloss.losses.longtail import EQLv2Loss, FederatedLoss, SeesawLoss
from detloss.losses.mask import DiceLoss, MaskBCELoss, TverskyLoss
from detloss.losses.quality import CenternessLoss, GaussianFocalLoss, QualityFocalLoss, VarifocalLoss
from detloss.losses.ranking import ALRPLoss, APLoss, RankSortLoss
from detloss.losses.regression import BalancedL1Loss, L1Loss, MSELoss, SmoothL1Loss
from detloss.losses.robust import HuberLoss
from detloss.losses.segmentation import LovaszHingeLoss, MaskFocalLoss

__all__ = [
    "GHMC",
    "GHMR",
    "ALRPLoss",
    "APLoss",
    "AlphaIoULoss",
    "AsymmetricLoss",
    "BalancedL1Loss",
    "BoundedIoULoss",
    "CIoULoss",
    "CenternessLoss",
    "CrossEntropyLoss",
    "DIoULoss",
    "DiceLoss",
    "DistributionFocalLoss",
    "EIoULoss",
    "EQLv2Loss",
    "FederatedLoss",
    "FocalEIoULoss",
    "FocalLoss",
    "FusedLinearFocalLoss",
    "GIoULoss",
    "GWDLoss",
    "GaussianFocalLoss",
    "HuberLoss",
    "InnerIoULoss",
    "IoULoss",
    "KLDLoss",
    "KnowledgeDistillationKLDivLoss",
    "L1Loss",
    "LocalizationDistillationLoss",
    "Loss",
    "LovaszHingeLoss",
    "MPDIoULoss",
    "MSELoss",
    "MaskBCELoss",
    "MaskFocalLoss",
    "NWDLoss",
    "Poly1FocalLoss",
    "ProbIoULoss",
    "QualityFocalLoss",
    "RankSortLoss",
    "SIoULoss",
    "SeesawLoss",
    "ShapeIoULoss",
    "SmoothL1Loss",
    "TverskyLoss",
    "VarifocalLoss",
    "WIoULoss",
]
