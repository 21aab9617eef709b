"""torchvision's region proposal network gives the same losses and gradients for the same predictions and sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from criteria_cases import fresh, gradients
from criteria_cases_rcnn import RecordedSampler, rpn_maps
from fcos_cases import SIZES, STRIDES, Target, random_targets
from torch import Tensor

from detloss.criteria.rpn import RPNLoss

rpn = pytest.importorskip("torchvision.models.detection.rpn")

ANCHOR_SIZES = ((16,), (32,), (64,))
RATIOS = (0.5, 1.0, 2.0)


def network(sampler: RecordedSampler) -> Any:
    """Their network with our sampler; only its matching and its losses are used."""
    anchors = rpn.AnchorGenerator(ANCHOR_SIZES, (RATIOS,) * len(ANCHOR_SIZES))
    options = {"pre_nms_top_n": {}, "post_nms_top_n": {}, "nms_thresh": 0.7}
    found = rpn.RegionProposalNetwork(anchors, torch.nn.Identity(), 0.7, 0.3, sampler.num, 0.5, **options)
    found.fg_bg_sampler = sampler.of_torchvision
    return found


def theirs(net: Any, maps: Any, targets: list[Target]) -> tuple[Tensor, Tensor]:
    objectness, deltas = maps
    images = rpn.ImageList(torch.zeros(len(targets), 3, 64, 64), [(64, 64)] * len(targets))
    anchors = net.anchor_generator(images, objectness)
    labels, matched = net.assign_targets_to_anchors(anchors, targets)
    regression = net.box_coder.encode(matched, anchors)
    labels = [own.to(objectness[0].dtype) for own in labels]  # float32 labels would make the loss float32
    return net.compute_loss(*rpn.concat_box_prediction_layers(objectness, deltas), labels, regression)


def positive_boxes(counts: tuple[int, ...], dtype: torch.dtype) -> list[Target]:
    """Boxes with an area, as torchvision asks for."""
    targets = random_targets(counts)
    for target in targets:
        target["boxes"] = target["boxes"].to(dtype)
        target["boxes"][:, 2:] = torch.maximum(target["boxes"][:, 2:], target["boxes"][:, :2] + 2)
    return targets


@pytest.mark.parametrize(("counts", "seed"), [((4, 0, 2), 0), ((1, 1), 1), ((30, 5), 2), ((0, 0), 3)])
@pytest.mark.parametrize("num", [256, 16])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_losses_and_gradients_agree(counts: tuple[int, ...], seed: int, num: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(seed)
    sampler = RecordedSampler(num, rpn.det_utils.BalancedPositiveNegativeSampler(num, 0.5))
    ours, targets = rpn_maps(len(counts), dtype, len(RATIOS)), positive_boxes(counts, dtype)
    copies = fresh(ours)
    expected = theirs(network(sampler), copies, targets)
    criterion = RPNLoss.preset("torchvision", strides=STRIDES, anchor_sizes=ANCHOR_SIZES, sampler=sampler)
    losses = criterion(*ours, targets)
    assert losses.metrics["num_sampled"] == sampler.taken.sum() and (losses.metrics["num_pos"] > 0) == (sum(counts) > 0)
    for name, value, kind in zip(losses, expected, (0, 1), strict=True):
        torch.testing.assert_close(losses[name], value, rtol=tolerance, atol=0)
        got = torch.cat([g.flatten() for g in gradients(losses[name], ours[kind])])
        want = torch.cat([g.flatten() for g in gradients(value, copies[kind])])
        assert (got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1e-30), name
    assert {len(kind) for kind in ours} == {len(SIZES)}


def test_anchors_are_those_of_their_generator() -> None:
    maps = rpn_maps(1, per_cell=len(RATIOS))
    generator = rpn.AnchorGenerator(ANCHOR_SIZES, (RATIOS,) * 3)
    (expected,) = generator(rpn.ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), maps[0])
    criterion = RPNLoss.preset("torchvision", strides=STRIDES, anchor_sizes=ANCHOR_SIZES)
    assert torch.equal(criterion.match(*maps, random_targets([1])).priors.boxes, expected)
