"""YOLOXLoss: its numbers by hand, its options, and every mistake a user can make."""

from __future__ import annotations

import math

import pytest
import torch
from criteria_cases import pixel_targets
from fcos_cases import SIZES, STRIDES, HostReads, Target, no_value_checks, random_targets
from torch import Tensor

import detloss
from detloss import YOLOXLoss

LN2 = math.log(2)
Maps = tuple[list[Tensor], list[Tensor], list[Tensor]]


def make(**options: object) -> YOLOXLoss:
    return YOLOXLoss(3, strides=STRIDES, **options)


def random_maps(images: int, dtype: torch.dtype = torch.float64) -> Maps:
    cls, box, obj = ([(torch.randn(images, c, *s) / 2).to(dtype).requires_grad_() for s in SIZES] for c in (3, 4, 1))
    return cls, box, obj


def one_row(score: float = 0.0) -> tuple[Maps, list[Target]]:
    """One level of 1 × 3 cells of 8 pixels, each predicting itself as box, and the object [0, 0, 16, 8] over the first two.

    Both have IoU 1/2, so k = ⌊1/2 + 1/2⌋ = 1, and the first of two equal costs wins. The third cell is 12 pixels from the
    centre of the object, no less than 1.5 strides.
    """
    cls, obj = torch.full((1, 2, 1, 3), score), torch.zeros(1, 1, 1, 3)
    box = torch.tensor([0.5, 0.5, 0.0, 0.0]).view(1, 4, 1, 1).repeat(1, 1, 1, 3)
    target = {"boxes": torch.tensor([[0, 0, 16, 8]]), "labels": torch.tensor([1])}
    return ([cls.requires_grad_()], [box.requires_grad_()], [obj.requires_grad_()]), [target]


def test_values_by_hand() -> None:
    maps, targets = one_row()
    losses = YOLOXLoss(2, strides=(8,), use_l1=True)(*maps, targets)
    assert losses["loss_box"].item() == pytest.approx(5 * (1 - 0.5**2))
    assert losses["loss_cls"].item() == pytest.approx(2 * LN2)  # a logit of 0 costs ln 2 for every target
    assert losses["loss_obj"].item() == pytest.approx(3 * LN2)
    # (dx, dy, ln w, ln h) = (0.5, 0.5, 0, 0) against the centre (8, 4) and the sides (16, 8) in strides: (1, 0.5, ln 2, 0).
    assert losses["loss_l1"].item() == pytest.approx(0.5 + LN2)
    assert losses.metrics["num_pos"] == 1 and losses.metrics["mean_iou"].item() == pytest.approx(0.5)


def test_gradients_by_hand() -> None:
    maps, targets = one_row()
    losses = YOLOXLoss(2, strides=(8,), use_l1=True)(*maps, targets)
    (cls,) = torch.autograd.grad(losses["loss_cls"], maps[0], retain_graph=True)
    assert cls[0, :, 0].tolist() == [[0.5, 0.0, 0.0], [0.5 - 0.5, 0.0, 0.0]]  # σ(0) − target, the target is the IoU
    (obj,) = torch.autograd.grad(losses["loss_obj"], maps[2], retain_graph=True)
    assert obj.flatten().tolist() == [-0.5, 0.5, 0.5]
    (l1,) = torch.autograd.grad(losses["loss_l1"], maps[1])
    assert l1[0, [0, 2], 0, 0].tolist() == [-1.0, -1.0] and not l1[..., 1:].any()


def test_the_l1_term_is_switched_at_run_time() -> None:
    maps, targets = random_maps(2), pixel_targets([3, 1])
    loss = make()
    before = loss(*maps, targets)
    loss.use_l1 = True
    after = loss(*maps, targets)
    assert list(before) == ["loss_cls", "loss_box", "loss_obj"] and list(after) == [*before, "loss_l1"]
    assert all(torch.equal(before[name], after[name]) for name in before) and after["loss_l1"] > 0


def test_objects_without_extent_have_a_finite_l1_target() -> None:
    maps = random_maps(1)
    targets = [{"boxes": torch.tensor([[30.0, 30.0, 30.0, 30.0]]), "labels": torch.tensor([0])}]
    losses = make(use_l1=True)(*maps, targets)
    assert losses.metrics["num_pos"] == 1
    assert 0 < losses["loss_l1"] < 4 * 20 and losses["loss_box"] == 5  # ln 1e-8 is −18.4; an empty box overlaps nothing


@pytest.mark.parametrize("runaway", [30.0, 1e4, 3e38])
def test_sides_that_run_away_stay_finite(runaway: float) -> None:
    maps, targets = random_maps(2, torch.float32), pixel_targets([3, 2])
    maps[1][0].data[:, 2:] = runaway
    losses = make(use_l1=True, loss_box="giou")(*maps, targets)
    assert losses.metrics["num_pos"] >= 5
    for name in ("loss_cls", "loss_box", "loss_obj"):
        assert torch.isfinite(losses[name])
        leaves = [x for kind in maps for x in kind]
        found = torch.autograd.grad(losses[name], leaves, retain_graph=True, materialize_grads=True)
        assert all(torch.isfinite(g).all() for g in found)


def test_objectness_outside_of_ignored_regions_only() -> None:
    maps, targets = one_row()
    loss = YOLOXLoss(2, strides=(8,))
    over_second_and_third = [{**targets[0], "ignore_boxes": torch.tensor([[9.0, 0.0, 24.0, 8.0]])}]
    got = loss(*maps, over_second_and_third)
    assert got["loss_obj"].item() == pytest.approx(LN2) and got["loss_box"].item() == pytest.approx(5 * 0.75)
    over_all = [{**targets[0], "ignore_boxes": torch.tensor([[0.0, 0.0, 24.0, 8.0]])}]
    assert loss(*maps, over_all)["loss_obj"].item() == pytest.approx(LN2)  # the positive counts all the same


