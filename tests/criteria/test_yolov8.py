"""YOLOv8Loss: its numbers by hand, its options, its outputs' layouts and its mistakes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from criteria_cases import pixel_targets
from fcos_cases import SIZES, STRIDES, HostReads, Target, no_value_checks, random_targets
from torch import Tensor, nn

from detloss import Assignment, YOLOv8Loss

LN2 = math.log(2)
CERTAIN = 1e4  # a logit that leaves nothing for the others
BINS = 4
Maps = tuple[list[Tensor], list[Tensor]]


def make(**options: object) -> YOLOv8Loss:
    return YOLOv8Loss(3, strides=STRIDES, reg_max=BINS, **options)


def random_maps(images: int, dtype: torch.dtype = torch.float64) -> Maps:
    scores, bins = ([torch.randn(images, c, *s).to(dtype).requires_grad_() for s in SIZES] for c in (3, 4 * BINS))
    return scores, bins


def gradients(total: Tensor, maps: Maps) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, [*maps[0], *maps[1]], retain_graph=True)


def one_row() -> tuple[Maps, list[Target]]:
    """One level of 1 × 3 cells of 8 pixels: locations (4, 4), (12, 4), (20, 4). The object [0, 0, 16, 8] has the first two.

    Half of a side's probability in each of two neighbouring bins is half a stride. The first location predicts
    (0.5, 0.5, 1.5, 0.5) strides, the box of the object; the second (1.5, 0.5, 1.5, 0.5), the box [0, 0, 24, 8], with all
    four bins of its right side alike. IoU 1 and 2/3.
    """
    low, middle, flat = [CERTAIN, CERTAIN, 0, 0], [0, CERTAIN, CERTAIN, 0], [0, 0, 0, 0]
    sides = [[low, low, middle, low], [middle, low, flat, low], [low, low, low, low]]
    bins = torch.tensor(sides).reshape(1, 3, 4 * BINS).transpose(1, 2).reshape(1, 4 * BINS, 1, 3)
    scores = torch.zeros(1, 2, 1, 3, requires_grad=True)
    target = {"boxes": torch.tensor([[0, 0, 16, 8]]), "labels": torch.tensor([1])}
    return ([scores], [bins.requires_grad_()]), [target]


IOU_TAL = {"type": "TaskAlignedAssigner", "iou": "iou"}


def test_values_by_hand() -> None:
    maps, targets = one_row()
    losses = YOLOv8Loss(2, strides=(8,), reg_max=BINS, assigner=IOU_TAL, loss_box="giou")(*maps, targets)
    # All logits are 0, so the metric is √(1/2) · IoU⁶ and the scores, relative to the best, are 1 and (2/3)⁶ = 64/729.
    total = 793 / 729
    assert losses["loss_cls"].item() == pytest.approx(0.5 * 6 * LN2 / total)  # a logit of 0 costs ln 2 for every target
    # GIoU: 0 for the exact box, 1/3 for the other, whose enclosing box is the union.
    assert losses["loss_box"].item() == pytest.approx(7.5 * 64 / 729 / 3 / total, rel=1e-5)
    # Two equal bins cost ln 2 a side; the flat right side, whose true distance lies between two of its bins, ln 4.
    assert losses["loss_dfl"].item() == pytest.approx(1.5 * (LN2 + 64 / 729 * (3 * LN2 + 2 * LN2) / 4) / total, rel=1e-5)
    assert losses.metrics["num_pos"] == 2 and losses.metrics["num_gt_without_pos"] == 0
    assert losses.metrics["mean_iou"].item() == pytest.approx((1 + 2 / 3) / 2)


def test_the_default_box_loss_is_ciou() -> None:
    maps, targets = one_row()
    losses = YOLOv8Loss(2, strides=(8,), reg_max=BINS, assigner=IOU_TAL)(*maps, targets)
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(3)) ** 2
    ciou = 1 / 3 + 16 / (24**2 + 8**2) + v * v / (1 / 3 + v)  # centres 4 pixels apart, sides 24 and 8 of the enclosing box
    assert losses["loss_box"].item() == pytest.approx(7.5 * 64 / 729 * ciou / (793 / 729), rel=1e-5)


def test_gradient_of_the_classes_by_hand() -> None:
    maps, targets = one_row()
    losses = YOLOv8Loss(2, strides=(8,), reg_max=BINS, assigner=IOU_TAL, cls_weight=1.0)(*maps, targets)
    (grad,) = torch.autograd.grad(losses["loss_cls"], maps[0])
    expected = torch.tensor([[0.5, 0.5, 0.5], [0.5 - 1, 0.5 - 64 / 729, 0.5]]) / (793 / 729)  # (σ(0) − score) / total
    torch.testing.assert_close(grad[0, :, 0], expected)


def test_a_total_score_below_1_divides_by_1() -> None:
    maps, targets = one_row()
    targets[0]["boxes"] = torch.tensor([[0, 0, 8, 8]])  # the first location alone, IoU 1/2, so its score is 1/2
    losses = YOLOv8Loss(2, strides=(8,), reg_max=BINS, assigner=IOU_TAL, loss_box="giou")(*maps, targets)
    assert losses["loss_box"].item() == pytest.approx(7.5 * 0.5 * 0.5, rel=1e-5)
    assert losses["loss_cls"].item() == pytest.approx(0.5 * 6 * LN2)


def test_times_batch_multiplies_by_the_images() -> None:
    maps, targets = random_maps(3), random_targets([4, 0, 2])
    plain, times = make()(*maps, targets), make(times_batch=True)(*maps, targets)
    for name in plain:
        torch.testing.assert_close(times[name], 3 * plain[name], rtol=1e-14, atol=0)


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_maps_one_by_one_give_the_same_class_term_as_all_rows(weight: float) -> None:
    """A region to ignore off the image excludes nothing, but needs a weight per row."""
    maps, targets = random_maps(3), random_targets([4, 0, 2])
    loss = make(loss_cls={"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": weight})
    outside = [{**t, "ignore_boxes": torch.tensor([[-90.0, -90.0, -80.0, -80.0]])} for t in targets]
    a, b = loss(*maps, targets), loss(*maps, outside)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-13, atol=0)
        for x, y in zip(gradients(a[name] + 0 * a.total_loss, maps), gradients(b[name] + 0 * b.total_loss, maps), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-15)


def test_the_class_term_has_second_derivatives() -> None:
    maps, targets = random_maps(1), random_targets([3])
    loss = make()
    assignment = loss.match(*maps, targets).assignment
    assignment.gt_index[0, 64:70] = 0  # on the second level too
    loss.assigner = FixedAssigner(assignment)

    def term(x: Tensor) -> Tensor:
        return loss([maps[0][0], x, maps[0][2]], maps[1], targets)["loss_cls"]

    assert torch.autograd.gradcheck(term, maps[0][1]) and torch.autograd.gradgradcheck(term, maps[0][1])


class FixedAssigner:
    """Gives the same assignment whatever is predicted."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment

    def __call__(self, *args: object) -> Assignment:
        return self.assignment


