"""RPNLoss: values by hand, what it is divided by, sampling, anchors, options and errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from criteria_cases import fresh, gradients, leaves
from criteria_cases_rcnn import rpn_maps
from fcos_cases import STRIDES, random_targets
from torch import Tensor

from detloss.assigners.samplers import PseudoSampler, RandomSampler
from detloss.criteria.rpn import RPNLoss
from detloss.geometry.anchors import grid_anchors

ONE_PER_CELL: dict[str, Any] = {"strides": (8,), "anchor_scales": (2,), "anchor_ratios": (1.0,)}


def zeros(
    images: int = 1, cells: int = 4, per_cell: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Tensor]]:
    """Objectness 0 and deltas 0 of one level."""
    shape = (images, per_cell, cells, cells)
    return (
        [torch.zeros(shape, dtype=dtype, requires_grad=True)],
        [torch.zeros(images, 4 * per_cell, cells, cells, dtype=dtype, requires_grad=True)],
    )


def target(*boxes: tuple[float, ...], **more: Any) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.long), **more}


def test_values_by_hand() -> None:
    """16 anchors of 16 × 16, one object of 16 × 32 that lies one pixel beside a column of them.

    It overlaps the anchors [0, 0, 16, 16], [0, 8, 16, 24] and [0, 16, 16, 32] alike, IoU 15·16/(256 + 512 − 240) = 0.4545:
    below the threshold, but they are its best ones.
    """
    criterion = RPNLoss(**ONE_PER_CELL, assigner={"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3})
    losses = criterion(*zeros(), [target((1.0, 0.0, 17.0, 32.0))])
    assert losses.metrics["num_pos"] == 3 and losses.metrics["num_gt_without_pos"] == 0
    sampled = int(losses.metrics["num_sampled"])
    assert losses["loss_rpn_cls"].item() == pytest.approx(math.log(2))
    # Per positive: dx = 1/16, dh = ln 2 and dy = 8/16 above, 0, −8/16 below.
    assert losses["loss_rpn_box"].item() == pytest.approx((3 / 16 + 3 * math.log(2) + 0.5 + 0.5) / sampled)


def test_terms_are_sums_divided_by_the_sampled_anchors() -> None:
    """8 sampled anchors of 16, 1 positive: each with a logit of 0 costs ln 2."""
    sampler = RandomSampler(8, 0.5)
    criterion = RPNLoss(**ONE_PER_CELL, sampler=sampler)
    maps = zeros()
    losses = criterion(*maps, [target((0.0, 0.0, 16.0, 17.0))])
    assert losses.metrics["num_sampled"] == 8 and losses.metrics["num_pos"] == 1
    (grad,) = torch.autograd.grad(losses["loss_rpn_cls"], maps[0])
    assert sorted(grad.flatten().mul(16).round().tolist()) == [-1.0] + [0.0] * 8 + [1.0] * 7  # σ(0) − y = ∓1/2, over 8


@pytest.mark.parametrize(("normalize_by", "divisor"), [("sampled", 15 + 16), ("floored", 16 + 17), ("requested", 2 * 64)])
def test_what_the_terms_are_divided_by(normalize_by: Any, divisor: int) -> None:
    """Two images of 16 anchors, 15 and 16 of which are sampled: in the first one, one lies in an ignore box."""
    criterion = RPNLoss(**ONE_PER_CELL, sampler=RandomSampler(64, 0.5), normalize_by=normalize_by)
    corner = target(ignore_boxes=torch.tensor([[16.0, 16.0, 32.0, 32.0]]))
    losses = criterion(*zeros(2), [corner, target()])
    assert losses.metrics["num_sampled"] == 31
    assert losses["loss_rpn_cls"].item() == pytest.approx(31 * math.log(2) / divisor)
    assert losses["loss_rpn_box"] == 0


def test_deltas_have_four_channels_per_anchor_together() -> None:
    """Anchor 1 of 2 (ratio 1) matches exactly; only its four channels get a gradient of loss_rpn_box."""
    criterion = RPNLoss((8,), anchor_scales=(2,), anchor_ratios=(0.25, 1.0), sampler=PseudoSampler())
    objectness, deltas = zeros(per_cell=2)
    losses = criterion(objectness, [deltas[0] + 1], [target((0.0, 0.0, 16.0, 16.0))])
    (grad,) = torch.autograd.grad(losses["loss_rpn_box"], deltas)
    assert grad.nonzero().tolist() == [[0, channel, 1, 1] for channel in (4, 5, 6, 7)]
    (grad,) = torch.autograd.grad(losses["loss_rpn_cls"], objectness)
    assert (grad < 0).nonzero().tolist() == [[0, 1, 1, 1]]


def test_own_anchors_take_the_place_of_those_of_the_options() -> None:
    maps, targets = rpn_maps(2, torch.float64), random_targets([3, 2])
    options: dict[str, Any] = {"strides": STRIDES, "anchor_ratios": (0.5, 1.0), "sampler": PseudoSampler()}
    sizes = [(x.shape[2], x.shape[3]) for x in maps[0]]
    anchors = grid_anchors(sizes, STRIDES, [(24,), (48,), (96,)], (0.5, 1.0), offset=0.5, dtype=torch.float64)
    expected = RPNLoss(anchor_scales=(3,), anchor_offset=0.5, **options)(*maps, targets)
    criterion = RPNLoss(**options)
    for given in (anchors, anchors.boxes, anchors.boxes.split(anchors.counts)):
        losses = criterion(*maps, targets, anchors=given)
        assert all(torch.equal(losses[name], expected[name]) for name in expected)
    assert any(not torch.equal(criterion(*maps, targets)[name], expected[name]) for name in expected)


def test_an_iou_loss_is_fed_decoded_boxes() -> None:
    """A prediction that decodes to the object costs 0, and 1 − IoU = 1/2 when it is twice as wide."""
    criterion = RPNLoss(**ONE_PER_CELL, loss_rpn_box={"type": "IoULoss", "mode": "linear"}, sampler=PseudoSampler())
    objectness, deltas = zeros()
    targets = [target((0.0, 0.0, 16.0, 16.0))]
    assert criterion(objectness, deltas, targets)["loss_rpn_box"] == 0
    wide = torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    wide[0, 2] = math.log(2)
    losses = criterion(objectness, [wide], targets)
    assert (losses["loss_rpn_box"] * losses.metrics["num_sampled"]).item() == pytest.approx(0.5)
    assert float(losses.metrics["mean_iou"]) == pytest.approx(0.5)


def test_a_quality_loss_learns_the_iou_of_the_predicted_box() -> None:
    """Score 1 for the exact box: logit 0 costs ln 2 · |1 − ½|² there, ln 2 · ½² on background."""
    criterion = RPNLoss(**ONE_PER_CELL, loss_rpn_cls="QualityFocalLoss", sampler=PseudoSampler())
    losses = criterion(*zeros(), [target((0.0, 0.0, 16.0, 16.0))])
    assert losses["loss_rpn_cls"].item() == pytest.approx(math.log(2) / 4)


@pytest.mark.parametrize(
    ("config", "positive", "negative"),
    [
        ({"type": "CrossEntropyLoss", "use_sigmoid": True, "class_weight": [3.0]}, 3 * math.log(2), math.log(2)),
        ({"type": "FocalLoss", "gamma": 1.0, "alpha": 0.75}, 0.75 * math.log(2) / 2, 0.25 * math.log(2) / 2),
        ({"type": "CrossEntropyLoss", "use_sigmoid": True, "label_smoothing": 0.2}, math.log(2), math.log(2)),
    ],
)
def test_options_of_the_classification(config: dict[str, Any], positive: float, negative: float) -> None:
    criterion = RPNLoss(**ONE_PER_CELL, loss_rpn_cls=config, sampler=PseudoSampler())
    losses = criterion(*zeros(), [target((0.0, 0.0, 16.0, 16.0))])
    count, positives = int(losses.metrics["num_sampled"]), int(losses.metrics["num_pos"])
    assert positives == 1
    assert losses["loss_rpn_cls"].item() == pytest.approx((positive + (count - 1) * negative) / count)


def test_ignored_anchors_and_anchors_between_the_thresholds_get_no_gradient() -> None:
    criterion = RPNLoss(**ONE_PER_CELL, sampler=PseudoSampler())
    maps = zeros()
    crowd = target((0.0, 0.0, 16.0, 16.0), (0.0, 16.0, 32.0, 32.0), iscrowd=torch.tensor([0, 1]))
    matched = criterion.match(*maps, [crowd])
    (grad,) = torch.autograd.grad(criterion(*maps, [crowd])["loss_rpn_cls"], maps[0])
    assert torch.equal(grad.flatten() != 0, ~matched.assignment.ignore[0])
    assert 0 < int(matched.assignment.ignore.sum()) < 16 and matched.assignment.num_pos == 1


def test_nan_in_one_image_stays_there() -> None:
    criterion, targets = RPNLoss(strides=STRIDES, anchor_ratios=(0.5, 1.0)), random_targets([3, 3])
    maps = fresh(rpn_maps(2), lambda x: torch.cat((x[:1], x[1:] * float("nan"))))
    for grad in gradients(criterion(*maps, targets).total_loss, maps):
        assert torch.isfinite(grad[0]).all()
    assert len(leaves(maps)) == 6


def test_samples_follow_the_generator() -> None:
    def run() -> Tensor:
        sampler = RandomSampler(16, 0.5, torch.Generator().manual_seed(3))
        return RPNLoss(strides=STRIDES, anchor_ratios=(0.5, 1.0), sampler=sampler)(*maps, targets).total_loss

    maps, targets = rpn_maps(2), random_targets([3, 3])
    assert torch.equal(run(), run())


def test_presets_differ_as_the_frameworks_do() -> None:
    torchvision, detectron2, mmdet = (RPNLoss.preset(name) for name in ("torchvision", "detectron2", "mmdet"))
    assert torchvision.loss_rpn_box.beta == pytest.approx(1 / 9) and torchvision.grid.rounded
    assert (detectron2.normalize_by, detectron2.grid.order) == ("requested", "size")
    assert (mmdet.normalize_by, mmdet.assigner.low_quality) == ("floored", "gt")
    assert torchvision.assigner.low_quality == detectron2.assigner.low_quality == "anchor"
    assert torchvision.grid.sizes == detectron2.grid.sizes == mmdet.grid.sizes == ((32,), (64,), (128,), (256,), (512,))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_rpn_cls": "CrossEntropyLoss"}, "use_sigmoid=True; got False"),
        ({"loss_rpn_box": {"type": "GIoULoss", "box_format": "cxcywh"}}, "box_format must be 'xyxy'; got 'cxcywh'"),
        ({"anchor_sizes": ((32,), (64,))}, "equally many sizes for each of the 1 strides"),
        ({"anchor_ratios": ()}, "at least one ratio"),
        ({"anchor_ratios": (-1.0,)}, "anchor_ratios must be a finite number > 0; got -1.0"),
        ({"delta_weights": (1.0, 1.0)}, "delta_weights must hold four numbers"),
        ({"anchor_order": "area"}, "anchor_order must be one of 'ratio', 'size'; got 'area'"),
        ({"normalize_by": "samples"}, "Did you mean 'sampled'"),
        ({"weights": {"loss_cls": 1.0}}, "no term 'loss_cls' to weigh"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RPNLoss(**{**ONE_PER_CELL, **options})


def test_wrong_maps_and_anchors_are_named() -> None:
    criterion, (objectness, deltas) = RPNLoss(**ONE_PER_CELL), zeros()
    with pytest.raises(ValueError, match=r"objectness\[0\] must have shape \[B, 1, H, W\]"):
        criterion(zeros(per_cell=3)[0], deltas, [target()])
    with pytest.raises(ValueError, match=r"bbox_preds\[0\] must have shape \[B, 4, H, W\] = \[1, 4, 4, 4\]; got \[1, 1, 4, 4\]"):
        criterion(objectness, objectness, [target()])
    with pytest.raises(ValueError, match=r"anchors must have shape \[16, 4\], 1 per cell of every level; got \[3, 4\]"):
        criterion(objectness, deltas, [target()], anchors=torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"list per level with \[16\] boxes; got \[8, 8\] boxes"):
        criterion(objectness, deltas, [target()], anchors=[torch.zeros(8, 4)] * 2)
    with pytest.raises(ValueError, match="expected one target per image, 1 of them; got 2"):
        criterion(objectness, deltas, [target()] * 2)
