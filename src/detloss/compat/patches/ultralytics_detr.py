"""The loss of ultralytics' RT-DETR, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.hungarian import HungarianAssigner
from detloss.checks import upcast
from detloss.compat.patches.detr_layers import Truth, class_labels, match_layers, matched_iou, pair_terms
from detloss.functional.quality import varifocal_loss
from detloss.types import Target

__all__ = ["detr_loss", "objects_of_queries", "rtdetr_targets"]

Function = Callable[..., Any]
KINDS = ("class", "bbox", "giou")
SMALLEST_QUALITY = 1e-30  # of a pair that does not overlap: 0 would make a negative of it


def detr_loss(original: Function) -> Function:
    """``RTDETRDetectionLoss.forward``: all layers at once, no table of all queries with the objects of all images."""

    def forward(
        self: Any,
        preds: tuple[Tensor, Tensor],
        batch: Mapping[str, Any],
        dn_bboxes: Tensor | None = None,
        dn_scores: Tensor | None = None,
        dn_meta: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        assigner = _assigner(self)
        # Without any object they charge another loss of the classes.
        if assigner is None or not sum(batch["gt_groups"]):
            found: dict[str, Tensor] = original(self, preds, batch, dn_bboxes, dn_scores, dn_meta)
            return found
        boxes, scores = (upcast(x) for x in preds)
        truth = Truth.of([{"boxes": t["boxes"], "class_labels": t["labels"]} for t in rtdetr_targets(batch)], boxes)
        terms = _layers(self, boxes, scores, match_layers(assigner, scores, boxes, truth), truth)
        if dn_meta is None or dn_scores is None or dn_bboxes is None:
            return terms | {f"{name}_dn": torch.zeros_like(term) for name, term in terms.items()}
        index = objects_of_queries(dn_meta, batch["gt_groups"], dn_scores).expand(len(dn_scores), -1, -1)
        denoising = _layers(self, upcast(dn_bboxes), upcast(dn_scores), index, truth)
        return terms | {f"{name}_dn": term for name, term in denoising.items()}

    return forward


def _assigner(loss: Any) -> HungarianAssigner | None:
    """The assigner with the settings of their matcher; ``None`` where they have no counterpart."""
    matcher = loss.matcher
    if not (loss.fl and loss.vfl and loss.aux_loss) or loss.use_uni_match or type(matcher).__name__ != "HungarianMatcher":
        return None
    if not matcher.use_fl:
        return None
    costs = matcher.cost_gain
    return HungarianAssigner("focal", costs["class"], costs["bbox"], costs["giou"], alpha=matcher.alpha, gamma=matcher.gamma)


def rtdetr_targets(batch: Mapping[str, Any]) -> list[Target]:
    """The objects of a batch by image, (cx, cy, w, h) in units of the image."""
    groups: Sequence[int] = batch["gt_groups"]
    parts = zip(batch["bboxes"].split(groups), batch["cls"].reshape(-1).long().split(groups), strict=True)
    return [{"boxes": boxes, "labels": labels} for boxes, labels in parts]


def _layers(loss: Any, boxes: Tensor, scores: Tensor, index: Tensor, truth: Truth) -> dict[str, Tensor]:
    """Terms of the last layer and of the others together, of matched layers ``[L, B, Q, …]``, by their names."""
    pairs = (index[-1] >= 0).sum().clamp(min=1).to(boxes.dtype)  # as many in every layer
    labels = class_labels(index, truth, loss.nc)
    quality = torch.where(index >= 0, matched_iou(boxes.detach(), index, truth).clamp(SMALLEST_QUALITY, 1), 0.0)
    distance, shared = pair_terms(boxes, index, truth)
    found = {}
    for suffix, layers in (("", slice(-1, None)), ("_aux", slice(None, -1))):
        target = labels[layers].flatten(), quality[layers].flatten()
        options = {"alpha": loss.vfl.alpha, "gamma": loss.vfl.gamma, "reduction": "sum"}
        classes = varifocal_loss(scores[layers].flatten(0, 2), target, **options)
        terms = classes, distance[layers].sum(), shared[layers].sum()
        for kind, term in zip(KINDS, terms, strict=True):
            found[f"loss_{kind}{suffix}"] = term * (loss.loss_gain[kind] / pairs)
    return found


def objects_of_queries(meta: Mapping[str, Any], groups: Sequence[int], scores: Tensor) -> Tensor:
    """``[B, N]`` object of its image that each denoising query reconstructs; −1 for those that should find nothing."""
    index = torch.full(scores.shape[1:3], -1, dtype=torch.long, device=scores.device)
    start = 0
    for image, (place, objects) in enumerate(zip(meta["dn_pos_idx"], meta["dn_gt_idx"], strict=True)):
        index[image, place.to(index.device)] = (objects.to(index.device) - start).repeat(meta["dn_num_group"])
        start += groups[image]
    return index