@pytest.mark.parametrize(
    ("options", "factors"),
    [({"class_weight": [1.0, 3.0]}, (1, 3)), ({"label_smoothing": 0.2}, (1, 1))],
    ids=["class-weight", "label-smoothing"],
)
def test_class_options(options: dict, factors: tuple[int, int]) -> None:
    maps, targets = one_row()
    maps[0][0].data += math.log(3)  # σ = 3/4
    criterion = YOLOv8Loss(2, strides=(8,), reg_max=BINS, assigner=IOU_TAL, loss_cls={
        "type": "CrossEntropyLoss", "use_sigmoid": True, **options})  # fmt: skip
    smooth = options.get("label_smoothing", 0.0)
    right, wrong = -math.log(0.75), -math.log(0.25)

    def cost(y: float, factor: int) -> float:
        y = (1 - smooth) * y + smooth / 2
        return factor * y * right + (1 - y) * wrong

    expected = 3 * cost(0, factors[0]) + cost(1, factors[1]) + cost(64 / 729, factors[1]) + cost(0, factors[1])
    assert criterion(*maps, targets)["loss_cls"].item() == pytest.approx(0.5 * expected / (793 / 729), rel=1e-5)


def test_an_object_takes_no_more_than_topk_locations() -> None:
    maps = [[torch.zeros(1, 3, 8, 8)], [torch.zeros(1, 4 * 16, 8, 8)]]
    targets = [{"boxes": torch.tensor([[0.0, 0.0, 64.0, 64.0]]), "labels": torch.tensor([0])}]
    for topk in (1, 10, 40):
        assigner = {"type": "TaskAlignedAssigner", "topk": topk}
        losses = YOLOv8Loss(3, strides=(8,), assigner=assigner)(*maps, targets)
        assert losses.metrics["num_pos"] == topk and losses["loss_box"] > 0


