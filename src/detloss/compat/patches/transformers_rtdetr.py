"""The criteria of transformers' RT-DETR, D-FINE and DEIMv2, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.hungarian import HungarianAssigner
from detloss.compat.patches.detr_layers import Truth, class_labels, match_layers, matched_iou, pair_terms, quality_sum
from detloss.compat.patches.dfine_corners import corner_terms, corners_covered
from detloss.compat.patches.transformers_matching import Labels, alike, assigner_of, pairs_by_image, stock_name

__all__ = ["dense_set_losses", "set_losses"]

Function = Callable[..., Any]
Outputs = Mapping[str, Any]
Layers = Sequence[Mapping[str, Tensor]]
Terms = dict[str, Tensor]
CLASS_LOSSES = ("vfl", "mal")
LOSSES = {"RTDetrLoss": {"vfl", "boxes"}, "DFineLoss": {"vfl", "boxes", "local"}, "Deimv2Loss": {"vfl", "mal", "boxes", "local"}}


@dataclass(frozen=True)
class Matching:
    """``index [L, B, Q]`` object of every query of every layer (−1: none), and what the terms are divided by."""

    index: Tensor
    number: float


def set_losses(original: Function) -> Function:
    """``RTDetrLoss.forward``, which D-FINE inherits: decoder, encoder and denoising layers, matched in one call."""

    def forward(self: Any, outputs: Outputs, targets: Labels) -> Any:
        scene = _Scene.of(self, outputs, targets)
        if scene is None:
            return original(self, outputs, targets)
        own = Matching(scene.match(), scene.number)
        return {**scene.free_terms(own, own), **scene.denoising_terms()}

    return forward


def dense_set_losses(original: Function) -> Function:
    """``Deimv2Loss.forward``: boxes and corners of all layers are compared over the union of their matches."""

    def forward(self: Any, outputs: Outputs, targets: Labels) -> Any:
        scene = _Scene.of(self, outputs, targets) if self.use_dense_one_to_one else None
        if scene is None:
            return original(self, outputs, targets)
        index = scene.match()
        last, *others = pairs_by_image(index)
        union = self._get_dense_o2o_indices(last, others)
        together = torch.full_like(index[0], -1)
        for row, (queries, objects) in zip(together, union, strict=True):
            row[queries.to(row.device)] = objects.to(row.device)
        number = float(max(sum(len(queries) for queries, _ in union), 1))
        free = scene.free_terms(Matching(index, scene.number), Matching(together.expand_as(index), number))
        return {**free, **scene.denoising_terms()}

    return forward


@dataclass(frozen=True)
class _Scene:
    """The layers of a call: ``free`` are matched, the last decoder layer first; ``given`` reconstruct known objects."""

    criterion: Any
    assigner: HungarianAssigner
    free: Layers
    given: Layers
    meta: Mapping[str, Any]
    truth: Truth
    number: float

    @classmethod
    def of(cls, criterion: Any, outputs: Outputs, targets: Labels) -> _Scene | None:
        """``None`` where the criterion has settings, or the layers shapes, that are not known here."""
        free = [outputs, *outputs.get("auxiliary_outputs", ())]
        given = list(outputs.get("dn_auxiliary_outputs", ()))
        meta = outputs.get("denoising_meta_values") or {}
        known = set(criterion.losses) <= LOSSES.get(stock_name(criterion), set())
        assigner = assigner_of(criterion.matcher)
        if assigner is None or not known or (given and not meta):
            return None
        if not all(alike(layers, ("logits", "pred_boxes")) for layers in (free, given)):
            return None
        if free[0]["logits"].shape[-1] != criterion.num_classes:
            return None
        if "local" in criterion.losses and not all(corners_covered(criterion, layers) for layers in (free, given)):
            return None
        number = max(sum(len(target["class_labels"]) for target in targets), 1)
        return cls(criterion, assigner, free, given, meta, Truth.of(targets, outputs["pred_boxes"]), float(number))

    def match(self) -> Tensor:
        """``[L, B, Q]`` object of every query of the free layers."""
        scores, boxes = (torch.stack([layer[key].detach() for layer in self.free]) for key in ("logits", "pred_boxes"))
        return match_layers(self.assigner, scores, boxes, self.truth)

    def free_terms(self, own: Matching, shared: Matching) -> Terms:
        """Terms of the matched layers: classes by their ``own`` matches, boxes and corners by the ``shared`` ones."""
        suffixes = ["", *(f"_aux_{k}" for k in range(len(self.free) - 1))]
        return dict(self._named(suffixes, self._terms(self.free, own, shared)))

    def denoising_terms(self) -> Terms:
        """Terms of the denoising layers."""
        if not self.given:
            return {}
        places, groups = self.meta["dn_positive_idx"], self.meta["dn_num_group"]
        shape = (len(self.given), *self.given[0]["logits"].shape[:2])
        known = Matching(self.truth.denoising_index(places, groups, shape), self.number * groups)
        suffixes = [f"_dn_{k}" for k in range(len(self.given))]
        return dict(self._named(suffixes, self._terms(self.given, known, known)))

    def _named(self, suffixes: Sequence[str], terms: Mapping[str, Sequence[Tensor | None]]) -> Iterator[tuple[str, Tensor]]:
        """Weighted, layer by layer; what has no weight is left out, as there."""
        weights = self.criterion.weight_dict
        for k, suffix in enumerate(suffixes):
            for name, values in terms.items():
                value = values[k]
                if value is not None and name in weights:
                    yield name + suffix, value * weights[name]

    def _terms(self, layers: Layers, own: Matching, shared: Matching) -> dict[str, Sequence[Tensor | None]]:
        """Per name one value for each layer."""
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])
        found: dict[str, Sequence[Tensor | None]] = {}
        for loss in self.criterion.losses:
            if loss in CLASS_LOSSES:
                found[f"loss_{loss}"] = self._class_terms(loss, layers, boxes, own)
            elif loss == "boxes":
                distance, giou = pair_terms(boxes, shared.index, self.truth)
                found |= {"loss_bbox": (distance / shared.number).unbind(), "loss_giou": (giou / shared.number).unbind()}
            else:
                found |= corner_terms(self.criterion, layers, boxes.detach(), shared.index, shared.number, self.truth)
        return found

    def _class_terms(self, loss: str, layers: Layers, boxes: Tensor, own: Matching) -> list[Tensor]:
        """Varifocal or matchability-aware loss of every layer; the quality of a pair is its IoU."""
        criterion = self.criterion
        labels = class_labels(own.index, self.truth, criterion.num_classes)
        quality = matched_iou(boxes.detach(), own.index, self.truth)
        alpha = criterion.alpha if loss == "vfl" else criterion.mal_alpha
        alpha, gamma, found = 1.0 if alpha is None else alpha, criterion.gamma, []
        for layer, label, score in zip(layers, labels, quality, strict=True):
            target = score if loss == "vfl" else score.pow(gamma)
            weight = score if loss == "vfl" else torch.ones_like(score)
            found.append(quality_sum(layer["logits"], label, target, weight, alpha, gamma) / own.number)
        return found
