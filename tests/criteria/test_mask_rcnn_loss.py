"""MaskRCNNLoss: the sum of its parts, weights by name, presets, and one step as a training loop has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from criteria_cases import NUM_CLASSES, Tree
from criteria_cases_rcnn import RPN_OPTIONS, mask_targets, rpn_maps
from fcos_cases import HostReads, no_value_checks, random_boxes
from torch import Tensor

from detloss import SmoothL1Loss
from detloss.assigners.samplers import PseudoSampler
from detloss.criteria.mask_head import MaskHeadLoss
from detloss.criteria.mask_rcnn import MaskRCNNLoss
from detloss.criteria.roi_head import RoIHeadLoss
from detloss.criteria.rpn import RPNLoss

TERMS = ["loss_rpn_cls", "loss_rpn_box", "loss_cls", "loss_box", "loss_mask"]
PARTS: dict[str, Any] = {"rpn": RPN_OPTIONS, "roi": {"sampler": PseudoSampler()}}


def batch(criterion: MaskRCNNLoss, counts: tuple[int, ...] = (3, 0, 2)) -> tuple[Tree, Any, list[dict[str, Tensor]], Tensor]:
    """Maps and head outputs, samples, targets and mask logits."""
    torch.manual_seed(0)
    targets = mask_targets(counts)
    samples = criterion.sample([random_boxes(20) for _ in counts], targets)
    rows, positives = sum(samples.counts), sum(samples.positives.counts)
    outputs = [*rpn_maps(len(counts)), torch.randn(rows, NUM_CLASSES + 1), torch.randn(rows, 4 * NUM_CLASSES)]
    return outputs, samples, targets, torch.randn(positives, NUM_CLASSES, 7, 7)


def test_the_terms_are_those_of_the_parts() -> None:
    criterion = MaskRCNNLoss(NUM_CLASSES, **PARTS)
    (objectness, deltas, logits, boxes), samples, targets, masks = batch(criterion)
    losses = criterion(objectness, deltas, logits, boxes, samples, targets, masks)
    rpn = RPNLoss(**RPN_OPTIONS)(objectness, deltas, targets)
    roi = RoIHeadLoss(NUM_CLASSES)(logits, boxes, samples)
    mask = MaskHeadLoss(NUM_CLASSES)(masks, samples, targets)
    assert list(losses) == TERMS
    assert all(torch.equal(losses[name], term) for part in (rpn, roi, mask) for name, term in part.items())
    assert all(torch.equal(losses.metrics[f"rpn_{name}"], value) for name, value in rpn.metrics.items())
    assert all(torch.equal(losses.metrics[name], value) for name, value in roi.metrics.items())
    assert torch.equal(losses.total_loss, sum(losses.values()))


def test_faster_rcnn_has_no_mask_term() -> None:
    criterion = MaskRCNNLoss(NUM_CLASSES, **PARTS)
    outputs, samples, targets, masks = batch(criterion)
    with_masks = criterion(*outputs, samples, targets, masks)
    without = [{k: v for k, v in t.items() if k != "masks"} for t in targets]
    losses = criterion(*outputs, samples, without)
    assert list(losses) == TERMS[:-1] and all(torch.equal(losses[name], with_masks[name]) for name in losses)


def test_weights_by_name_reach_the_parts() -> None:
    plain, weighted = (
        MaskRCNNLoss(NUM_CLASSES, weights=weights, **PARTS) for weights in ({}, {"loss_mask": 2.0, "loss_box": 0.5})
    )
    *given, masks = batch(plain)
    outputs, samples, targets = given
    a, b = (criterion(*outputs, samples, targets, masks) for criterion in (plain, weighted))
    factors = {"loss_mask": 2.0, "loss_box": 0.5}
    for name in TERMS:
        torch.testing.assert_close(b[name], factors.get(name, 1.0) * a[name])
        torch.testing.assert_close(b.unweighted[name], a.unweighted[name])
    assert weighted.mask.weights == {"loss_mask": 2.0}
    own = MaskRCNNLoss(NUM_CLASSES, roi={"weights": {"loss_cls": 3.0}})
    assert own.weights == {**dict.fromkeys(TERMS, 1.0), "loss_cls": 3.0}
    own.set_weights({"loss_cls": 4.0})
    assert own.roi.weights["loss_cls"] == 4.0


def test_parts_are_objects_or_options() -> None:
    roi = RoIHeadLoss(5, class_agnostic=True)
    criterion = MaskRCNNLoss(5, rpn={"loss_rpn_box": SmoothL1Loss(beta=0.5)}, roi=roi, mask={"loss_mask": "dice"})
    assert criterion.roi is roi and criterion.rpn.loss_rpn_box.beta == 0.5
    assert criterion.loss_mask is criterion.mask.loss_mask and type(criterion.loss_mask).__name__ == "DiceLoss"
    with pytest.raises(ValueError, match="roi must have num_classes=6; got 5"):
        MaskRCNNLoss(6, roi=roi)
    with pytest.raises(TypeError, match="mask must be a MaskHeadLoss or a dict of its options; got RoIHeadLoss"):
        MaskRCNNLoss(5, mask=roi)
    with pytest.raises(TypeError, match=r"unknown option 'loss_mas'\. Did you mean 'loss_mask'"):
        MaskRCNNLoss(5, mask={"loss_mas": "dice"})
    with pytest.raises(AttributeError, match="loss_obj"):
        criterion.loss_obj  # noqa: B018


@pytest.mark.parametrize("name", ["torchvision", "detectron2", "mmdet"])
def test_presets_are_those_of_the_parts(name: str) -> None:
    criterion = MaskRCNNLoss.preset(name, num_classes=4, roi={"class_agnostic": True})
    assert criterion.roi.class_agnostic and criterion.normalizer.mode == "local" and criterion.preset_name == name
    parts = RPNLoss.preset(name), RoIHeadLoss.preset(name, num_classes=4), MaskHeadLoss.preset(name, num_classes=4)
    assert criterion.rpn.normalize_by == parts[0].normalize_by and criterion.rpn.grid == parts[0].grid
    assert criterion.roi.background == parts[1].background and repr(criterion.loss_box) == repr(parts[1].loss_box)
    assert (criterion.mask.aligned, criterion.mask.background) == (parts[2].aligned, parts[2].background)


def test_a_step_from_proposals_to_gradients() -> None:
    """Every prediction gets a gradient, also where nothing is positive; the largest weight is the steepest."""
    for counts in ((3, 0, 2), (0, 0)):
        criterion = MaskRCNNLoss(NUM_CLASSES, **PARTS)
        (objectness, deltas, logits, boxes), samples, targets, masks = batch(criterion, counts)
        heads = [x.requires_grad_() for x in (logits, boxes, masks)]
        losses = criterion(objectness, deltas, logits, boxes, samples, targets, masks)
        for grad in torch.autograd.grad(losses.total_loss, [*objectness, *deltas, *heads]):
            assert torch.isfinite(grad).all()
        assert (losses["loss_mask"] > 0) == (losses["loss_box"] > 0) == (sum(counts) > 0)


def test_a_step_without_masks_reads_no_value_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = MaskRCNNLoss(NUM_CLASSES, rpn={**RPN_OPTIONS, "sampler": None})
    outputs, samples, targets, masks = batch(criterion)
    positives = samples.positives
    with no_value_checks(monkeypatch), HostReads() as reads:
        criterion(*outputs, samples, targets)
        criterion.mask(masks, positives, targets)
    assert reads.found == []


def test_explain_is_about_the_box_head_and_each_part_about_itself() -> None:
    criterion = MaskRCNNLoss(NUM_CLASSES, **PARTS)
    (objectness, deltas, logits, boxes), samples, targets, _ = batch(criterion)
    explained = criterion.explain(objectness, deltas, logits, boxes, samples, targets)
    assert sum(r.positives for r in explained.objects) == sum(samples.positives.counts)
    anchors = criterion.rpn.explain(objectness, deltas, targets)
    assert len(anchors.objects) == len(explained.objects) == 5 and len(anchors.strides) == 3


def test_describe_names_every_term() -> None:
    text = MaskRCNNLoss.preset("torchvision", num_classes=3).describe()
    assert all(f"{name} = 1 × " in text for name in TERMS)
    assert "preset: torchvision" in text and "beta=0.111" in text
