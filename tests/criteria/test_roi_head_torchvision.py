"""torchvision's box head gives the same losses and gradients for the same predictions and proposals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from criteria_cases import gradients, pixel_targets
from fcos_cases import Target, random_boxes
from torch import Tensor

from detloss.assigners.samplers import PseudoSampler, RandomSampler
from detloss.criteria.roi_head import RoIHeadLoss

roi_heads = pytest.importorskip("torchvision.models.detection.roi_heads")

CLASSES = 3
COUNTS = [((4, 0, 2), 0), ((1, 1), 1), ((30, 5), 2), ((0, 0), 3)]
PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def heads(num: int = 512) -> Any:
    """Their heads without networks: assignment, sampling and targets."""
    empty = torch.nn.Identity()
    return roi_heads.RoIHeads(empty, empty, empty, 0.5, 0.5, num, 0.25, None, 0.05, 0.5, 100)


def labels_from_1(targets: list[Target]) -> list[Target]:
    """Targets as torchvision wants them, where 0 is the background."""
    return [{**target, "labels": target["labels"] + 1} for target in targets]


def proposals_near(targets: list[Target], dtype: torch.dtype) -> list[Tensor]:
    """Per image random boxes and moved copies of the objects."""
    found = []
    for target in targets:
        near = target["boxes"].repeat(3, 1) + torch.randn(3 * len(target["boxes"]), 4) * 2
        boxes = torch.cat((near, random_boxes(10)))
        found.append(torch.cat((boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 2)), dim=1).to(dtype))
    return found


def batch(counts: tuple[int, ...], seed: int, dtype: torch.dtype) -> tuple[list[Target], list[Tensor]]:
    torch.manual_seed(seed)
    targets = [{**target, "boxes": target["boxes"].to(dtype)} for target in pixel_targets(counts)]
    return targets, proposals_near(targets, dtype)


@pytest.mark.parametrize(("counts", "seed"), COUNTS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_losses_and_gradients_agree(counts: tuple[int, ...], seed: int, dtype: torch.dtype, tolerance: float) -> None:
    targets, proposals = batch(counts, seed, dtype)
    sampled, _, labels, regression = heads().select_training_samples(proposals, labels_from_1(targets))
    count = sum(map(len, labels))
    outputs = [torch.randn(count, n, dtype=dtype, requires_grad=True) for n in (CLASSES + 1, 4 * CLASSES + 4)]
    expected = roi_heads.fastrcnn_loss(*outputs, labels, regression)
    losses = RoIHeadLoss.preset("torchvision", num_classes=CLASSES)(*outputs, sampled, targets)
    assert losses.metrics["num_pos"] == sum(int((own > 0).sum()) for own in labels)
    for name, value, output in zip(losses, expected, outputs, strict=True):
        torch.testing.assert_close(losses[name], value, rtol=tolerance, atol=0)
        (got,), (want,) = gradients(losses[name], output), gradients(value, output)
        assert (got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1e-30), name


@pytest.mark.parametrize(("counts", "seed"), COUNTS)
def test_a_sample_of_everything_holds_the_same_proposals_labels_and_objects(counts: tuple[int, ...], seed: int) -> None:
    """The quota is larger than what there is; the order in an image differs, positives are first here."""
    targets, proposals = batch(counts, seed, torch.float32)
    sampled, indices, labels, _ = heads(4096).select_training_samples(list(proposals), labels_from_1(targets))
    ours = RoIHeadLoss.preset("torchvision", num_classes=CLASSES, sampler=PseudoSampler())
    samples = ours.sample(proposals, targets)
    at = 0
    for boxes, own, index, found in zip(sampled, labels, indices, samples.proposals, strict=True):
        mine = slice(at, at + len(found))
        at += len(found)
        rows = torch.cat((found, samples.labels[mine, None], samples.gt_index[mine, None]), dim=1)
        theirs = torch.cat((boxes, torch.where(own > 0, own - 1, CLASSES)[:, None], torch.where(own > 0, index, -1)[:, None]), 1)
        assert torch.equal(torch.unique(rows, dim=0), torch.unique(theirs, dim=0)) and len(rows) == len(theirs)
        assert (samples.gt_index[mine] >= 0).long().diff().le(0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_quota_of_positives_is_the_same(seed: int) -> None:
    targets, proposals = batch((9, 6), seed, torch.float32)
    _, _, labels, _ = heads(16).select_training_samples(list(proposals), labels_from_1(targets))
    criterion = RoIHeadLoss.preset("torchvision", num_classes=CLASSES, sampler=RandomSampler(16, 0.25))
    samples = criterion.sample(proposals, targets)
    assert [len(own) for own in samples.positives.proposals] == [int((own > 0).sum()) for own in labels] == [4, 4]
    assert list(samples.counts) == [len(own) for own in labels]
