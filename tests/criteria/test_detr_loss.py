"""DETRLoss: its numbers by hand, what its layers share, and what counts neither way."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from criteria_cases import fresh, gradients, pixel_targets
from criteria_cases_detr import call_all, random_layer, random_layers
from fcos_cases import HostReads, no_value_checks
from torch import Tensor

import detloss
from detloss.assigners.hungarian import HungarianAssigner
from detloss.criteria.detr import DETRLoss
from detloss.criteria.detr_varifocal import MatchedVarifocalLoss

LN2, LN3 = math.log(2), math.log(3)
SIZE = (64, 128)
TERMS = ("loss_cls", "loss_box", "loss_iou")


def two_queries(columns: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of 0; boxes in units of the image: the left half, and the right quarter."""
    boxes = torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.875, 0.5, 0.25, 1.0]]])
    return torch.zeros(1, 2, columns, requires_grad=True), boxes.requires_grad_()


def one_object(*box: float, label: int = 1, **more: Tensor) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.tensor([list(box or (0.0, 0.0, 96.0, 64.0))]), "labels": torch.tensor([label]), **more}]


def test_softmax_values_by_hand() -> None:
    """The object takes the left three quarters of an image of 128 × 64 pixels: (0.375, 0.5, 0.75, 1)."""
    losses = DETRLoss(2)(*two_queries(), one_object(), image_sizes=SIZE)
    # Both queries cost ln 3, with weights 1 and 0.1, and are divided by 1.1.
    assert losses["loss_cls"].item() == pytest.approx(LN3)
    # The left query is matched: |0.25 − 0.375| + |0.5 − 0.75| = 0.375; its IoU is 0.5/0.75 and no corner is empty.
    assert losses["loss_box"].item() == pytest.approx(5 * 0.375)
    assert losses["loss_iou"].item() == pytest.approx(2 * (1 - 2 / 3))
    assert losses.unweighted["loss_iou"].item() == pytest.approx(1 / 3)
    assert losses.metrics["mean_iou"].item() == pytest.approx(2 / 3)
    assert [losses.metrics[name].item() for name in ("num_pos", "num_gt", "num_gt_without_pos")] == [1, 1, 0]


def test_gradients_by_hand() -> None:
    logits, boxes = two_queries()
    losses = DETRLoss(2)(logits, boxes, one_object(), image_sizes=SIZE)
    (of_classes,) = torch.autograd.grad(losses["loss_cls"], logits)
    third = 1 / 3  # softmax − one-hot of class 1, and of column 2 with weight 0.1
    expected = torch.tensor([[third, third - 1, third], [0.1 * third, 0.1 * third, 0.1 * (third - 1)]]) / 1.1
    torch.testing.assert_close(of_classes[0], expected)
    (of_boxes,) = torch.autograd.grad(losses["loss_box"], boxes)  # the centre is to move right and the box to widen
    torch.testing.assert_close(of_boxes[0], torch.tensor([[-5.0, 0.0, -5.0, 0.0], [0.0] * 4]))


def test_focal_values_by_hand() -> None:
    """Four logits of 0: ln 2 / 4 each, α = 1/4 for the positive and 3/4 for the others; one object."""
    losses = DETRLoss.preset("deformable_detr", num_classes=2)(*two_queries(2), one_object(), image_sizes=SIZE)
    assert losses["loss_cls"].item() == pytest.approx(2 * (0.25 + 3 * 0.75) * LN2 / 4)
    assert losses["loss_box"].item() == pytest.approx(5 * 0.375)


def test_varifocal_values_and_gradients_by_hand() -> None:
    """The positive has q = 2/3: q ln 2, with slope q (1/2 − q); the others α/4 ln 2, with slope α/4 · 1/2 as α σ² is held."""
    logits, boxes = two_queries(2)
    losses = DETRLoss.preset("rtdetr", num_classes=2)(logits, boxes, one_object(), image_sizes=SIZE)
    assert losses["loss_cls"].item() == pytest.approx((2 / 3 + 3 * 0.75 / 4) * LN2)
    (grad,) = torch.autograd.grad(losses["loss_cls"], logits)
    torch.testing.assert_close(grad[0], torch.tensor([[0.75 / 8, 2 / 3 * (1 / 2 - 2 / 3)], [0.75 / 8, 0.75 / 8]]))


