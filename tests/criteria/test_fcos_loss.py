"""FCOSLoss: its numbers by hand, its contracts with users, and every mistake a user can make."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from fcos_cases import (
    SIZES,
    STRIDES,
    HostReads,
    Maps,
    copy_maps,
    gradients,
    leaves,
    no_value_checks,
    random_boxes,
    random_maps,
    random_targets,
)
from torch import Tensor

import detloss
from detloss import FCOSLoss, functional
from detloss.assigners import FCOSAssigner
from detloss.geometry import centerness, grid_points

LN2 = math.log(2)
TERMS = ("loss_cls", "loss_box", "loss_centerness")


def criterion(**options: object) -> FCOSLoss:
    return FCOSLoss(3, strides=STRIDES, **options)


def one_row() -> tuple[Maps, list[dict[str, Tensor]]]:
    """One level of 1 × 3 cells of 8 pixels: locations (4, 4), (12, 4), (20, 4). The object [0, 0, 16, 8] has the first two.

    Their distances to it are (4, 4, 12, 4) and (12, 4, 4, 4), so both have centerness √(4/12 · 1) = 1/√3.
    """
    cls = torch.zeros(1, 2, 1, 3, requires_grad=True)
    box = torch.tensor([[4.0, 12.0, 1.0], [4.0, 4.0, 1.0], [12.0, 20.0, 1.0], [4.0, 4.0, 1.0]]).reshape(1, 4, 1, 3)
    ctr = torch.zeros(1, 1, 1, 3, requires_grad=True)
    return ([cls], [box.requires_grad_()], [ctr]), [{"boxes": torch.tensor([[0, 0, 16, 8]]), "labels": torch.tensor([1])}]


def test_values_by_hand() -> None:
    maps, targets = one_row()
    losses = FCOSLoss(2, strides=(8,))(*maps, targets)
    # Six logits of 0: p = 1/2, so (1 − p_t)² · (−ln p_t) = ln 2 / 4; two of them are positives.
    assert losses["loss_cls"].item() == pytest.approx((2 * 0.25 + 4 * 0.75) * LN2 / 4 / 2)
    # The first box is exact. The second is [0, 0, 32, 8] against [0, 0, 16, 8]: IoU 1/2 and no empty corner, GIoU loss 1/2.
    assert losses["loss_box"].item() == pytest.approx((0 + 0.5) / 2)
    # A logit of 0 costs ln 2 whatever the target.
    assert losses["loss_centerness"].item() == pytest.approx(2 * LN2 / 2)
    assert losses.metrics["num_pos"] == 2 and losses.metrics["num_gt"] == 1 and losses.metrics["num_gt_without_pos"] == 0
    assert losses.metrics["mean_iou"].item() == pytest.approx(0.75)
    assert losses.total_loss.item() == pytest.approx(3.5 * LN2 / 8 + 0.25 + LN2)


def test_gradient_of_the_centerness_by_hand() -> None:
    maps, targets = one_row()
    FCOSLoss(2, strides=(8,))(*maps, targets)["loss_centerness"].backward()
    expected = torch.tensor([(0.5 - 1 / math.sqrt(3)) / 2] * 2 + [0.0])  # (σ(0) − t) / 2 positives
    torch.testing.assert_close(maps[2][0].grad.flatten(), expected)


def test_centerness_weighted_is_the_formula_of_the_official_code() -> None:
    maps, targets = one_row()
    targets[0]["boxes"] = torch.tensor([[0, 0, 24, 8]])  # third location too: centerness 1/√5, 1, 1/√5
    plain, weighted = (FCOSLoss(2, strides=(8,), centerness_weighted=flag)(*maps, targets) for flag in (False, True))
    c = torch.tensor([1 / math.sqrt(5), 1.0, 1 / math.sqrt(5)])
    # [0,0,16,8] 2/3 of the object; [0,0,32,8] 3/4 IoU; [19,3,21,5] has 4 of 192 pixels.
    costs = torch.tensor([1 / 3, 1 / 4, 1 - 4 / 192])
    assert plain["loss_box"].item() == pytest.approx(costs.mean().item())
    assert weighted["loss_box"].item() == pytest.approx(((c * costs).sum() / c.sum()).item())
    assert weighted["loss_cls"] == plain["loss_cls"] and weighted["loss_centerness"] == plain["loss_centerness"]


def test_centerness_weights_that_sum_to_less_than_1_are_divided_by_their_sum() -> None:
    maps, targets = one_row()
    targets[0]["boxes"] = torch.tensor([[2, 0, 14, 8]])  # the first two locations, √(2/10) each
    weighted = FCOSLoss(2, strides=(8,), centerness_weighted=True)(*maps, targets)
    assert weighted["loss_box"].item() == pytest.approx(((1 - 12 / 16) + (1 - 12 / 32)) / 2)


def reference(losses_of: FCOSLoss, maps: Maps, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The three terms spelt out per level with boolean masks and the functions of the library."""
    points = grid_points(SIZES, STRIDES, dtype=maps[1][0].dtype)
    chosen = FCOSAssigner()(points, targets).gt_index
    rows = [torch.cat([x.permute(0, 2, 3, 1).reshape(len(targets), -1, x.shape[1]) for x in kind], 1) for kind in maps]
    cls, box, ctr = 0.0, 0.0, 0.0
    for image, target in enumerate(targets):
        labels = torch.full_like(chosen[image], losses_of.num_classes)
        positive = chosen[image] >= 0
        own = chosen[image][positive]
        labels[positive] = target["labels"][own]
        cls = cls + functional.sigmoid_focal_loss(rows[0][image], labels, reduction="sum")
        xy, true = points.xy[positive], target["boxes"][own]
        ltrb = rows[1][image][positive]
        box = box + functional.giou_loss(torch.cat((xy - ltrb[:, :2], xy + ltrb[:, 2:]), 1), true, reduction="sum")
        quality = centerness(torch.cat((xy - true[:, :2], true[:, 2:] - xy), 1))
        ctr = ctr + F.binary_cross_entropy_with_logits(rows[2][image][positive, 0], quality, reduction="sum")
    count = (chosen >= 0).sum().clamp(min=1)
    return {"loss_cls": cls / count, "loss_box": box / count, "loss_centerness": ctr / count}


