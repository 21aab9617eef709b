"""Whole criteria of detector families: predictions and targets in, a LossDict out."""

from detloss.criteria.atss import ATSSLoss
from detloss.criteria.base import Criterion, Matched, Term
from detloss.criteria.explain import Explanation, ObjectReport
from detloss.criteria.fcos import FCOSLoss
from detloss.criteria.gfl import GFLLoss
from detloss.criteria.multipart import MultiPartLoss
from detloss.criteria.retinanet import RetinaNetLoss

__all__ = [
    "ATSSLoss",
    "Criterion",
    "Explanation",
    "FCOSLoss",
    "GFLLoss",
    "Matched",
    "MultiPartLoss",
    "ObjectReport",
    "RetinaNetLoss",
    "Term",
]