@pytest.mark.parametrize(
    ("options", "factors"),
    [({"class_weight": [1.0, 3.0]}, (1, 3)), ({"label_smoothing": 0.2}, (1, 1))],
    ids=["class-weight", "label-smoothing"],
)
def test_class_options(options: dict, factors: tuple[int, int]) -> None:
    maps, targets = one_row(math.log(3))  # σ = 3/4
    entropy = {"type": "CrossEntropyLoss", "use_sigmoid": True, **options}
    smooth = options.get("label_smoothing", 0.0)
    right, wrong = -math.log(0.75), -math.log(0.25)

    def cost(y: float, factor: int) -> float:
        y = (1 - smooth) * y + smooth / 2
        return factor * y * right + (1 - y) * wrong

    losses = YOLOXLoss(2, strides=(8,), loss_cls=entropy)(*maps, targets)
    assert losses["loss_cls"].item() == pytest.approx(cost(0, factors[0]) + cost(0.5, factors[1]), rel=1e-5)


@pytest.mark.parametrize("loss_cls", ["FocalLoss", "QualityFocalLoss", "VarifocalLoss"])
def test_other_class_losses_get_class_or_class_and_iou(loss_cls: str) -> None:
    maps, targets = one_row(0.3)
    losses = YOLOXLoss(2, strides=(8,), loss_cls=loss_cls)(*maps, targets)
    logits, label = torch.full((1, 2), 0.3), torch.tensor([1])
    target = label if loss_cls == "FocalLoss" else (label, torch.tensor([0.5]))
    expected = detloss.build(loss_cls, reduction="sum")(logits, target)
    torch.testing.assert_close(losses["loss_cls"], expected)


def test_a_focal_objectness() -> None:
    maps, targets = one_row()
    losses = YOLOXLoss(2, strides=(8,), loss_obj="FocalLoss")(*maps, targets)
    assert losses["loss_obj"].item() == pytest.approx((0.25 + 2 * 0.75) * LN2 / 4)


def test_objectness_takes_part_in_the_assignment() -> None:
    maps, targets = one_row()
    maps[0][0].data[:, 0] = -8.0  # all are sure that it is not the other class
    maps[2][0].data[..., 1] = 3.0  # and the second cell that there is an object
    matched = YOLOXLoss(2, strides=(8,)).match(*maps, targets)
    assert matched.assignment.gt_index.tolist() == [[-1, 0, -1]]


def test_assigners_without_quality_score_their_matches_1() -> None:
    maps, targets = random_maps(2), pixel_targets([3, 2])
    loss = make(assigner="FCOSAssigner")
    losses, matched = loss(*maps, targets), loss.match(*maps, targets)
    assert matched.assignment.quality is None and torch.equal(matched.score > 0, matched.assignment.positive)
    assert matched.counts[0] == losses.metrics["num_pos"] > 5


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = random_maps(2, torch.float32), random_targets([4, 3])
    loss = make(use_l1=True)
    with no_value_checks(monkeypatch), HostReads() as reads:
        loss(*maps, targets).total_loss.backward()
    assert reads.found == []


def test_presets() -> None:
    official, mmdet = (YOLOXLoss.preset(name, num_classes=3) for name in ("yolox", "mmdet"))
    assert "Normalizer('local')" in official.describe() and official.assigner.center_radius == 1.5
    assert "Normalizer('sync')" in mmdet.describe() and mmdet.assigner.center_radius == 2.5
    assert mmdet.assigner.candidates == "box_or_centre" and mmdet.assigner.confidence == "product"


OPTION_ERRORS = [
    ({"num_classes": True}, ValueError, "num_classes must be an integer >= 1; got True"),
    ({"strides": (8, 0)}, ValueError, "strides must be a finite number > 0; got 0"),
    ({"loss_cls": "CrossEntropyLoss"}, ValueError, r"loss_cls must treat every column on its own \(use_sigmoid=True\)"),
    ({"loss_obj": {"type": "FocalLoss", "use_sigmoid": False}}, ValueError, "loss_obj must treat every column on its own"),
    ({"loss_box": {"type": "IoULoss", "box_format": "cxcywh"}}, ValueError, "box_format must be 'xyxy'; got 'cxcywh'"),
    ({"loss_l1": {"type": "L1Loss", "reduction": "none"}}, ValueError, "must have reduction='mean'"),
    ({"obj_weight": -1.0}, ValueError, "loss_obj must be a finite number >= 0"),
    ({"weights": {"loss_dfl": 1.0}}, ValueError, "no term 'loss_dfl' to weigh"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTION_ERRORS, ids=[m for *_, m in OPTION_ERRORS])
def test_wrong_options_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        YOLOXLoss(**{"num_classes": 3, **options})


def test_wrong_maps_are_named() -> None:
    cls, box, obj = random_maps(2)
    targets = random_targets([1, 1])
    with pytest.raises(ValueError, match=r"YOLOXLoss: objectnesses\[0\] must have shape \[B, 1, H, W\] = \[2, 1, 8, 8\]"):
        make()(cls, box, cls, targets)
    with pytest.raises(ValueError, match="bbox_preds must have 3 levels like cls_scores; got 2"):
        make()(cls, box[:2], obj, targets)
    with pytest.raises(ValueError, match="expected 1 to 3 levels"):
        make()(cls * 2, box * 2, obj * 2, targets)