def test_matched_varifocal_differs_from_varifocal_at_quality_0_and_in_the_slope_of_the_factor() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels, score = torch.tensor([0, 4, 3, 1, 4, 2]), torch.tensor([0.5, 0.0, 1.0, 0.25, 0.0, 0.7], dtype=torch.float64)
    ours, plain = MatchedVarifocalLoss(0.6, 1.5, constant_factor=False), detloss.VarifocalLoss(0.6, 1.5)
    torch.testing.assert_close(ours(logits, (labels, score)), plain(logits, (labels, score)))
    got, want = (torch.autograd.grad(loss(logits, (labels, score)), logits)[0] for loss in (ours, plain))
    torch.testing.assert_close(got, want)
    row = MatchedVarifocalLoss()(logits[:1], (labels[:1], score[:1] * 0), reduction_override="none")
    assert row[0, 0] == 0 and (row[0, 1:] > 0).all()


def varifocal_as_written(logits: Tensor, labels: Tensor, score: Tensor, held: bool) -> Tensor:
    """The formula term by term, on classes made one-hot; −100 is ignored."""
    classes = logits.shape[1]
    hot = torch.nn.functional.one_hot(labels.clamp(min=0), classes + 1)[:, :classes] * (labels >= 0)[:, None]
    q, p = score[:, None] * hot, (logits.detach() if held else logits).sigmoid()
    factor = torch.where(hot > 0, q, 0.75 * p * p)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, q, reduction="none")
    return factor * loss * (labels != -100)[:, None]


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matched_varifocal_and_two_derivatives_are_those_of_the_formula(dtype: torch.dtype, held: bool) -> None:
    torch.manual_seed(3)
    logits = (3 * torch.randn(8, 5, dtype=dtype)).requires_grad_()
    labels, score = torch.tensor([0, 5, 3, -100, 1, 5, 2, 4]), torch.rand(8, dtype=dtype)
    score[2], weight = 0, torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 0.0, 1.0, 3.0], dtype=dtype)
    loss = MatchedVarifocalLoss(constant_factor=held)
    direction = torch.randn_like(logits)
    found = []
    for total in (
        loss(logits, (labels, score), weight=weight, avg_factor=3.0),
        (varifocal_as_written(logits, labels, score, held) * weight[:, None]).sum() / 3,
    ):
        (slope,) = torch.autograd.grad(total, logits, create_graph=True)
        (curvature,) = torch.autograd.grad((slope * direction).sum(), logits)
        found.append((total, slope, curvature))
    torch.testing.assert_close(*found)