def test_defaults_are_focal_everywhere_giou_and_centerness_on_positives_divided_by_the_positives() -> None:
    maps, targets = random_maps(3, dtype=torch.float64), random_targets([4, 0, 2])
    targets = [{**t, "boxes": t["boxes"].double()} for t in targets]
    loss = criterion()
    losses, expected = loss(*maps, targets), reference(loss, maps, targets)
    for name in TERMS:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-12, atol=0)
    for got, want in zip(gradients(losses.total_loss, maps), gradients(sum(expected.values()), maps), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-15)


def test_confident_false_alarms_on_pure_background_cost() -> None:
    maps = copy_maps(random_maps(2), lambda x: torch.full_like(x, 10.0))
    losses = criterion()(*maps, random_targets([0, 0]))
    elements = 2 * (64 + 16 + 4) * 3
    assert losses["loss_cls"].item() == pytest.approx(elements * 0.75 * 10.0, rel=1e-3)  # −ln(1 − σ(10)) ≈ 10
    assert all(g.gt(0).all() for g in torch.autograd.grad(losses["loss_cls"], maps[0]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("where", ["nothing", "off the image", "all ignored"])
def test_every_prediction_is_connected_without_a_single_positive(where: str, weighted: bool) -> None:
    maps, targets = random_maps(2), random_targets([0, 0])
    if where == "off the image":
        targets[0] = {"boxes": torch.tensor([[900, 900, 990, 990]]), "labels": torch.tensor([0])}
    if where == "all ignored":
        targets = [{**t, "ignore_boxes": torch.tensor([[-1, -1, 65, 65]])} for t in targets]
    losses = criterion(centerness_weighted=weighted)(*maps, targets)
    assert losses["loss_box"] == 0 and losses["loss_centerness"] == 0
    assert (losses["loss_cls"] == 0) == (where == "all ignored")
    for name, kind in zip(TERMS, maps, strict=True):
        assert losses[name].requires_grad
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(losses[name], kind, retain_graph=True))
    assert losses.metrics["num_pos"] == 0 and losses.metrics["mean_iou"] == 0
    assert losses.metrics["num_gt_without_pos"] == (1 if where == "off the image" else 0)


def test_no_images_and_empty_maps() -> None:
    for maps, targets in ((random_maps(0), []), (random_maps(2, sizes=[(0, 4)]), random_targets([2, 0]))):
        losses = criterion()(*maps, targets)
        assert losses.total_loss == 0 and losses.total_loss.requires_grad


def test_ignore_boxes_and_crowds_take_their_locations_out_of_loss_cls() -> None:
    maps, targets = random_maps(2, dtype=torch.float64), random_targets([0, 0])
    targets[1]["ignore_boxes"] = torch.tensor([[0.0, 0.0, 32.0, 64.0]])  # the left half of every level
    losses = criterion()(*maps, targets)
    rows = torch.cat([x[0].flatten() for x in maps[0]] + [x[1][..., x.shape[-1] // 2 :].flatten() for x in maps[0]])
    expected = functional.sigmoid_focal_loss(rows[:, None], torch.ones(len(rows), dtype=torch.long), reduction="sum")
    torch.testing.assert_close(losses["loss_cls"], expected)
    for level in torch.autograd.grad(losses["loss_cls"], maps[0]):
        half = level.shape[-1] // 2
        assert level[1, ..., :half].eq(0).all() and level[1, ..., half:].ne(0).all() and level[0].ne(0).all()
    targets[1] = {"boxes": targets[1].pop("ignore_boxes"), "labels": torch.tensor([2]), "iscrowd": torch.tensor([1])}
    assert torch.equal(criterion()(*maps, targets)["loss_cls"], losses["loss_cls"])


def test_nan_and_inf_in_ignored_locations_do_no_harm() -> None:
    maps = copy_maps(random_maps(1))
    for level in leaves(maps):
        level.data[..., 0, 0] = float("nan")
    region = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "ignore_boxes": torch.tensor([[0.0, 0.0, 17.0, 17.0]])}
    losses = criterion()(*maps, [region])
    assert torch.isfinite(losses.total_loss)
    assert all(torch.isfinite(g).all() for g in gradients(losses.total_loss, maps))


def test_eval_equals_train() -> None:
    maps, targets = random_maps(2), random_targets([3, 1])
    loss = criterion()
    train, evaluated = loss.train()(*maps, targets), loss.eval()(*maps, targets)
    assert all(torch.equal(train[name], evaluated[name]) for name in TERMS)
    with torch.no_grad():
        torch.testing.assert_close(loss(*maps, targets).total_loss, train.total_loss.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["nan", "inf"])
@pytest.mark.parametrize("options", [{}, {"loss_cls": "QualityFocalLoss"}, {"loss_cls": "VarifocalLoss", "loss_box": "ciou"}])
def test_a_bad_image_leaves_the_gradients_of_the_others_finite(name: str, options: dict[str, str]) -> None:
    maps, targets = random_maps(3), random_targets([3, 4, 2], extent=60.0)
    for level in leaves(maps):
        level.data[1] = float(name)
    losses = criterion(**options)(*maps, targets)
    assert losses.metrics["num_pos"] > 3
    for gradient in gradients(losses.total_loss, maps):
        assert torch.isfinite(gradient[[0, 2]]).all()


@pytest.mark.parametrize("name", ["QualityFocalLoss", "VarifocalLoss"])
def test_a_predicted_box_that_is_not_a_number_has_the_score_0(name: str) -> None:
    maps, targets = random_maps(2), random_targets([3, 4])
    for level in maps[1]:
        level.data.fill_(float("nan"))
    losses = criterion(loss_cls=name)(*maps, targets)
    assert losses.metrics["num_pos"] > 0 and losses.metrics["mean_iou"] == 0
    assert torch.isfinite(losses["loss_cls"]) and losses["loss_box"].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    maps, targets = random_maps(2, dtype=dtype), random_targets([3, 2])
    losses, wide = criterion()(*maps, targets), criterion()(*copy_maps(maps, Tensor.float), targets)
    for name in TERMS:
        assert losses[name].dtype == torch.float32 and torch.equal(losses[name], wide[name])
    assert all(g.dtype == dtype and torch.isfinite(g).all() for g in gradients(losses.total_loss, maps))


def test_extreme_predictions_in_half_precision_stay_finite() -> None:
    maps = copy_maps(random_maps(2, dtype=torch.float16), lambda x: torch.full_like(x, 6e4))
    losses = criterion()(*maps, random_targets([3, 2]))
    assert torch.isfinite(losses.total_loss)
    assert all(torch.isfinite(g).all() for g in gradients(losses.total_loss, maps))


def test_float64_stays_float64_and_agrees_with_float32() -> None:
    maps, targets = random_maps(2), random_targets([3, 2])
    single, double = criterion()(*maps, targets), criterion()(*copy_maps(maps, Tensor.double), targets)
    for name in TERMS:
        assert double[name].dtype == torch.float64
        assert single[name].item() == pytest.approx(double[name].item(), rel=1e-5)


def test_the_call_of_the_documentation_with_one_of_five_levels_and_integer_boxes() -> None:
    maps = random_maps(2, 80, sizes=[(13, 13)])
    targets = [
        {"boxes": torch.tensor([[10, 10, 50, 50], [60, 60, 100, 100]]), "labels": torch.tensor([1, 5])},
        {"boxes": torch.tensor([[20, 20, 40, 40]]), "labels": torch.tensor([3])},
    ]
    losses = FCOSLoss(num_classes=80)(*maps, targets)
    # Centres at 4, 12 … 100: 12 … 44 lie in (10, 50), 68 … 92 in (60, 100), 28 and 36 in (20, 40), along both axes.
    assert losses.metrics["num_pos"] == 5 * 5 + 4 * 4 + 2 * 2
    assert torch.equal(losses["loss"], losses.total_loss) and torch.equal(losses["total_loss"], losses.total_loss)


def test_regress_ranges_decide_which_level_sees_an_object() -> None:
    maps, targets = random_maps(1), [{"boxes": torch.tensor([[0.0, 0.0, 64.0, 64.0]]), "labels": torch.tensor([0])}]
    inf = float("inf")
    # From a centre of the 2 × 2 level the farthest side is 48 away, from the 4 × 4 level 40 or 56.
    assert criterion(regress_ranges=((-1, 1), (1, 2), (47, 49)))(*maps, targets).metrics["num_pos"] == 4
    assert criterion(regress_ranges=((-1, 1), (2, 41), (57, inf)))(*maps, targets).metrics["num_pos"] == 4
    assert criterion(regress_ranges=((-1, inf), (-1, inf), (-1, inf)))(*maps, targets).metrics["num_pos"] == 84


def test_centre_sampling_radius_restricts_the_positives() -> None:
    maps, targets = random_maps(1, sizes=[(8, 8)]), [{"boxes": torch.tensor([[0, 0, 64, 64]]), "labels": torch.tensor([0])}]
    assert FCOSLoss(3, strides=(8,), center_sampling_radius=1.5)(*maps, targets).metrics["num_pos"] == 4  # 32 ± 12: 28, 36
    assert FCOSLoss(3, strides=(8,))(*maps, targets).metrics["num_pos"] == 64


def test_distances_in_strides() -> None:
    maps, targets = random_maps(2), random_targets([4, 2])
    cls, box, ctr = maps
    in_strides = [level.detach() / stride for level, stride in zip(box, STRIDES, strict=True)]
    pixels, strides = criterion()(*maps, targets), criterion(distance_unit="stride")(cls, in_strides, ctr, targets)
    for name in TERMS:
        torch.testing.assert_close(strides[name], pixels[name], rtol=1e-6, atol=0)


def test_the_loss_dict_is_its_terms() -> None:
    loss = criterion(weights={"loss_box": 2.0})
    losses = loss(*random_maps(2), random_targets([4, 2]))
    assert tuple(losses) == TERMS == loss.term_names and isinstance(losses, dict)
    assert torch.equal(sum(losses.values()), losses.total_loss) and losses.total_loss.requires_grad
    assert set(losses.metrics) == {"num_pos", "num_gt", "num_gt_without_pos", "mean_iou"}
    assert not any(x.requires_grad for x in (*losses.metrics.values(), *losses.unweighted.values()))
    logged = losses.log_dict(prefix="train/")
    assert list(logged) == [f"train/{name}" for name in ("total_loss", *TERMS, *losses.metrics)]
    assert all(value.ndim == 0 and not value.requires_grad for value in logged.values())
    assert logged["train/total_loss"] == losses.total_loss and logged["train/loss_box"] == losses["loss_box"]
    assert "total_loss" not in losses and len(losses) == 3
    with pytest.raises(KeyError, match=r"loss_bbox.*loss_box"):
        losses["loss_bbox"]


def test_the_criterion_can_be_copied_pickled_and_moved() -> None:
    maps, targets = random_maps(2), random_targets([4, 2])
    loss = criterion(loss_cls={"type": "FocalLoss", "alpha": [0.1, 0.2, 0.3]}, weights={"loss_box": 2.0})
    total = loss(*maps, targets).total_loss
    for same in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), loss.double().float()):
        assert torch.equal(same(*maps, targets).total_loss, total)
    assert not loss.state_dict() and not list(loss.parameters())


def test_describe_tells_the_whole_truth_of_every_term() -> None:
    text = criterion(loss_box={"type": "CIoULoss", "eps": 1e-5, "loss_weight": 2.0}, weights={"loss_box": 3.0}).describe()
    assert text.startswith("FCOSLoss: total_loss = loss_cls + loss_box + loss_centerness")
    blocks = {block.split(" ", 1)[0]: block for block in text.split("\nloss_")[1:]}
    assert set(blocks) == {"cls", "box", "centerness"}
    for word in ("FocalLoss", "gamma=2.0", "alpha=0.25", "1708.02002", "all locations", "background C"):
        assert word in blocks["cls"]
    for word in ("3 × CIoULoss", "loss_weight=2.0", "1 − IoU + ρ²/c² + αv", "eps: 1e-05", "1911.08287", "positives"):
        assert word in blocks["box"]
    assert "1904.01355" in blocks["centerness"]
    assert all("divided by: positives on all ranks, at least 1" in block for block in blocks.values())


def test_the_host_never_waits_for_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = random_maps(3), random_targets([5, 0, 3])
    targets[0]["iscrowd"] = torch.tensor([0, 1, 0, 0, 0])
    targets[2]["ignore_boxes"] = random_boxes(2)
    for options in ({}, {"loss_cls": "QualityFocalLoss", "loss_box": "ciou", "centerness_weighted": True}, {"loss_box": "l1"}):
        loss = criterion(**options)
        with no_value_checks(monkeypatch), HostReads() as reads:
            loss(*maps, targets).total_loss.backward()
        assert reads.found == [], options


def test_inputs_are_not_modified() -> None:
    maps, targets = random_maps(2), random_targets([4, 2])
    before = [x.detach().clone() for x in (*leaves(maps), *(t[k] for t in targets for k in ("boxes", "labels")))]
    criterion()(*maps, targets).total_loss.backward()
    after = [*leaves(maps), *(t[k] for t in targets for k in ("boxes", "labels"))]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_non_contiguous_maps_give_the_same() -> None:
    maps, targets = random_maps(2), random_targets([4, 2])
    strange = copy_maps(maps, lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    assert torch.equal(criterion()(*strange, targets).total_loss, criterion()(*maps, targets).total_loss)


def test_it_can_be_built_by_name() -> None:
    built = detloss.build({"type": "FCOSLoss", "num_classes": 3, "strides": (8,), "loss_box": "ciou"})
    assert isinstance(built, FCOSLoss) and isinstance(built.loss_box, detloss.CIoULoss)


@pytest.mark.parametrize(
    ("backend", "options"), [("aot_eager", {}), ("eager", {"loss_cls": "QualityFocalLoss", "loss_box": "ciou"})]
)
def test_it_compiles_inside_a_model_step_without_a_graph_break(backend: str, options: dict[str, str]) -> None:
    torch._dynamo.reset()
    head, loss = torch.nn.Conv2d(8, 8, 3, padding=1), FCOSLoss(3, strides=(8,), **options)
    features, targets = torch.randn(2, 8, 6, 6), random_targets([3, 2], extent=40.0)
    targets[0]["ignore_boxes"] = random_boxes(1, extent=40.0)

    def step(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        cls, box, ctr = head(x).split((3, 4, 1), dim=1)
        losses = loss([cls], [box.exp() * 8], [ctr], targets)
        return losses.total_loss, losses.log_dict()

    (total, logged), (compiled, compiled_log) = step(features), torch.compile(step, backend=backend, fullgraph=True)(features)
    torch.testing.assert_close(compiled, total)
    assert compiled_log.keys() == logged.keys() and logged["num_pos"] > 0
    wanted, got = (torch.autograd.grad(t, list(head.parameters())) for t in (total, compiled))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
