"""detloss: the loss side of object detection for PyTorch.

Losses behind one small API, the target assignment that feeds them, and whole criteria for detector families.
Importing it needs PyTorch and nothing else.
"""

from typing import TYPE_CHECKING

from detloss import functional, geometry, kernels
from detloss.assigners import (
    ATSSAssigner,
    BalancedSampler,
    DynamicSoftLabelAssigner,
    FCOSAssigner,
    HardExampleSampler,
    HardNegativeSampler,
    HungarianAssigner,
    MaxIoUAssigner,
    PseudoSampler,
    RandomSampler,
    SimOTAAssigner,
    TaskAlignedAssigner,
)
from detloss.criteria import (
    ATSSLoss,
    CenterNetLoss,
    Criterion,
    DETRLoss,
    FCOSLoss,
    GFLLoss,
    MaskHeadLoss,
    MaskRCNNLoss,
    MultiPartLoss,
    RetinaNetLoss,
    RoIHeadLoss,
    RPNLoss,
    YOLOv8Loss,
    YOLOXLoss,
)
from detloss.losses import (
    GHMC,
    GHMR,
    AlphaIoULoss,
    ALRPLoss,
    APLoss,
    AsymmetricLoss,
    BalancedL1Loss,
    BoundedIoULoss,
    CenternessLoss,
    CIoULoss,
    CrossEntropyLoss,
    DiceLoss,
    DIoULoss,
    DistributionFocalLoss,
    EIoULoss,
    EQLv2Loss,
    FederatedLoss,
    FocalEIoULoss,
    FocalLoss,
    FusedLinearFocalLoss,
    GaussianFocalLoss,
    GIoULoss,
    GWDLoss,
    HuberLoss,
    InnerIoULoss,
    IoULoss,
    KLDLoss,
    KnowledgeDistillationKLDivLoss,
    L1Loss,
    LocalizationDistillationLoss,
    Loss,
    LovaszHingeLoss,
    MaskBCELoss,
    MaskFocalLoss,
    MPDIoULoss,
    MSELoss,
    NWDLoss,
    Poly1FocalLoss,
    ProbIoULoss,
    QualityFocalLoss,
    RankSortLoss,
    SeesawLoss,
    ShapeIoULoss,
    SIoULoss,
    SmoothL1Loss,
    TverskyLoss,
    VarifocalLoss,
    WIoULoss,
)
from detloss.reduction import global_count, reduce_loss
from detloss.registry import ASSIGNERS, CRITERIA, LOSSES, build, list_losses
from detloss.types import Assignment, LossDict
from detloss.values import set_value_checks

if TYPE_CHECKING:
    from detloss.compat.patches import Patch

__version__ = "0.1.0"


def patch(framework: str) -> "Patch":
    """Let an installed framework compute its losses and assignments here; see :func:`detloss.compat.patches.patch`."""
    from detloss.compat.patches import patch as apply

    return apply(framework)


def unpatch(framework: str | None = None) -> None:
    """Put the original functions of a framework back, or of all; see :func:`detloss.compat.patches.unpatch`."""
    from detloss.compat.patches import unpatch as remove

    remove(framework)


__all__ = [
    "ASSIGNERS",
    "CRITERIA",
    "GHMC",
    "GHMR",
    "LOSSES",
    "ALRPLoss",
    "APLoss",
    "ATSSAssigner",
    "ATSSLoss",
    "AlphaIoULoss",
    "Assignment",
    "AsymmetricLoss",
    "BalancedL1Loss",
    "BalancedSampler",
    "BoundedIoULoss",
    "CIoULoss",
    "CenterNetLoss",
    "CenternessLoss",
    "Criterion",
    "CrossEntropyLoss",
    "DETRLoss",
    "DIoULoss",
    "DiceLoss",
    "DistributionFocalLoss",
    "DynamicSoftLabelAssigner",
    "EIoULoss",
    "EQLv2Loss",
    "FCOSAssigner",
    "FCOSLoss",
    "FederatedLoss",
    "FocalEIoULoss",
    "FocalLoss",
    "FusedLinearFocalLoss",
    "GFLLoss",
    "GIoULoss",
    "GWDLoss",
    "GaussianFocalLoss",
    "HardExampleSampler",
    "HardNegativeSampler",
    "HuberLoss",
    "HungarianAssigner",
    "InnerIoULoss",
    "IoULoss",
    "KLDLoss",
    "KnowledgeDistillationKLDivLoss",
    "L1Loss",
    "LocalizationDistillationLoss",
    "Loss",
    "LossDict",
    "LovaszHingeLoss",
    "MPDIoULoss",
    "MSELoss",
    "MaskBCELoss",
    "MaskFocalLoss",
    "MaskHeadLoss",
    "MaskRCNNLoss",
    "MaxIoUAssigner",
    "MultiPartLoss",
    "NWDLoss",
    "Poly1FocalLoss",
    "ProbIoULoss",
    "PseudoSampler",
    "QualityFocalLoss",
    "RPNLoss",
    "RandomSampler",
    "RankSortLoss",
    "RetinaNetLoss",
    "RoIHeadLoss",
    "SIoULoss",
    "SeesawLoss",
    "ShapeIoULoss",
    "SimOTAAssigner",
    "SmoothL1Loss",
    "TaskAlignedAssigner",
    "TverskyLoss",
    "VarifocalLoss",
    "WIoULoss",
    "YOLOXLoss",
    "YOLOv8Loss",
    "build",
    "functional",
    "geometry",
    "global_count",
    "kernels",
    "list_losses",
    "patch",
    "reduce_loss",
    "set_value_checks",
    "unpatch",
]
