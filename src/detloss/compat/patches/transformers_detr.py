"""The criteria of transformers' DETR, YOLOS, Table Transformer and Deformable, Conditional, DAB-DETR: same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from detloss.compat.patches.detr_layers import Truth, class_labels, match_layers, pair_terms
from detloss.compat.patches.transformers_matching import Labels, alike, assigner_of, pairs_by_image, stock_name
from detloss.functional.classification import cross_entropy_loss
from detloss.functional.focal import sigmoid_focal_loss

__all__ = ["LayerSet", "by_layer", "image_losses"]

Function = Callable[..., Any]
Layers = Sequence[Mapping[str, Tensor]]
ClassTerms: TypeAlias = "Callable[[Any, LayerSet, Tensor, float | Tensor], Sequence[Tensor]]"
SOFTMAX, FOCAL = "ImageLoss", "DeformableDetrImageLoss"
LOSSES = {"labels", "boxes", "cardinality", "masks"}


def image_losses(original: Function) -> Function:
    """``ImageLoss.forward``, which ``DeformableDetrImageLoss`` inherits: all layers matched in one call."""

    def forward(self: Any, outputs: Mapping[str, Any], targets: Labels) -> Any:
        layers = [outputs, *outputs.get("auxiliary_outputs", ())]
        assigner = assigner_of(self.matcher)
        if assigner is None or not _covered(self, layers):
            return original(self, outputs, targets)
        scene = LayerSet.of(layers, targets)
        index = match_layers(assigner, scene.logits, scene.boxes, scene.truth)
        number = _objects_per_rank(targets, index.device)
        terms = scene.terms(self, index, number, _class_terms)
        if "masks" in self.losses:  # of the last layer only
            masks = self.loss_masks(outputs, targets, pairs_by_image(index[:1])[0], number)
            terms |= {name: (value,) for name, value in masks.items()}
        return by_layer(terms, ["", *(f"_{k}" for k in range(len(layers) - 1))])

    return forward


@dataclass(frozen=True)
class LayerSet:
    """L layers of one shape, their logits side by side without gradient and their boxes with it, and the objects."""

    layers: Layers
    logits: Tensor
    boxes: Tensor
    truth: Truth

    @classmethod
    def of(cls, layers: Layers, targets: Labels) -> LayerSet:
        """From the outputs of the layers and the labels as a model gets them."""
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])
        return cls(layers, torch.stack([layer["logits"].detach() for layer in layers]), boxes, Truth.of(targets, boxes))

    def terms(
        self, criterion: Any, index: Tensor, number: float | Tensor, class_terms: ClassTerms
    ) -> dict[str, Sequence[Tensor]]:
        """Name → one value per layer, of the losses that the criterion lists, masks left out.

        Args:
            criterion: theirs.
            index: ``[L, B, Q]`` object of every query; −1 for none.
            number: divides the terms.
            class_terms: (criterion, layers, index, number) → ``loss_ce`` of every layer.
        """
        found: dict[str, Sequence[Tensor]] = {}
        for loss in criterion.losses:
            if loss == "labels":
                found["loss_ce"] = class_terms(criterion, self, index, number)
            elif loss == "boxes":
                distance, shared = pair_terms(self.boxes, index, self.truth)
                found |= {"loss_bbox": (distance / number).unbind(), "loss_giou": (shared / number).unbind()}
            elif loss == "cardinality":
                found["cardinality_error"] = self._count_errors(stock_name(criterion) == SOFTMAX).unbind()
        return found

    @torch.no_grad()
    def _count_errors(self, softmax: bool) -> Tensor:
        """``[L]`` mean over images of |queries that find something − objects|."""
        last = self.logits.shape[-1] - 1
        something = self.logits.argmax(-1) != last if softmax else self.logits.amax(-1).sigmoid() > 0.5
        return (something.sum(2).float() - self.truth.counts.float()).abs().mean(1)


def by_layer(terms: Mapping[str, Sequence[Tensor]], suffixes: Sequence[str]) -> dict[str, Tensor]:
    """All terms of the first layer, then of the second …, under their names with the suffix of the layer."""
    return {name + suffix: values[k] for k, suffix in enumerate(suffixes) for name, values in terms.items() if k < len(values)}


def _covered(criterion: Any, layers: Layers) -> bool:
    """Whether the criterion is one of theirs with the losses known here, and the layers fit it and one another."""
    name = stock_name(criterion)
    columns = criterion.num_classes + (name == SOFTMAX)
    if name not in (SOFTMAX, FOCAL) or not set(criterion.losses) <= LOSSES or layers[0]["logits"].shape[-1] != columns:
        return False
    return alike(layers, ("logits", "pred_boxes")) and (name == SOFTMAX or criterion.focal_alpha <= 1)


def _objects_per_rank(targets: Labels, device: torch.device) -> float | Tensor:
    """What the box terms are divided by, averaged over ranks by accelerate the way they do, at least 1."""
    from transformers.loss import loss_for_object_detection

    theirs: Any = loss_for_object_detection
    number = float(sum(len(target["class_labels"]) for target in targets))
    if not theirs.is_accelerate_available() or theirs.PartialState._shared_state == {}:
        return max(number, 1.0)
    total: Tensor = theirs.reduce(torch.tensor([number], device=device))
    return (total / theirs.PartialState().num_processes).clamp(min=1).squeeze(0)


def _class_terms(criterion: Any, scene: LayerSet, index: Tensor, number: float | Tensor) -> list[Tensor]:
    """Softmax with a light background, or focal."""
    labels = class_labels(index, scene.truth, criterion.num_classes)
    pairs = [(layer["logits"].flatten(0, 1), own.flatten()) for layer, own in zip(scene.layers, labels, strict=True)]
    if stock_name(criterion) == SOFTMAX:
        weight = criterion.empty_weight
        return [cross_entropy_loss(x, y, class_weight=weight, avg_factor=weight[y].sum()) for x, y in pairs]
    alpha = criterion.focal_alpha if criterion.focal_alpha >= 0 else None
    return [sigmoid_focal_loss(x, y, alpha=alpha, avg_factor=number) for x, y in pairs]
