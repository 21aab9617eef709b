"""Decoder layers of a set-prediction detector side by side: matched in one call, compared pair by pair, summed per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.assigners.hungarian import HungarianAssigner, repeat_targets
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import upcast
from detloss.functional.iou import giou_loss
from detloss.functional.regression import l1_loss
from detloss.geometry.boxes import to_xyxy
from detloss.geometry.iou import overlap

__all__ = ["Truth", "class_labels", "match_layers", "matched_iou", "pair_terms", "quality_sum"]


@dataclass(frozen=True)
class Truth:
    """The objects of B images in units of their image: ``padded`` corners, and the same as (cx, cy, w, h) ``[B, G, 4]``."""

    padded: PaddedTargets
    boxes: Tensor

    @classmethod
    def of(cls, labels: Sequence[Mapping[str, Tensor]], like: Tensor) -> Truth:
        """From transformers' labels: ``boxes`` (cx, cy, w, h) and ``class_labels`` per image."""
        like = like.detach().float() if like.element_size() < 4 else like.detach()
        given = pad_targets([{"boxes": to_xyxy(t["boxes"], "cxcywh"), "labels": t["class_labels"]} for t in labels], like)
        boxes = torch.nn.utils.rnn.pad_sequence([t["boxes"].to(like).reshape(-1, 4) for t in labels], batch_first=True)
        return cls(given, boxes)

    @property
    def counts(self) -> Tensor:
        """``[B]`` number of objects."""
        return self.padded.valid.sum(1)

    @property
    def number(self) -> Tensor:
        """Number of all objects, a float tensor with one element."""
        return self.padded.valid.sum().to(self.boxes.dtype).reshape(1)

    def denoising_index(self, places: Sequence[Tensor], groups: int, shape: Sequence[int]) -> Tensor:
        """``[L, B, N]`` object that each denoising query reconstructs; −1 for those that should find nothing.

        Args:
            places: per image the queries of its objects, ``groups`` times all of them.
            groups: number of groups.
            shape: (L, B, N, …).
        """
        index = torch.full(tuple(shape[1:3]), -1, dtype=torch.long, device=self.boxes.device)
        for own, place in zip(index, places, strict=True):
            if len(place):
                own[place.to(own.device)] = torch.arange(len(place) // groups, device=own.device).repeat(groups)
        return index.expand(shape[0], -1, -1)


@torch.no_grad()
def match_layers(assigner: HungarianAssigner, scores: Tensor, boxes: Tensor, truth: Truth) -> Tensor:
    """``[L, B, Q]`` object of every query of ``scores [L, B, Q, C]`` and ``boxes [L, B, Q, 4]``; −1 for none."""
    layers = len(scores)
    corners = to_xyxy(boxes.detach().to(truth.boxes.dtype), "cxcywh").flatten(0, 1)
    found = assigner(None, repeat_targets(truth.padded, layers), scores.detach().flatten(0, 1), corners)
    return found.gt_index.unflatten(0, (layers, -1))


def class_labels(index: Tensor, truth: Truth, background: int) -> Tensor:
    """``[L, B, Q]`` class of the object of every query; ``background`` for none."""
    if not truth.padded.labels.shape[1]:
        return torch.full_like(index, background)
    labels = truth.padded.labels.expand(len(index), -1, -1).gather(2, index.clamp(min=0))
    return torch.where(index >= 0, labels, background)


def pair_terms(boxes: Tensor, index: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    """``[L]`` Σ |b − b*| of (cx, cy, w, h) and Σ (1 − GIoU) over the pairs of every layer."""
    layer, image, query = (index >= 0).nonzero(as_tuple=True)
    pred, true = boxes[layer, image, query], truth.boxes[image, index[layer, image, query]]
    distance = l1_loss(pred, true, reduction="none").sum(1)
    shared = giou_loss(pred, true, box_format="cxcywh", reduction="none")
    nothing = distance.new_zeros(len(index))
    return nothing.index_add(0, layer, distance), nothing.index_add(0, layer, shared.to(distance.dtype))


@torch.no_grad()
def matched_iou(boxes: Tensor, index: Tensor, truth: Truth) -> Tensor:
    """``[L, B, Q]`` IoU of every query with its object; 0 for none."""
    layer, image, query = (index >= 0).nonzero(as_tuple=True)
    pred, true = boxes[layer, image, query].to(truth.boxes.dtype), truth.boxes[image, index[layer, image, query]]
    iou = torch.zeros(index.shape, dtype=truth.boxes.dtype, device=index.device)
    iou[layer, image, query] = overlap(pred, true, "cxcywh").iou.nan_to_num()
    return iou


def quality_sum(logits: Tensor, labels: Tensor, target: Tensor, weight: Tensor, alpha: float, gamma: float) -> Tensor:
    """Σ w BCE(x, t) in the column of a query's class, α σ(x)^γ BCE(x, 0) in all others; the factors have no gradient.

    Args:
        logits: ``[B, Q, C]``.
        labels: ``[B, Q]`` classes; C for no object.
        target: ``[B, Q]`` t of the column of the class.
        weight: ``[B, Q]`` w of that column.
        alpha: α.
        gamma: γ.
    """
    logits = upcast(logits)
    with torch.no_grad():
        factor = logits.sigmoid().pow_(gamma).mul_(alpha)
        goal = torch.zeros_like(factor)
        image, query = (labels < logits.shape[-1]).nonzero(as_tuple=True)
        own = (image, query, labels[image, query])
        factor[own], goal[own] = weight[image, query].to(factor.dtype), target[image, query].to(factor.dtype)
    return torch_f.binary_cross_entropy_with_logits(logits, goal, factor, reduction="sum")
