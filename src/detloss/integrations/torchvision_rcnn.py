"""The outputs of torchvision's Faster and Mask R-CNN for their criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detloss.assigners.samplers import RandomSampler
from detloss.compat.patches.torchvision_dense import matcher_of
from detloss.criteria.mask_rcnn import MaskRCNNLoss
from detloss.integrations.attach import CriterionModel, Kinds, agree, on_device_of
from detloss.integrations.torchvision_inputs import prepared
from detloss.types import LossDict

__all__ = ["TWO_STAGE"]

FIRST_LABEL = 1  # 0 is the background


class RCNNModel(CriterionModel):
    """Faster or Mask R-CNN: the heads work on the sample that the criterion draws from the model's own proposals."""

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> LossDict:
        model: Any = self
        resized, objects, named = prepared(model, images, targets, FIRST_LABEL)
        features = list(named.values())
        objectness, deltas = model.rpn.head(features)
        anchors = model.rpn.anchor_generator(resized, features)
        criterion = on_device_of(self.criterion, anchors[0])
        samples = criterion.sample(_proposals(model.rpn, objectness, deltas, anchors, resized.image_sizes), objects)
        heads = model.roi_heads
        pooled = heads.box_roi_pool(named, samples.proposals, resized.image_sizes)
        logits, boxes = heads.box_predictor(heads.box_head(pooled))
        masks = None
        if heads.has_mask():
            pooled = heads.mask_roi_pool(named, samples.positives.proposals, resized.image_sizes)
            masks = heads.mask_predictor(heads.mask_head(pooled))
        losses: LossDict = criterion(objectness, deltas, logits, boxes, samples, objects, masks, anchors[0])
        return losses


def _proposals(
    rpn: Any, objectness: Sequence[Tensor], deltas: Sequence[Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]
) -> list[Tensor]:
    """The proposals of the region proposal network, after its own NMS."""
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    counts = [level[0].numel() for level in objectness]
    scores, codes = concat_box_prediction_layers(list(objectness), list(deltas))
    boxes = rpn.box_coder.decode(codes.detach(), anchors).view(len(anchors), -1, 4)
    found: list[Tensor] = rpn.filter_proposals(boxes, scores, sizes, counts)[0]
    return found


def _classes(model: Any) -> int:
    """Foreground classes: the columns of the predictor without the background."""
    predictor = model.roi_heads.box_predictor
    layer = getattr(predictor, "cls_score", None)
    if layer is None:
        raise ValueError(
            "with_criterion: the box predictor must have cls_score and bbox_pred, as torchvision's FastRCNNPredictor has them; "
            f"got {type(predictor).__name__}"
        )
    return int(layer.out_features) - 1


def _matching(part: Any) -> dict[str, Any]:
    """Matcher and sampler of a part of the model, as options of its criterion."""
    sampler = part.fg_bg_sampler
    options: dict[str, Any] = {"sampler": RandomSampler(sampler.batch_size_per_image, sampler.positive_fraction)}
    assigner = matcher_of(part.proposal_matcher)
    return options if assigner is None else {**options, "assigner": assigner}


def _kinds(model: Any) -> Kinds:
    generator = model.rpn.anchor_generator
    anchors = {
        "strides": tuple(4 * 2**level for level in range(len(generator.sizes))),  # of names only: the anchors are given
        "anchor_sizes": generator.sizes,
        "anchor_ratios": generator.aspect_ratios[0],
        "delta_weights": tuple(model.rpn.box_coder.weights),
    }
    roi = {"delta_weights": tuple(model.roi_heads.box_coder.weights), **_matching(model.roi_heads)}
    return {MaskRCNNLoss: {"num_classes": _classes(model), "rpn": {**anchors, **_matching(model.rpn)}, "roi": roi}}


def _fit(model: Any, criterion: Any) -> None:
    heads, name = model.roi_heads, type(model).__name__
    generator = model.rpn.anchor_generator
    expected: dict[str, Any] = {
        "num_classes": _classes(model),
        "rpn.grid.per_cell": generator.num_anchors_per_location()[0],
        "rpn.delta_weights": tuple(float(weight) for weight in model.rpn.box_coder.weights),
        "roi.background": "first",
        "roi.class_agnostic": False,
        "roi.delta_weights": tuple(float(weight) for weight in heads.box_coder.weights),
    }
    if heads.has_mask():
        expected |= {"mask.background": "first", "mask.class_agnostic": False}
    agree(f"with_criterion({name})", criterion, expected)
    levels = len(generator.sizes)
    if len(criterion.rpn.grid.strides) < levels:
        raise ValueError(
            f"with_criterion({name}): this model has {levels} levels; got a criterion for {len(criterion.rpn.grid.strides)}"
        )


TWO_STAGE: dict[str, Any] = {"MaskRCNN": (RCNNModel, _kinds, _fit), "FasterRCNN": (RCNNModel, _kinds, _fit)}
