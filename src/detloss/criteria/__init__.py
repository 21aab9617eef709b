"""Whole criteria of detector families: predictions and targets in, a LossDict out."""

from detloss.criteria.atss import ATSSLoss
from detloss.criteria.base import Criterion, Matched, Term
from detloss.criteria.centernet import CenterNetLoss
from detloss.criteria.detr import DETRLoss
from detloss.criteria.explain import Explanation, ObjectReport
from detloss.criteria.fcos import FCOSLoss
from detloss.criteria.gfl import GFLLoss
from detloss.criteria.mask_head import MaskHeadLoss
from detloss.criteria.mask_rcnn import MaskRCNNLoss
from detloss.criteria.multipart import MultiPartLoss
from detloss.criteria.retinanet import RetinaNetLoss
from detloss.criteria.roi_head import RoIHeadLoss
from detloss.criteria.roi_samples import RoISamples
from detloss.criteria.rpn import RPNLoss
from detloss.criteria.yolov8 import YOLOv8Loss
from detloss.criteria.yolox import YOLOXLoss

__all__ = [
    "ATSSLoss",
    "CenterNetLoss",
    "Criterion",
    "DETRLoss",
    "Explanation",
    "FCOSLoss",
    "GFLLoss",
    "MaskHeadLoss",
    "MaskRCNNLoss",
    "Matched",
    "MultiPartLoss",
    "ObjectReport",
    "RPNLoss",
    "RetinaNetLoss",
    "RoIHeadLoss",
    "RoISamples",
    "Term",
    "YOLOXLoss",
    "YOLOv8Loss",
]
