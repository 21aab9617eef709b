"""The outputs of torchvision's FCOS and RetinaNet for the criteria that they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detloss.compat.patches.torchvision_dense import anchor_points, anchor_sides, matcher_of
from detloss.criteria.atss import ATSSLoss
from detloss.criteria.fcos import FCOSLoss
from detloss.criteria.gfl import GFLLoss
from detloss.criteria.retinanet import RetinaNetLoss
from detloss.integrations.attach import CriterionModel, Kinds, agree, on_device_of
from detloss.integrations.torchvision_gfl import GFLHead, replace_head, restore_head
from detloss.integrations.torchvision_inputs import as_maps, level_counts, prepared
from detloss.types import LossDict

__all__ = ["DENSE"]


class FCOSModel(CriterionModel):
    """FCOS: one location per cell. The locations are the centres of the model's anchors, which detection starts from."""

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> LossDict:
        model: Any = self
        resized, objects, named = prepared(model, images, targets)
        features = list(named.values())
        anchors = model.anchor_generator(resized, features)[0]
        points = anchor_points(anchors, _sides(model), level_counts(features))
        criterion = on_device_of(self.criterion, anchors)
        if isinstance(model.head, GFLHead):
            losses: LossDict = criterion(*model.head.maps(features), objects, points)
            return losses
        names = ("cls_logits", "bbox_regression", "bbox_ctrness")
        found = model.head(features)
        scores, sides, centers = (as_maps(found[name], features) for name in names)
        if getattr(criterion, "distance_unit", "stride") == "pixel":
            sides = [x * float(side) for x, side in zip(sides, points.strides, strict=True)]
        losses = criterion(scores, sides, centers, objects, points)
        return losses


class RetinaNetModel(CriterionModel):
    """RetinaNet: the anchors are the model's."""

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> LossDict:
        model: Any = self
        resized, objects, named = prepared(model, images, targets)
        features = list(named.values())
        found, anchors = model.head(features), model.anchor_generator(resized, features)[0]
        each = _per_cell(model)
        scores, deltas = (as_maps(found[name], features, each) for name in ("cls_logits", "bbox_regression"))
        losses: LossDict = on_device_of(self.criterion, anchors)(scores, deltas, objects, anchors)
        return losses


def _sides(model: Any) -> list[int]:
    """Strides of the levels of FCOS: the sides of its anchors, the unit of its distances."""
    generator = model.anchor_generator
    sides = anchor_sides(generator, len(generator.sizes))
    if sides is None:
        raise ValueError(
            "with_criterion(FCOS): the anchor generator must have one square of even side per level, the stride; "
            f"got sizes={generator.sizes} and aspect_ratios={generator.aspect_ratios}"
        )
    return sides


def _per_cell(model: Any) -> int:
    counts = model.anchor_generator.num_anchors_per_location()
    if len(set(counts)) != 1:
        raise ValueError(f"with_criterion(RetinaNet): expected equally many anchors per cell on all levels; got {counts}")
    return int(counts[0])


def _classes(model: Any) -> int:
    classes = getattr(getattr(model.head, "classification_head", None), "num_classes", None)
    if not isinstance(classes, int):
        raise ValueError(
            "with_criterion: the head must have classification_head.num_classes, as torchvision's heads have it; "
            f"got {type(model.head).__name__}"
        )
    return classes


def _fcos_kinds(model: Any) -> Kinds:
    known = {"num_classes": _classes(model), "strides": tuple(_sides(model))}
    return {
        FCOSLoss: {**known, "center_sampling_radius": model.center_sampling_radius},
        ATSSLoss: {**known, "box_coding": "distance"},
        GFLLoss: known,
    }


def _fit_fcos(model: Any, criterion: Any) -> None:
    where, sides = "with_criterion(FCOS)", tuple(_sides(model))
    agree(where, criterion, {"num_classes": _classes(model)})
    if tuple(criterion.strides[: len(sides)]) != sides:
        raise ValueError(f"{where}: the levels of this model have the strides {sides}; got a criterion with {criterion.strides}")
    if isinstance(criterion, GFLLoss):
        replace_head(model.head, criterion.reg_max)
        return
    if isinstance(criterion, ATSSLoss):
        agree(where, criterion, {"box_coding": "distance"})
    restore_head(model.head)


def _retinanet_kinds(model: Any) -> Kinds:
    generator = model.anchor_generator
    known = {
        "num_classes": _classes(model),
        "strides": tuple(2 ** (3 + level) for level in range(len(generator.sizes))),  # of names only: the anchors are given
        "anchor_sizes": generator.sizes,
        "anchor_ratios": generator.aspect_ratios[0],
        "delta_weights": tuple(model.box_coder.weights),
    }
    assigner = matcher_of(model.proposal_matcher)
    return {RetinaNetLoss: known if assigner is None else {**known, "assigner": assigner}}


def _fit_retinanet(model: Any, criterion: Any) -> None:
    expected = {
        "num_classes": _classes(model),
        "grid.per_cell": _per_cell(model),
        "delta_weights": tuple(float(weight) for weight in model.box_coder.weights),
    }
    agree("with_criterion(RetinaNet)", criterion, expected)
    levels = len(model.anchor_generator.sizes)
    if len(criterion.grid.strides) < levels:
        raise ValueError(
            f"with_criterion(RetinaNet): this model has {levels} levels; got a criterion for {len(criterion.grid.strides)}"
        )


DENSE: dict[str, Any] = {
    "FCOS": (FCOSModel, _fcos_kinds, _fit_fcos),
    "RetinaNet": (RetinaNetModel, _retinanet_kinds, _fit_retinanet),
}