def test_matched_varifocal_hides_what_does_not_count_and_nothing_else() -> None:
    labels, score = torch.tensor([0, 1, 2]), torch.tensor([0.0, 0.5, 1.0])
    loss = MatchedVarifocalLoss()
    for bad in (math.nan, math.inf):
        logits = torch.tensor([[bad, 0.0], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
        muted = loss(logits, (labels, score), weight=torch.tensor([0.0, 1.0, 1.0]), reduction_override="sum")
        ignored = loss(logits, (torch.tensor([-100, 1, 2]), score), reduction_override="sum")
        torch.testing.assert_close(muted, ignored)
        assert muted.isfinite() and torch.autograd.grad(muted + ignored, logits)[0].isfinite().all()
        # A match of quality 0 costs 0 times its cross entropy, which is not 0 here.
        assert loss(logits, (labels, score)).isnan()


def test_every_layer_pays_as_if_it_were_the_last() -> None:
    torch.manual_seed(0)
    layers, targets = [random_layer(2, 7, 4, torch.float64) for _ in range(3)], pixel_targets((3, 1))
    criterion = DETRLoss(3)
    together = criterion(*layers[2], targets, [layers[0], {"pred_logits": layers[1][0], "pred_boxes": layers[1][1]}], SIZE)
    assert list(together) == [name + suffix for suffix in ("", "_0", "_1") for name in TERMS]
    for suffix, layer in (("", layers[2]), ("_0", layers[0]), ("_1", layers[1])):
        alone = criterion(*layer, targets, image_sizes=SIZE)
        for name in TERMS:
            torch.testing.assert_close(together[name + suffix], alone[name], rtol=1e-12, atol=0)
    torch.testing.assert_close(together.total_loss, sum(together.values()))


def test_all_layers_are_matched_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = HungarianAssigner.__call__

    def counted(self, priors, targets, scores=None, boxes=None, image_sizes=None):  # type: ignore[no-untyped-def]
        calls.append(tuple(scores.shape))
        return plain(self, priors, targets, scores, boxes, image_sizes)

    monkeypatch.setattr(HungarianAssigner, "__call__", counted)
    call_all(DETRLoss(3), random_layers(2, 4), pixel_targets((3, 0)))
    assert calls == [(4 * 2, 12, 4)]  # last, two auxiliary, encoder; denoising queries come matched


def test_nothing_is_read_on_the_host_but_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, targets = random_layers(2, 4), pixel_targets((3, 1))
    index = torch.tensor([[0, 2, -1, -2], [0, -1, -1, -2]])
    with no_value_checks(monkeypatch), HostReads() as reads:
        losses = DETRLoss(3)(
            *layers["last"], targets, layers["aux"], SIZE, enc_outputs=layers["enc"], dn_outputs=layers["dn"], dn_gt_index=index
        )
        losses.total_loss.backward()
    assert reads.found == []


def test_weights_of_terms_and_of_layers() -> None:
    layers, targets = random_layers(2, 4, torch.float64), pixel_targets((3, 1))
    plain = call_all(DETRLoss(3), layers, targets)
    weighed = call_all(DETRLoss(3, weights={"loss_box": 1.0}, aux_weight=0.5, enc_weight=0.0, dn_weight=3.0), layers, targets)
    for name, value in plain.items():
        base = 0.2 if name.startswith("loss_box") else 1.0
        factor = 3.0 if "_dn" in name else 0.0 if "_enc" in name else 0.5 if name[-1].isdigit() else 1.0
        torch.testing.assert_close(weighed[name], base * factor * value, rtol=1e-12, atol=0)
        assert torch.equal(weighed.unweighted[name], plain.unweighted[name])
    with pytest.raises(ValueError, match="no term 'loss_box_0' to weigh"):
        DETRLoss(3, weights={"loss_box_0": 1.0})


def test_denoising_queries_pay_for_the_objects_they_are_given() -> None:
    """Two pairs, one query for the background, one of padding."""
    torch.manual_seed(0)
    logits, boxes = random_layer(1, 4, 3, torch.float64)
    targets = pixel_targets((2,))
    targets[0]["labels"] = torch.tensor([0, 1])
    criterion, index = DETRLoss.preset("deformable_detr", num_classes=3), torch.tensor([[1, -1, 0, -2]])
    losses = criterion(
        *random_layer(1, 5, 3), targets, None, 64 * torch.ones(1, 2), dn_outputs=[(logits, boxes)], dn_gt_index=index
    )
    rows, labels = logits[0, :3], torch.tensor([1, 3, 0])
    expected = detloss.functional.sigmoid_focal_loss(rows, labels, reduction="sum") / 2
    torch.testing.assert_close(losses.unweighted["loss_cls_dn_0"], expected.detach())
    corners = targets[0]["boxes"].double() / 64
    true = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
    difference = (boxes[0, [0, 2]] - true[[1, 0]]).abs().sum() / 2
    torch.testing.assert_close(losses.unweighted["loss_box_dn_0"], difference.detach())
    (grad,) = torch.autograd.grad(losses.total_loss, logits)
    assert (grad[0, :3] != 0).all() and (grad[0, 3] == 0).all()


def test_a_class_agnostic_encoder_sees_class_0_only() -> None:
    layers, targets = random_layers(2, 4, torch.float64), pixel_targets((3, 1))
    got = call_all(DETRLoss(3, encoder_class_agnostic=True), layers, targets)
    blank = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    alone = DETRLoss(3)(*layers["enc"], blank, image_sizes=(64, 64))
    for name in TERMS:
        torch.testing.assert_close(got[name + "_enc"], alone[name], rtol=1e-12, atol=0)
    assert got["loss_cls"] == call_all(DETRLoss(3), layers, targets)["loss_cls"]


@pytest.mark.parametrize(("box_count", "count"), [("objects", 3), ("pairs", 2)])
def test_more_objects_than_queries(box_count: str, count: int) -> None:
    targets = [{"boxes": torch.tensor([[0.0, 0, 64, 64], [96, 0, 128, 64], [0, 0, 8, 8]]), "labels": torch.tensor([0, 1, 1])}]
    losses = DETRLoss.preset("dino", num_classes=2, box_count=box_count)(*two_queries(2), targets, image_sizes=SIZE)
    assert losses.metrics["num_pos"] == 2 and losses.metrics["num_gt_without_pos"] == 1
    assert losses["loss_cls"].item() == pytest.approx((2 * 0.25 + 2 * 0.75) * LN2 / 4 / count)
    assert losses["loss_box"] == 0


def test_queries_on_an_ignore_box_pay_nothing_unless_they_are_matched() -> None:
    logits, boxes = two_queries()
    region = torch.tensor([[0.0, 0.0, 128.0, 64.0]])
    losses = DETRLoss(2)(logits, boxes, one_object(ignore_boxes=region), image_sizes=SIZE)
    (grad,) = torch.autograd.grad(losses.total_loss, logits)
    assert (grad[0, 0] != 0).all() and (grad[0, 1] == 0).all()
    assert losses["loss_cls"].item() == pytest.approx(LN3)  # of one row, divided by its weight


def test_a_query_that_is_not_a_number_is_not_matched_and_hurts_its_image_alone() -> None:
    logits, boxes = random_layer(2, 4, 4)
    boxes = boxes.detach().clone()
    boxes[0, :3] = float("nan")
    (logits, boxes), targets = fresh((logits, boxes)), pixel_targets((1, 2))
    losses = DETRLoss(3)(logits, boxes, targets, image_sizes=SIZE)
    assert torch.isfinite(losses.total_loss) and losses.metrics["num_pos"] == 3
    assert all(torch.isfinite(g).all() for g in gradients(losses.total_loss, (logits, boxes)))


def test_class_weights_and_label_smoothing_reach_the_loss() -> None:
    torch.manual_seed(0)
    logits, boxes = random_layer(2, 6, 4, torch.float64)
    targets, weights = pixel_targets((3, 2)), torch.tensor([1.0, 4.0, 0.5, 2.0], dtype=torch.float64)
    config = {"type": "CrossEntropyLoss", "class_weight": weights.tolist(), "label_smoothing": 0.1}
    criterion = DETRLoss(3, loss_cls=config)
    matched = criterion.match(logits, boxes, targets, image_sizes=SIZE)
    labels, per_class = matched.outputs[0].labels, weights * torch.tensor([1.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    own = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights, reduction="none", label_smoothing=0.1)
    row = torch.where(labels.flatten() == 3, 0.1, 1.0)
    expected = (row * own).sum() / per_class[labels].sum()
    torch.testing.assert_close(criterion.finish(matched)["loss_cls"], expected)
    options = {"class_weight": [2.0, 3.0, 4.0], "label_smoothing": 0.1}
    focal = DETRLoss(3, loss_cls={"type": "FocalLoss", **options}).match(logits[..., :3], boxes, targets, image_sizes=SIZE)
    rows, labels = logits[..., :3].flatten(0, 1), focal.outputs[0].labels.flatten()
    expected = detloss.functional.sigmoid_focal_loss(rows, labels, reduction="sum", **options) / 5
    losses = DETRLoss(3, loss_cls={"type": "FocalLoss", **options})(logits[..., :3], boxes, targets, image_sizes=SIZE)
    torch.testing.assert_close(losses["loss_cls"], expected)


def test_any_loss_serves_as_a_term() -> None:
    logits, boxes = random_layer(2, 6, 3, torch.float64)
    targets = pixel_targets((3, 2))
    for name in ("QualityFocalLoss", "VarifocalLoss", {"type": "CrossEntropyLoss", "use_sigmoid": True}):
        losses = DETRLoss(3, loss_cls=name, loss_box="SmoothL1Loss", loss_iou="ciou")(logits, boxes, targets, image_sizes=SIZE)
        assert torch.isfinite(losses.total_loss) and losses.metrics["num_pos"] == 5
    softmax = {"type": "FocalLoss", "use_sigmoid": False}
    assert DETRLoss(2, loss_cls=softmax)(logits, boxes, [{**t, "labels": t["labels"] % 2} for t in targets], image_sizes=SIZE)
    both = DETRLoss(3, loss_cls="FocalLoss", loss_box="GIoULoss", loss_iou="GIoULoss")
    losses = both(logits, boxes, targets, image_sizes=SIZE)
    torch.testing.assert_close(losses.unweighted["loss_box"], losses.unweighted["loss_iou"])
