"""Target assignment: which location is responsible for which object. One interface, one frozen result."""

from detloss.assigners.atss import ATSSAssigner
from detloss.assigners.fcos import FCOSAssigner, default_regress_ranges
from detloss.assigners.targets import PaddedTargets, pad_targets

__all__ = ["ATSSAssigner", "FCOSAssigner", "PaddedTargets", "default_regress_ranges", "pad_targets"]