def test_a_small_object_between_the_locations_is_learnt() -> None:
    """With all sides half a stride long, every location predicts its cell, and that of (4, 4) covers the object."""
    sides = torch.tensor([CERTAIN, CERTAIN, 0, 0]).repeat(4).view(1, 16, 1, 1)
    maps = random_maps(1, torch.float32)[0], [sides.expand(-1, -1, *size) for size in SIZES]
    targets = [{"boxes": torch.tensor([[5.0, 5.0, 8.0, 8.0]]), "labels": torch.tensor([2])}]
    losses = make()(*maps, targets)
    assert losses.metrics["num_pos"] > 0 and losses["loss_dfl"] > 0
    plain = make(assigner={"type": "TaskAlignedAssigner", "enlarge_small": False})(*maps, targets)
    assert plain.metrics["num_pos"] == 0


def test_assigners_without_quality_score_their_matches_1() -> None:
    maps, targets = random_maps(2), pixel_targets([3, 2])
    loss = make(assigner="FCOSAssigner", loss_box="L1Loss")
    losses, matched = loss(*maps, targets), loss.match(*maps, targets)
    assert matched.assignment.quality is None and matched.counts[0] == losses.metrics["num_pos"] > 5
    assert matched.positives.index.shape[1] == 84  # nothing is known of how many there may be


def test_nothing_waits_for_the_device_after_the_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = random_maps(2, torch.float32), random_targets([4, 3])
    loss = make()
    loss.assigner = FixedAssigner(loss.match(*maps, targets).assignment)
    with no_value_checks(monkeypatch), HostReads() as reads:
        loss(*maps, targets).total_loss.backward()
    assert reads.found == []


