"""``FCOSLoss`` of autotimm: its two forms by hand, the numbers of its source with ``strict=True``, and its defects mended."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from compat.sides import DTYPES, GRADIENT, VALUE, peer, random
from torch import Tensor

from detloss import criteria
from detloss.compat.autotimm import FCOSLoss
from detloss.compat.autotimm.losses import assigned

LN2 = math.log(2)
KEYS = ["loss", "cls_loss", "reg_loss", "centerness_loss", "total_loss"]
Lists = list[list[Tensor]]


def ready(seed: int, dtype: torch.dtype = torch.float32, classes: int = 3, share: float = 0.4) -> tuple[Lists, Lists]:
    """Predictions and assigned targets of two images on three levels: (cls, reg, centerness) each; ``share`` are positives."""
    g = random(seed)
    predictions: Lists = [[], [], []]
    targets: Lists = [[], [], []]
    for size in ((4, 5), (2, 3), (1, 2)):
        predictions[0].append(2 * torch.randn(2, classes, *size, generator=g, dtype=torch.float64))
        predictions[1].append(20 * torch.rand(2, 4, *size, generator=g, dtype=torch.float64) + 1)
        predictions[2].append(torch.randn(2, 1, *size, generator=g, dtype=torch.float64))
        label = torch.randint(classes, (2, *size), generator=g)
        targets[0].append(torch.where(torch.rand(label.shape, generator=g) < share, label, -1))
        targets[1].append(20 * torch.rand(2, 4, *size, generator=g, dtype=torch.float64) + 1)
        targets[2].append(torch.rand(2, *size, generator=g, dtype=torch.float64))
    cast = [[x.to(dtype) if x.is_floating_point() else x for x in kind] for kind in (*predictions, *targets)]
    return cast[:3], cast[3:]


def with_gradients(loss: Any, predictions: Lists, targets: Lists, name: str) -> tuple[Tensor, list[Tensor]]:
    leaves = [[x.clone().requires_grad_() for x in kind] for kind in predictions]
    value = loss(*leaves, *targets)[name]
    return value.detach(), list(torch.autograd.grad(value, [x for kind in leaves for x in kind], allow_unused=True))


# As documented: (cls_scores, bbox_preds, centernesses, targets).

MAPS = [torch.zeros(1, 3, 4, 4)], [torch.full((1, 4, 4, 4), 8.0)], [torch.zeros(1, 1, 4, 4)]
OBJECTS = [{"boxes": torch.tensor([[4, 4, 20, 20]]), "labels": torch.tensor([2])}]


def test_documented_form_by_hand() -> None:
    """Of the locations 4, 12, 20, 28 only (12, 12) is inside, 8 px from every side: its box is right and its centerness 1."""
    options = {"cls_loss_weight": 2.0, "reg_loss_weight": 3.0, "centerness_loss_weight": 0.5}
    losses = FCOSLoss(3, 0.25, 2.0, **options)(*MAPS, OBJECTS)
    assert list(losses) == KEYS
    negatives = 16 * 3 - 1
    assert losses["cls_loss"].item() == pytest.approx((0.25 + 0.75 * negatives) * LN2 / 4)
    assert losses["reg_loss"] == 0 and losses["centerness_loss"].item() == pytest.approx(LN2)
    total = 2 * losses["cls_loss"] + 3 * losses["reg_loss"] + 0.5 * losses["centerness_loss"]
    assert losses["loss"] == losses["total_loss"] == total


def test_documented_form_is_the_criterion_of_this_package() -> None:
    g = random(0)
    maps = [[torch.randn(2, c, s, s, generator=g) for s in (8, 4)] for c in (5, 4, 1)]
    targets = [
        {"boxes": torch.tensor([[3, 3, 40, 60], [20, 8, 50, 30]]), "labels": torch.tensor([4, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    expected = criteria.FCOSLoss(5, 0.4, 1.5, regress_ranges=((-1, 30), (30, math.inf)), strides=(8, 16))(*maps, targets)
    losses = FCOSLoss(5, 0.4, 1.5, strides=(8, 16), regress_ranges=((-1, 30), (30, math.inf)))(*maps, targets=targets)
    assert losses["loss"] == expected.total_loss and losses["reg_loss"] == expected["loss_box"]
    assert FCOSLoss(5)(*maps, targets)["loss"].isfinite()  # 2 levels, 5 strides


def test_documented_parts_can_be_weighed_and_trained() -> None:
    leaves = [[x.clone().requires_grad_() for x in kind] for kind in MAPS]
    losses = FCOSLoss(3, cls_loss_weight=0.0)(*leaves, OBJECTS)
    (0.1 * losses["cls_loss"] + losses["centerness_loss"]).backward()
    assert leaves[0][0].grad is not None and leaves[0][0].grad.abs().sum() > 0


def test_their_class_refuses_its_own_documentation() -> None:
    theirs = peer("autotimm").losses.FCOSLoss
    with pytest.raises(TypeError, match="cls_loss_weight"):
        theirs(3, cls_loss_weight=1.0)
    with pytest.raises(TypeError, match="missing 2 required"):
        theirs(3)(*MAPS, OBJECTS)


# As in the source: six lists.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KEYS[1:])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_strict_gives_the_numbers_of_the_source(seed: int, share: float, name: str, dtype: torch.dtype) -> None:
    options = (3, 0.3, 1.5, 0.7, 2.0, 0.5)
    predictions, targets = ready(seed, dtype, share=share)
    if seed == 2:
        predictions[1] = [x - 8 for x in predictions[1]]  # negative distances too
    mine = with_gradients(FCOSLoss(*options, strict=True), predictions, targets, name)
    other = with_gradients(peer("autotimm").losses.FCOSLoss(*options), predictions, targets, name)
    assert (mine[0] - other[0]).abs() <= VALUE[dtype] * max(1, other[0].abs())
    largest = max(g.abs().max() for g in other[1] if g is not None)
    for a, b in zip(mine[1], other[1], strict=True):
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        assert (a - b).abs().max() <= GRADIENT[dtype] * largest


def test_source_form_by_hand() -> None:
    """One positive of 4 cells, 3 classes, logits 0; its box [2, 2, 2, 2] against [2, 2, 2, 6] has IoU 1/2."""
    labels = torch.tensor([[[1, -1], [-1, 3]]])  # −1 and C are background
    cls, centre = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    true = torch.full((1, 4, 2, 2), 2.0)
    true[:, 3] = 6.0
    losses = FCOSLoss(3, cls_weight=2.0, reg_weight=3.0)(
        [cls], [torch.full((1, 4, 2, 2), 2.0)], [centre], [labels], [true], [torch.ones(1, 2, 2)]
    )
    assert list(losses) == KEYS
    assert losses["cls_loss"].item() == pytest.approx(2 * (0.25 + 0.75 * 11) * LN2 / 4)
    assert losses["reg_loss"].item() == pytest.approx(3 * LN2)
    assert losses["centerness_loss"].item() == pytest.approx(LN2)
    torch.testing.assert_close(losses["loss"], losses["cls_loss"] + losses["reg_loss"] + losses["centerness_loss"])
    assert losses["loss"] == losses["total_loss"]


def test_boxes_and_totals_agree_with_the_source_where_it_is_right() -> None:
    predictions, targets = ready(0)
    mine, other = FCOSLoss(3)(*predictions, *targets), peer("autotimm").losses.FCOSLoss(3)(*predictions, *targets)
    torch.testing.assert_close(mine["reg_loss"], other["reg_loss"])


def test_background_counts() -> None:
    """A logit of 10 in all 3 columns of every background location: 0.75 · 10 each. There it costs nothing."""
    predictions, targets = ready(0, share=0.0)
    predictions[0] = [torch.full_like(x, 10.0) for x in predictions[0]]
    locations = sum(t.numel() for t in targets[0])
    assert peer("autotimm").losses.FCOSLoss(3)(*predictions, *targets)["cls_loss"] == 0
    assert FCOSLoss(3, strict=True)(*predictions, *targets)["cls_loss"] == 0
    assert FCOSLoss(3)(*predictions, *targets)["cls_loss"].item() == pytest.approx(locations * 3 * 7.5, rel=1e-3)


def test_a_target_below_minus_1_is_ignored() -> None:
    predictions, targets = ready(0)
    hidden = [torch.where(t == -1, -100, t) for t in targets[0]]
    logits = [torch.where((t == -100).unsqueeze(1), math.nan, x) for t, x in zip(hidden, predictions[0], strict=True)]
    losses = FCOSLoss(3)(logits, *predictions[1:], hidden, *targets[1:])
    assert 0 < losses["cls_loss"] < FCOSLoss(3)(*predictions, *targets)["cls_loss"]


def test_duplicating_levels_or_images_changes_nothing() -> None:
    predictions, targets = ready(1)
    once = FCOSLoss(3)(*predictions, *targets)
    twice = FCOSLoss(3)(*([*kind, *kind] for kind in (*predictions, *targets)))
    images = FCOSLoss(3)(*([torch.cat((x, x)) for x in kind] for kind in (*predictions, *targets)))
    theirs = peer("autotimm").losses.FCOSLoss(3)
    assert (
        theirs(*([*kind, *kind] for kind in (*predictions, *targets)))["cls_loss"]
        > 1.9 * theirs(*predictions, *targets)["cls_loss"]
    )
    for name in KEYS:
        torch.testing.assert_close(twice[name], once[name])
        torch.testing.assert_close(images[name], once[name])


def test_centerness_is_divided_once() -> None:
    predictions, targets = ready(0, share=1.0)
    predictions[2] = [torch.zeros_like(x) for x in predictions[2]]
    assert FCOSLoss(3)(*predictions, *targets)["centerness_loss"].item() == pytest.approx(LN2)
    positives = sum(t.numel() for t in targets[0])
    theirs = peer("autotimm").losses.FCOSLoss(3)(*predictions, *targets)["centerness_loss"]
    assert theirs.item() == pytest.approx(3 * LN2 / positives)  # three levels


@pytest.mark.parametrize("distance", [-1.0, -2.0])
def test_negative_distances_are_no_reward(distance: float) -> None:
    lists = ready(0, share=1.0)
    predictions, targets = lists
    predictions[1] = [torch.full_like(x, distance) for x in predictions[1]]
    targets[1] = [torch.ones_like(x) for x in targets[1]]
    theirs = peer("autotimm").losses.FCOSLoss(3)(*predictions, *targets)["reg_loss"]
    assert theirs.item() == pytest.approx(-math.log(distance**2), abs=1e-6)  # a loss of 0, or below
    value, gradients = with_gradients(FCOSLoss(3), predictions, targets, "reg_loss")
    assert value > 1 and all(g.isfinite().all() and (g < 0).all() for g in gradients if g is not None and g.shape[1] == 4)


@pytest.mark.parametrize("strict", [False, True])
def test_without_positives_the_parts_are_connected(strict: bool) -> None:
    predictions, targets = ready(0, share=0.0)
    assert peer("autotimm").losses.FCOSLoss(3)(*predictions, *targets)["reg_loss"] == 0.0
    targets[1] = [torch.full_like(x, math.nan) for x in targets[1]]  # what stands at negatives means nothing
    targets[2] = [torch.full_like(x, -1.0) for x in targets[2]]
    for name, kind in (("reg_loss", 1), ("centerness_loss", 2)):
        value, gradients = with_gradients(FCOSLoss(3, strict=strict), predictions, targets, name)
        assert value == 0
        assert all((g == 0).all() for g in gradients[3 * kind : 3 * kind + 3] if g is not None)
        assert gradients[3 * kind] is not None


def test_positives_are_counted_over_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, targets = ready(0)
    alone = FCOSLoss(3)(*predictions, *targets)
    monkeypatch.setattr(assigned, "global_count", lambda count: 2 * count)
    for name, value in FCOSLoss(3)(*predictions, *targets).items():
        torch.testing.assert_close(value, alone[name] / 2)


def test_half_precision_maps() -> None:
    predictions, targets = ready(0)
    half = [[x.half() for x in kind] for kind in predictions]
    same = [[x.float() for x in kind] for kind in half]
    losses, expected = FCOSLoss(3)(*half, *targets), FCOSLoss(3)(*same, *targets)
    assert losses["loss"].dtype == torch.float32
    torch.testing.assert_close(losses["loss"], expected["loss"])


# Errors.


def test_one_option_under_two_names_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"cls_weight=2.0 and cls_loss_weight=3.0 are the same option"):
        FCOSLoss(3, cls_weight=2.0, cls_loss_weight=3.0)
    with pytest.raises(ValueError, match="reg_weight must be a finite number >= 0"):
        FCOSLoss(3, reg_loss_weight=-1.0)
    assert FCOSLoss(3, cls_loss_weight=3.0).cls_weight == 3.0
    assert list(FCOSLoss(3).state_dict()) == []


def test_a_mixture_of_the_forms_is_an_error() -> None:
    predictions, targets = ready(0)
    for arguments in ((*targets[:2],), (targets[0], None, targets[2])):
        with pytest.raises(TypeError, match=r"or the six lists .* got a mixture"):
            FCOSLoss(3)(*predictions, *arguments)
    with pytest.raises(TypeError, match="got a mixture"):
        FCOSLoss(3)(*predictions, *targets, targets=OBJECTS)
    for objects, got in ((targets[0], "list of Tensor"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"list of dicts of boxes and labels; got {got}"):
            FCOSLoss(3)(*predictions, objects)


def test_shapes_are_checked() -> None:
    predictions, targets = ready(0)
    with pytest.raises(ValueError, match=r"cls_targets must have 3 levels like cls_preds; got 2"):
        FCOSLoss(3)(*predictions, targets[0][:2], *targets[1:])
    with pytest.raises(
        ValueError, match=r"centerness_targets\[0\] must have shape \[B, H, W\] = \[2, 4, 5\]; got \[2, 1, 4, 5\]"
    ):
        FCOSLoss(3)(*predictions, *targets[:2], [x.unsqueeze(1) for x in targets[2]])
    with pytest.raises(ValueError, match=r"cls_preds\[0\] must have shape \[B, 4, H, W\]"):
        FCOSLoss(4)(*predictions, *targets)
