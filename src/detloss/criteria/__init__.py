"""Whole criteria of detector families: predictions and targets in, a LossDict out."""

from detloss.criteria.base import Criterion, Matched, Term
from detloss.criteria.explain import Explanation, ObjectReport
from detloss.criteria.fcos import FCOSLoss
from detloss.criteria.multipart import MultiPartLoss

__all__ = ["Criterion", "Explanation", "FCOSLoss", "Matched", "MultiPartLoss", "ObjectReport", "Term"]