def test_autocast_and_the_memory_layout_change_nothing() -> None:
    maps, targets = random_maps(2, torch.float32), random_targets([4, 3])
    loss = make()
    expected = loss(*maps, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = loss(*maps, targets)
    moved = [[x.contiguous(memory_format=torch.channels_last) for x in kind] for kind in maps]
    other = loss(*moved, targets)
    for name in expected:
        assert torch.equal(lower[name], expected[name])
        torch.testing.assert_close(other[name], expected[name], rtol=1e-6, atol=0)
    for a, b in zip(gradients(other.total_loss, maps), gradients(expected.total_loss, maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_maps_of_the_older_and_of_the_current_head() -> None:
    maps, targets = random_maps(2), random_targets([4, 3])
    loss = make()
    expected = loss(*maps, targets)
    older = [torch.cat((bins, scores), 1) for scores, bins in zip(*maps, strict=True)]
    scores, bins = (torch.cat([x.flatten(2) for x in levels], 2) for levels in maps)
    current = {"boxes": bins, "scores": scores, "feats": maps[0]}
    for outputs in (older, tuple(older), current, (scores, current), (scores, older)):
        split = loss.split_outputs(outputs)
        assert all(torch.equal(a, b) for ours, theirs in zip(split, maps, strict=True) for a, b in zip(ours, theirs, strict=True))
        assert all(torch.equal(loss(*split, targets)[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=r"split_outputs: outputs\[0\] must have shape \[B, 19, H, W\]"):
        loss.split_outputs(maps[0])


@pytest.mark.parametrize("training", [True, False])
def test_a_model_of_ultralytics_in_train_and_eval_mode(training: bool) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    model = tasks.DetectionModel("yolov8n.yaml", nc=3, verbose=False).train(training)
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, overlap_mask=False)
    boxes = torch.tensor([[8.0, 8.0, 40.0, 56.0], [30.0, 10.0, 60.0, 34.0]])
    batch = {"batch_idx": torch.tensor([0.0, 1.0]), "cls": torch.tensor([[2.0], [0.0]])}
    batch["bboxes"] = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / 64
    targets = [{"boxes": box[None], "labels": label} for box, label in zip(boxes, torch.tensor([[2], [0]]), strict=True)]
    outputs = model(torch.rand(2, 3, 64, 64))
    loss = YOLOv8Loss.preset("ultralytics", num_classes=3)
    losses = loss(*loss.split_outputs(outputs), targets)
    wanted = model.init_criterion()(outputs, batch)[0]
    for name, want in zip(("loss_box", "loss_cls", "loss_dfl"), wanted, strict=True):
        torch.testing.assert_close(losses[name], want, rtol=1e-5, atol=0)


OPTION_ERRORS = [
    ({"num_classes": 0}, ValueError, "num_classes must be an integer >= 1; got 0"),
    ({"reg_max": 1}, ValueError, "reg_max, the number of bins per side, must be an integer >= 2; got 1"),
    ({"reg_max": 16.0}, ValueError, "must be an integer >= 2; got 16.0"),
    ({"strides": ()}, ValueError, "strides must be a sequence with one number per level"),
    ({"loss_cls": "CrossEntropyLoss"}, ValueError, r"loss_cls must treat every column on its own \(use_sigmoid=True\)"),
    ({"loss_box": {"type": "CIoULoss", "box_format": "xywh"}}, ValueError, "box_format must be 'xyxy'; got 'xywh'"),
    ({"loss_dfl": {"type": "DistributionFocalLoss", "reduction": "sum"}}, ValueError, "must have reduction='mean'"),
    ({"box_weight": -1.0}, ValueError, "loss_box must be a finite number >= 0"),
    ({"weights": {"loss_obj": 1.0}}, ValueError, "no term 'loss_obj' to weigh"),
    ({"assigner": "TaskAlined"}, ValueError, "Did you mean 'TaskAlignedAssigner'"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTION_ERRORS, ids=[m for *_, m in OPTION_ERRORS])
def test_wrong_options_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        YOLOv8Loss(**{"num_classes": 3, **options})
    with pytest.raises(ValueError, match="must be one of 'ultralytics'; got 'ultralitics'"):
        YOLOv8Loss.preset("ultralitics", num_classes=3)


def test_wrong_maps_are_named() -> None:
    scores, bins = random_maps(2)
    targets = random_targets([1, 1])
    with pytest.raises(ValueError, match=r"YOLOv8Loss: bbox_preds\[1\] must have shape \[B, 16, H, W\] = \[2, 16, 4, 4\]"):
        make()(scores, [bins[0], bins[1][:, :12], bins[2]], targets)
    with pytest.raises(ValueError, match="bbox_preds must have 3 levels like cls_scores; got 2"):
        make()(scores, bins[:2], targets)
    with pytest.raises(TypeError, match="cls_scores must be a list of feature maps"):
        make()(scores[0], bins, targets)


def test_the_preset_is_described() -> None:
    text = YOLOv8Loss.preset("ultralytics", num_classes=3).describe()
    assert "preset: ultralytics" in text and "normalizer: Normalizer('local')" in text and "loss_box = 7.5 × CIoULoss" in text


def test_the_model_needs_no_parameters_of_the_criterion() -> None:
    loss = make()
    assert isinstance(loss, nn.Module) and not list(loss.parameters()) and not loss.state_dict()
