"""RoIHeadLoss: sampling, values by hand, columns of classes and background, options and errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detloss.assigners.samplers import PseudoSampler, RandomSampler
from detloss.criteria.roi_head import RoIHeadLoss

OBJECTS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 30.0]])
LABELS = torch.tensor([1, 0])
TARGET = {"boxes": OBJECTS, "labels": LABELS}
# One pixel to the right of the first object, the second object, half of the second (IoU ½), and nothing.
PROPOSALS = torch.tensor(
    [[1.0, 0.0, 11.0, 10.0], [20.0, 20.0, 40.0, 30.0], [20.0, 20.0, 30.0, 30.0], [60.0, 60.0, 70.0, 70.0]], dtype=torch.float64
)
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}


def zeros(rows: int, columns: int, deltas: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.zeros(rows, n, dtype=torch.float64, requires_grad=True) for n in (columns, deltas))  # type: ignore[return-value]


def head(**options: Any) -> RoIHeadLoss:
    return RoIHeadLoss(**{"num_classes": 2, "sampler": PseudoSampler(), **options})


def test_a_sample_says_what_each_proposal_is() -> None:
    samples = head().sample([PROPOSALS], [TARGET])
    assert samples.counts == (6,) and samples.positives.counts == (5,)
    assert torch.equal(samples.proposals[0][[0, 1, 2, 5]], PROPOSALS)
    assert torch.equal(samples.proposals[0][[3, 4]], OBJECTS.double())  # the objects themselves
    assert samples.labels.tolist() == [1, 0, 0, 1, 0, 2]
    assert samples.gt_index.tolist() == [0, 1, 1, 0, 1, -1]
    assert torch.equal(samples.gt_boxes, torch.cat((OBJECTS[[0, 1, 1, 0, 1]], torch.zeros(1, 4))).double())
    assert torch.equal(samples.positives.proposals[0], samples.proposals[0][:5])
    assert samples.positives.labels.tolist() == [1, 0, 0, 1, 0] and samples.positives.positives.counts == (5,)


def test_positives_come_first_in_every_image_and_counts_differ() -> None:
    shuffled = PROPOSALS[[3, 0, 3, 2]]
    samples = head(append_ground_truth=False).sample([shuffled, shuffled[:1], shuffled[:0]], [TARGET, TARGET, TARGET])
    assert samples.counts == (4, 1, 0) and samples.positives.counts == (2, 0, 0)
    assert samples.labels.tolist() == [1, 0, 2, 2, 2]
    assert [p.shape for p in samples.proposals] == [(4, 4), (1, 4), (0, 4)]


def test_quota_of_positives() -> None:
    """8 rows with at most a quarter of positives: 2 of 30, and 6 of 40 negatives."""
    torch.manual_seed(0)
    many = torch.cat((OBJECTS[:1].repeat(30, 1), torch.rand(40, 4) + torch.tensor([60.0, 60.0, 70.0, 70.0])))
    samples = head(sampler=RandomSampler(8, 0.25)).sample([many, many[:1]], [TARGET, EMPTY])
    assert samples.counts == (8, 1) and samples.positives.counts == (2, 0)


def test_values_by_hand() -> None:
    """Logits 0 cost ln 3; deltas 0 cost the deltas: 10·1/10 for the shifted, 10·½ + 5·ln 2 for the half one."""
    losses = head()(*zeros(4, 3, 8), [PROPOSALS], [TARGET])
    assert losses["loss_cls"].item() == pytest.approx(math.log(3))
    assert losses["loss_box"].item() == pytest.approx((1.0 + 5.0 + 5 * math.log(2)) / 4)
    assert losses.metrics["num_pos"] == 3 and losses.metrics["num_sampled"] == 4
    assert losses.metrics["mean_iou"].item() == pytest.approx((90 / 110 + 1 + 0.5) / 3)


@pytest.mark.parametrize(("background", "columns", "deltas"), [("last", [1, 0, 0, 2], 8), ("first", [2, 1, 1, 0], 12)])
def test_columns_of_classes_and_background(background: Any, columns: list[int], deltas: int) -> None:
    logits, boxes = zeros(4, 3, deltas)
    losses = head(background=background)(logits, boxes + 9, [PROPOSALS], [TARGET])
    (grad,) = torch.autograd.grad(losses["loss_cls"], logits)
    assert grad.argmin(1).tolist() == columns
    (grad,) = torch.autograd.grad(losses["loss_box"], boxes)
    touched = grad.unflatten(1, (-1, 4)).abs().sum(2).nonzero().tolist()
    assert touched == [[row, column] for row, column in enumerate(columns[:3])]


def test_class_agnostic_deltas() -> None:
    specific, agnostic = head(), head(class_agnostic=True)
    logits, deltas = torch.randn(4, 3), torch.randn(4, 4)
    a = specific(logits, deltas.repeat(1, 2), [PROPOSALS.float()], [TARGET])
    b = agnostic(logits, deltas, [PROPOSALS.float()], [TARGET])
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("config", "columns", "expected"),
    [
        ({"type": "CrossEntropyLoss", "class_weight": [1.0, 3.0, 0.5]}, 3, (3 + 1 + 1 + 0.5) * math.log(3) / 4),
        ({"type": "CrossEntropyLoss", "label_smoothing": 0.3}, 3, math.log(3)),
        ({"type": "CrossEntropyLoss", "use_sigmoid": True}, 2, 2 * math.log(2)),
        # Focal, γ = 2: ¼ · ln 2 / 4 for each of 3 positives, ¾ · ln 2 / 4 for each of 5 negatives.
        ("FocalLoss", 2, (3 * 0.25 + 5 * 0.75) * math.log(2) / 4 / 4),
        # Class weights weigh positives: that of class 1 counts nothing.
        ({"type": "FocalLoss", "class_weight": [1.0, 0.0]}, 2, (2 * 0.25 + 5 * 0.75) * math.log(2) / 4 / 4),
    ],
)
def test_options_of_the_classification(config: Any, columns: int, expected: float) -> None:
    losses = head(loss_cls=config)(*zeros(4, columns, 8), [PROPOSALS], [TARGET])
    assert losses["loss_cls"].item() == pytest.approx(expected)


def test_a_quality_loss_learns_the_iou_of_the_predicted_box() -> None:
    """|s − ½|² ln 2 in the column of the class with s = 9/11, 1, ½, and ¼ ln 2 in the five others."""
    losses = head(loss_cls="QualityFocalLoss")(*zeros(4, 2, 8), [PROPOSALS], [TARGET])
    expected = sum((s - 0.5) ** 2 for s in (9 / 11, 1.0, 0.5)) + 5 * 0.25
    assert losses["loss_cls"].item() == pytest.approx(expected * math.log(2) / 4)


def test_an_iou_loss_is_fed_decoded_boxes() -> None:
    losses = head(loss_box={"type": "IoULoss", "mode": "linear"})(*zeros(4, 3, 8), [PROPOSALS], [TARGET])
    assert losses["loss_box"].item() == pytest.approx((2 / 11 + 0 + 0.5) / 4)


def test_crowds_ignored_regions_and_broken_proposals_count_neither_way() -> None:
    """A crowd over the fourth proposal and one that is NaN: two rows fewer, in the sample and in the divisor."""
    crowd = {
        "boxes": torch.cat((OBJECTS, torch.tensor([[55.0, 55.0, 75.0, 75.0]]))),
        "labels": torch.tensor([1, 0, 0]),
        "iscrowd": torch.tensor([0, 0, 1]),
    }
    broken = torch.cat((PROPOSALS, torch.full((1, 4), math.nan)))
    criterion = head(append_ground_truth=False)
    assert criterion.sample([broken], [crowd]).counts == (3,)
    logits, deltas = zeros(5, 3, 8)
    losses = criterion(logits, deltas, [broken], [crowd])
    assert losses["loss_cls"].item() == pytest.approx(math.log(3)) and losses.metrics["num_sampled"] == 3
    (grad,) = torch.autograd.grad(losses["loss_cls"], logits)
    assert (grad.abs().sum(1) > 0).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("images", [0, 1, 2])
def test_no_objects_and_no_proposals(images: int) -> None:
    criterion = head()
    samples = criterion.sample([PROPOSALS[:0]] * images, [EMPTY] * images)
    logits, deltas = zeros(0, 3, 8)
    losses = criterion(logits, deltas, samples)
    assert losses.total_loss == 0 and samples.counts == (0,) * images
    torch.autograd.grad(losses.total_loss, (logits, deltas))
    only_background = criterion(*zeros(4, 3, 8), [PROPOSALS], [EMPTY])
    assert only_background["loss_box"] == 0 and only_background["loss_cls"].item() == pytest.approx(math.log(3))


def test_nan_and_infinite_predictions_stay_in_their_rows() -> None:
    logits, deltas = (x.detach().clone() for x in zeros(4, 3, 8))
    logits[0], deltas[0], deltas[3] = math.nan, math.nan, math.inf
    for loss_box in ("L1Loss", "giou"):
        leaves = logits.clone().requires_grad_(), deltas.clone().requires_grad_()
        losses = head(loss_box=loss_box)(*leaves, [PROPOSALS], [TARGET])
        for grad in torch.autograd.grad(losses.total_loss, leaves):
            assert torch.isfinite(grad[1:]).all()


def test_samples_equal_proposals_that_are_assigned() -> None:
    torch.manual_seed(0)
    criterion = head(append_ground_truth=False)
    samples = criterion.sample([PROPOSALS, PROPOSALS], [TARGET, EMPTY])
    logits, deltas = torch.randn(8, 3), torch.randn(8, 8)
    a, b = criterion(logits, deltas, samples), criterion(logits, deltas, [PROPOSALS] * 2, [TARGET, EMPTY])
    assert all(torch.equal(a[name], b[name]) for name in a)  # here positives come first anyway


@pytest.mark.parametrize(
    ("logits", "deltas", "options", "words"),
    [
        ((3, 3), (4, 8), {}, r"cls_logits must have shape \[4, columns\], one row per sample; got \[3, 3\]"),
        ((4, 3), (4, 8, 1), {}, r"box_deltas must have shape \[4, columns\]"),
        ((4, 2), (4, 8), {}, r"cls_logits must have 3 columns for 2 classes \(background included\); got 2"),
        ((4, 3), (4, 8), {"loss_cls": "FocalLoss"}, r"must have 2 columns for 2 classes \(a sigmoid loss has no background"),
        ((4, 3), (4, 4), {}, r"box_deltas must have 8 columns \(2 classes, background='last'\); got 4"),
        ((4, 3), (4, 8), {"background": "first"}, r"box_deltas must have 12 columns"),
        ((4, 3), (4, 8), {"class_agnostic": True}, r"box_deltas must have 4 columns \(class_agnostic=True\); got 8"),
    ],
)
def test_wrong_shapes_are_named(logits: tuple[int, ...], deltas: tuple[int, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        head(**options)(torch.zeros(logits), torch.zeros(deltas), [PROPOSALS], [TARGET])


def test_wrong_arguments_are_named() -> None:
    criterion, outputs = head(), zeros(4, 3, 8)
    with pytest.raises(ValueError, match="expected targets with a list of proposals; got None"):
        criterion(*outputs, [PROPOSALS])
    with pytest.raises(ValueError, match="samples know their targets"):
        criterion(*outputs, criterion.sample([PROPOSALS[:2]], [TARGET]), [TARGET])
    with pytest.raises(TypeError, match=r"proposals must be a list of boxes \[R, 4\], one per image; got Tensor"):
        criterion.sample(PROPOSALS, [TARGET])
    with pytest.raises(ValueError, match=r"proposals\[1\] must have shape \[R, 4\]; got \[4, 5\]"):
        criterion.sample([PROPOSALS, torch.zeros(4, 5)], [TARGET] * 2)
    with pytest.raises(ValueError, match="one target per image, 2 of them; got 1"):
        criterion.sample([PROPOSALS] * 2, [TARGET])
    with pytest.raises(ValueError, match=r"background must be one of 'last', 'first'; got 'none'"):
        head(background="none")
