"""The Hungarian matchers of transformers' detectors, on this engine: same arguments, same pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.hungarian import HungarianAssigner
from detloss.compat.patches.detr_layers import Truth, match_layers

__all__ = ["Labels", "alike", "assigner_of", "match_groups", "matched_pairs", "pairs_by_image", "stock_name"]

Function = Callable[..., Any]
Labels = Sequence[Mapping[str, Tensor]]
Pairs = list[tuple[Tensor, Tensor]]
COSTS = ("class_cost", "bbox_cost", "giou_cost")


def matched_pairs(original: Function) -> Function:
    """``forward`` of a matcher: costs of the queries of an image with its own objects only.

    That of LW-DETR has the further argument ``group_detr``, a number of groups of queries that are matched one by one.
    """

    @torch.no_grad()
    def forward(self: Any, outputs: Mapping[str, Tensor], targets: Labels, *group_detr: int, **groups: int) -> Any:
        assigner, logits = assigner_of(self), outputs["logits"]
        number = sum((*group_detr, *groups.values())) or 1
        if assigner is None or logits.shape[1] % number:
            return original(self, outputs, targets, *group_detr, **groups)
        truth = Truth.of(targets, outputs["pred_boxes"])
        index = match_groups(assigner, logits.unsqueeze(0), outputs["pred_boxes"].unsqueeze(0), truth, number)
        return pairs_by_image(index)[0]

    return forward


def match_groups(assigner: HungarianAssigner, scores: Tensor, boxes: Tensor, truth: Truth, groups: int) -> Tensor:
    """As :func:`match_layers`, each of ``groups`` equal parts of the queries on its own."""
    layers, images, queries = scores.shape[:3]

    def apart(x: Tensor) -> Tensor:
        return x.reshape(layers, images, groups, queries // groups, -1).transpose(1, 2).flatten(0, 1)

    index = match_layers(assigner, apart(scores), apart(boxes), truth)
    return index.reshape(layers, groups, images, -1).transpose(1, 2).reshape(layers, images, queries)


def assigner_of(matcher: Any) -> HungarianAssigner | None:
    """The assigner that is equal to a matcher of transformers; ``None`` for classes of others, and for negative costs."""
    name, alpha, gamma = stock_name(matcher), 0.25, 2.0
    if name in ("HungarianMatcher", "DeformableDetrHungarianMatcher", "LwDetrHungarianMatcher"):
        focal = name != "HungarianMatcher"
    elif name == "RTDetrHungarianMatcher":
        focal, alpha, gamma = matcher.use_focal_loss, matcher.alpha, matcher.gamma
    else:
        return None
    numbers = [getattr(matcher, cost) for cost in COSTS]
    if any(not isinstance(number, Real) or number < 0 for number in (*numbers, alpha, gamma)) or alpha > 1:
        return None
    classes, l1, iou = map(float, numbers)
    return HungarianAssigner("focal" if focal else "softmax", classes, l1, iou, alpha=alpha, gamma=gamma)


def stock_name(thing: Any) -> str:
    """The name of the class of ``thing`` if transformers' loss folder defines it, else nothing."""
    kind = type(thing)
    return kind.__name__ if kind.__module__.startswith("transformers.loss.") else ""


def alike(layers: Sequence[Mapping[str, Tensor]], keys: Sequence[str]) -> bool:
    """Whether every layer has tensors of the same shape and dtype under ``keys``."""
    return all(
        isinstance(layer.get(key), Tensor)
        and (layer[key].shape, layer[key].dtype) == (layers[0][key].shape, layers[0][key].dtype)
        for key in keys
        for layer in layers
    )


def pairs_by_image(index: Tensor) -> list[Pairs]:
    """Per layer of ``index [L, B, Q]`` and image: queries in order and their objects, on the host, as SciPy gives them."""
    found = []
    for layer in index.cpu():
        queries = [row.ge(0).nonzero().squeeze(1) for row in layer]
        found.append([(query, row[query]) for query, row in zip(queries, layer, strict=True)])
    return found
