"""Target assignment: which location is responsible for which object. One interface, one frozen result."""

from detloss.assigners.atss import ATSSAssigner
from detloss.assigners.base import Assigner
from detloss.assigners.dynamic_soft_label import DynamicSoftLabelAssigner
from detloss.assigners.fcos import FCOSAssigner, default_regress_ranges
from detloss.assigners.hungarian import HungarianAssigner
from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.assigners.samplers import (
    BalancedSampler,
    HardExampleSampler,
    HardNegativeSampler,
    PseudoSampler,
    RandomSampler,
    Sampler,
)
from detloss.assigners.simota import SimOTAAssigner
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.assigners.task_aligned import TaskAlignedAssigner

__all__ = [
    "ATSSAssigner",
    "Assigner",
    "BalancedSampler",
    "DynamicSoftLabelAssigner",
    "FCOSAssigner",
    "HardExampleSampler",
    "HardNegativeSampler",
    "HungarianAssigner",
    "MaxIoUAssigner",
    "PaddedTargets",
    "PseudoSampler",
    "RandomSampler",
    "Sampler",
    "SimOTAAssigner",
    "TaskAlignedAssigner",
    "default_regress_ranges",
    "pad_targets",
]
