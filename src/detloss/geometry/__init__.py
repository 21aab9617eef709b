"""Boxes, overlaps and points: the geometry that losses, assigners and criteria share."""

from detloss.geometry.anchors import Anchors, base_anchors, grid_anchors
from detloss.geometry.boxes import box_to_distance, centerness, convert_boxes, distance_to_box, to_xyxy
from detloss.geometry.deltas import box_to_delta, delta_to_box
from detloss.geometry.gaussian import gaussian_heatmap, gaussian_radius
from detloss.geometry.iou import Overlap, overlap, pairwise_iou
from detloss.geometry.points import Points, grid_points

__all__ = [
    "Anchors",
    "Overlap",
    "Points",
    "base_anchors",
    "box_to_delta",
    "box_to_distance",
    "centerness",
    "convert_boxes",
    "delta_to_box",
    "distance_to_box",
    "gaussian_heatmap",
    "gaussian_radius",
    "grid_anchors",
    "grid_points",
    "overlap",
    "pairwise_iou",
    "to_xyxy",
]
