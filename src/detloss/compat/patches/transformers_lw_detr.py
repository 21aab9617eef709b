"""The criterion of transformers' LW-DETR and RF-DETR (boxes), on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from detloss.checks import upcast
from detloss.compat.patches.detr_layers import class_labels, matched_iou
from detloss.compat.patches.transformers_detr import LayerSet, by_layer
from detloss.compat.patches.transformers_matching import Labels, alike, assigner_of, match_groups, stock_name
from detloss.functional.classification import binary_cross_entropy_loss
from detloss.functional.focal import sigmoid_focal_loss
from detloss.reduction import sum_over_ranks

__all__ = ["group_losses"]

Function = Callable[..., Any]
LOSSES = {"labels", "boxes", "cardinality"}
LEAST_QUALITY = 0.01


def group_losses(original: Function) -> Function:
    """``LwDetrImageLoss.forward``: all layers and groups of queries matched in one call."""

    def forward(self: Any, outputs: Mapping[str, Any], targets: Labels) -> Any:
        auxiliary = list(outputs.get("auxiliary_outputs", ()))
        layers = [outputs, *auxiliary, *([outputs["enc_outputs"]] if "enc_outputs" in outputs else [])]
        groups, assigner = self.group_detr if self.training else 1, assigner_of(self.matcher)
        known = stock_name(self) == "LwDetrImageLoss" and set(self.losses) <= LOSSES and 0 <= self.focal_alpha <= 1
        if assigner is None or not known or not alike(layers, ("logits", "pred_boxes")):
            return original(self, outputs, targets)
        if outputs["logits"].shape[1] % groups or outputs["logits"].shape[2] != self.num_classes:
            return original(self, outputs, targets)
        scene = LayerSet.of(layers, targets)
        index = match_groups(assigner, scene.logits, scene.boxes.detach(), scene.truth, groups)
        number = _objects_per_rank(groups * sum(len(target["class_labels"]) for target in targets), index.device)
        suffixes = ["", *(f"_{k}" for k in range(len(auxiliary))), "_enc"]
        return by_layer(scene.terms(self, index, number, _class_terms), suffixes[: len(layers)])

    return forward


def _objects_per_rank(number: int, device: torch.device) -> float | Tensor:
    """What the terms are divided by, averaged over ranks, at least 1."""
    if not dist.is_available() or not dist.is_initialized():
        return max(float(number), 1.0)
    total = sum_over_ranks(torch.tensor(float(number), device=device))
    return (total / dist.get_world_size()).clamp(min=1)


def _class_terms(criterion: Any, scene: LayerSet, index: Tensor, number: float | Tensor) -> list[Tensor]:
    """BCE(x, q) in the column of a query's class, q = max(σ(x)^α IoU^(1−α), 0.01) held constant; σ(x)² BCE(x, 0) elsewhere."""
    alpha, found = criterion.focal_alpha, []
    labels = class_labels(index, scene.truth, criterion.num_classes)
    for layer, label, score in zip(scene.layers, labels, matched_iou(scene.boxes.detach(), index, scene.truth), strict=True):
        image, query = (label < criterion.num_classes).nonzero(as_tuple=True)
        logits = upcast(layer["logits"])
        own = logits[image, query, label[image, query]]
        quality = own.detach().sigmoid().pow(alpha) * score[image, query].to(own.dtype).pow(1 - alpha)
        # With alpha = 0 the focal loss is 0 in the column of the class.
        others = sigmoid_focal_loss(logits.flatten(0, 1), label.flatten(), alpha=0.0, reduction="sum")
        found.append((others + binary_cross_entropy_loss(own, quality.clamp(min=LEAST_QUALITY), reduction="sum")) / number)
    return found
