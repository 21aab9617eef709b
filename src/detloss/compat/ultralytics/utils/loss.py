"""``ultralytics.utils.loss``: the losses and criteria of its detection models.

What differs: fp16 and bf16 are computed and returned in fp32, float64 stays float64; a mean over no classes is 0; the
overlaps are those of :mod:`detloss.compat.ultralytics.utils.metrics`. As there, the scores of this rank alone are counted.
"""

from detloss.compat.ultralytics.utils.detection import E2ELoss, v8DetectionLoss
from detloss.compat.ultralytics.utils.elementary import BboxLoss, DFLoss, FocalLoss, VarifocalLoss

__all__ = ["BboxLoss", "DFLoss", "E2ELoss", "FocalLoss", "VarifocalLoss", "v8DetectionLoss"]
