"""The losses of ``detloss.compat.mmdet`` against the formulas of mmdet, their signatures, and where its numbers are defects."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as torch_f
from conformance import mmdet_boxes as boxes_of
from conformance import mmdet_formulas as mmdet
from torch import Tensor

from detloss.compat.mmdet.models import losses as L
from detloss.compat.mmdet.registry import MODELS

LOSSES = sorted(MODELS.module_dict)
ORDER = ["weight", "avg_factor", "reduction_override"]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def classes(rng: torch.Generator, rows: int = 12, columns: int = 5) -> tuple[Tensor, Tensor]:
    logits = torch.randn(rows, columns, generator=rng, dtype=torch.float64) * 3
    return logits, torch.randint(0, columns + 1, (rows,), generator=rng)


def pairs(rng: torch.Generator, rows: int = 20) -> tuple[Tensor, Tensor]:
    """Boxes of 10 to 60 px beside ones moved by up to 20 px."""
    corner = torch.rand(rows, 2, generator=rng, dtype=torch.float64) * 40
    target = torch.cat((corner, corner + 10 + torch.rand(rows, 2, generator=rng, dtype=torch.float64) * 50), 1)
    moved = target + torch.rand(rows, 4, generator=rng, dtype=torch.float64) * torch.tensor([-20.0, -20, 20, 20])
    return moved, target


def close(ours: Tensor, theirs: Tensor, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize(("weighted", "factor"), [(False, None), (True, None), (True, 7.0)])
def test_focal_by_rows_logits_and_flattened_weights(rng: torch.Generator, weighted: bool, factor: float | None) -> None:
    logits, labels = classes(rng)
    rows = torch.rand(12, generator=rng, dtype=torch.float64)
    every = mmdet.py_sigmoid_focal_loss(logits, labels, 1.5, 0.4)
    expected = mmdet.weight_reduce_loss(every, rows[:, None] if weighted else None, "mean", factor)
    loss = L.FocalLoss(gamma=1.5, alpha=0.4, loss_weight=2.0)
    for weight in (rows, rows[:, None], rows[:, None].expand(12, 5), rows.repeat_interleave(5)) if weighted else (None,):
        close(loss(logits, labels, weight, factor), 2 * expected)
    one_hot = mmdet.one_hot(labels, 5)
    close(L.py_sigmoid_focal_loss(logits, one_hot, None, 1.5, 0.4, "sum"), every.sum())
    activated = L.FocalLoss(activated=True, reduction="none")(logits.sigmoid(), labels)
    close(activated, mmdet.py_focal_loss_with_prob(logits.sigmoid(), labels))


def test_cross_entropies(rng: torch.Generator) -> None:
    logits, labels = classes(rng)
    own = labels.clamp(max=4)
    ignored = torch.where(labels == 1, 255, own)
    factors = [0.5, 1.0, 2.0, 1.0, 3.0]
    per_class = torch.tensor(factors, dtype=torch.float64)
    close(L.CrossEntropyLoss(class_weight=factors)(logits, own), mmdet.cross_entropy(logits, own, per_class))
    close(L.CrossEntropyLoss(ignore_index=255)(logits, ignored), mmdet.cross_entropy(logits, ignored, None, 255))
    close(
        L.CrossEntropyLoss(ignore_index=255, avg_non_ignore=True)(logits, ignored),
        torch_f.cross_entropy(logits, ignored, ignore_index=255),
    )
    close(L.CrossEntropyLoss()(logits, own, ignore_index=3), mmdet.cross_entropy(logits, own, None, 3))
    sigmoid = L.CrossEntropyLoss(use_sigmoid=True, class_weight=factors, reduction="none")
    close(sigmoid(logits, labels), mmdet.binary_cross_entropy(logits, labels, per_class))


def test_binary_cross_entropy_leaves_negative_labels_out(rng: torch.Generator) -> None:
    logits, labels = classes(rng)
    out = torch.where(labels == 2, -1, labels)
    expected = mmdet.binary_cross_entropy(logits, labels)
    expected[labels == 2] = 0
    close(L.binary_cross_entropy(logits, out, reduction="none"), expected)
    kept = (labels != 2).sum() * 5
    close(L.CrossEntropyLoss(use_sigmoid=True, avg_non_ignore=True)(logits, out), expected.sum() / kept)
    dense = torch.rand(12, 5, generator=rng, dtype=torch.float64)
    dense[3] = -1
    got = L.CrossEntropyLoss(use_sigmoid=True, reduction="sum")(logits, dense, torch.arange(12.0))
    rest = [n for n in range(12) if n != 3]
    every = torch_f.binary_cross_entropy_with_logits(logits[rest], dense[rest], reduction="none").sum(1)
    close(got, (every * torch.tensor(rest)).sum())


def test_one_logit_and_objectness_shapes() -> None:
    """An RPN has labels 0 for objects and 1 for background beside one column; centerness has neither."""
    rpn = L.CrossEntropyLoss(use_sigmoid=True, reduction="none")(torch.zeros(2, 1), torch.tensor([0, 1]))
    assert rpn.shape == (2, 1)
    centre = L.CrossEntropyLoss(use_sigmoid=True)(torch.tensor([2.0, -1.0]), torch.tensor([0.25, 0.5]), avg_factor=4)
    every = torch_f.binary_cross_entropy_with_logits(torch.tensor([2.0, -1.0]), torch.tensor([0.25, 0.5]), reduction="sum")
    close(centre, every / 4)


def test_mask_form_takes_labels_third_and_returns_one_element(rng: torch.Generator) -> None:
    logits, masks = torch.randn(3, 4, 7, 7, generator=rng), torch.rand(3, 7, 7, generator=rng)
    labels = torch.tensor([1, 0, 3])
    loss = L.CrossEntropyLoss(use_mask=True, loss_weight=0.5)(logits, masks, labels)
    assert loss.shape == (1,)
    close(loss, 0.5 * mmdet.mask_cross_entropy(logits, masks, labels))
    assert L.CrossEntropyLoss(use_mask=True)(logits[:0], masks[:0], labels[:0]).tolist() == [0.0]
    with pytest.raises(AssertionError):
        L.mask_cross_entropy(logits, masks, labels, reduction="sum")


def test_quality_losses(rng: torch.Generator) -> None:
    logits, labels = classes(rng)
    score = torch.rand(12, generator=rng, dtype=torch.float64)
    qfl = L.QualityFocalLoss(beta=1.5, reduction="none")
    close(qfl(logits, (labels, score)), mmdet.quality_focal_loss(logits, labels, score, 1.5))
    close(qfl(logits, (torch.where(labels == 5, -1, labels), score)), qfl(logits, (labels, score)))  # −1 is background
    dense = torch.rand(12, 5, generator=rng, dtype=torch.float64) * (torch.rand(12, 5, generator=rng) > 0.5)
    close(L.VarifocalLoss(reduction="none")(logits, dense), mmdet.varifocal_loss(logits, dense))
    close(L.varifocal_loss(logits, dense, iou_weighted=False, alpha=0.6, reduction="sum"),
          mmdet.varifocal_loss(logits, dense, 0.6, iou_weighted=False).sum())  # fmt: skip
    bins, sides = torch.randn(8, 17, generator=rng, dtype=torch.float64), torch.rand(8, generator=rng, dtype=torch.float64) * 15
    weight = torch.rand(8, generator=rng, dtype=torch.float64)
    expected = mmdet.weight_reduce_loss(mmdet.distribution_focal_loss(bins, sides), weight, "mean", 4.0)
    close(L.DistributionFocalLoss(loss_weight=0.25)(bins, sides, weight=weight, avg_factor=4.0), 0.25 * expected)


def test_gaussian_focal_loss_takes_probabilities(rng: torch.Generator) -> None:
    p = torch.rand(6, 3, generator=rng, dtype=torch.float64) * 0.98 + 0.01
    heat = torch.rand(6, 3, generator=rng, dtype=torch.float64)
    heat[2, 1] = heat[4, 0] = 1.0
    close(L.GaussianFocalLoss(reduction="none")(p, heat), mmdet.gaussian_focal_loss(p, heat))
    weighted = L.GaussianFocalLoss(reduction="sum", pos_weight=0.25, neg_weight=0.75)(p, heat)
    every, centre = mmdet.gaussian_focal_loss(p, heat), heat == 1
    close(weighted, 0.25 * every[centre].sum() + 0.75 * every[~centre].sum())
    inds, labels = torch.tensor([2, 4]), torch.tensor([1, 0])
    found = L.GaussianFocalLoss()(p, heat, inds, labels, avg_factor=2)
    positive = -(1 - p[inds, labels]).pow(2) * p[inds, labels].log()
    negative = -(1 - p).log() * p.pow(2) * (1 - heat).pow(4)
    close(found, positive.sum() / 2 + negative.sum() / 2)


def test_harmonized_losses_divide_by_what_counts(rng: torch.Generator) -> None:
    logits, labels = classes(rng)
    one_hot = mmdet.one_hot(labels, 5)
    ones = torch.ones(12)
    close(L.GHMC(bins=7)(logits, labels, ones, avg_factor=99.0), mmdet.ghmc(logits, one_hot, 7))
    part = torch.tensor([1.0, 3.0] + [1.0] * 8 + [0.0] * 2)
    close(L.GHMC(bins=7)(logits, one_hot, part[:, None].expand(12, 5)), mmdet.ghmc(logits[:10], one_hot[:10], 7))
    close(L.GHMC(momentum=0.75)(logits, labels, ones), mmdet.ghmc(logits, one_hot, momentum=0.75))
    pred, target = torch.randn(9, 4, generator=rng, dtype=torch.float64), torch.zeros(9, 4, dtype=torch.float64)
    close(L.GHMR(mu=0.1)(pred, target, torch.ones(9, 4)), mmdet.ghmr(pred, target, 0.1))


def test_seesaw_returns_two_parts_and_counts(rng: torch.Generator) -> None:
    logits, labels = torch.randn(10, 7, generator=rng, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 2, 2, 5, 5, 4, 3])
    loss = L.SeesawLoss(num_classes=5, loss_weight=2.0)
    parts = loss(logits, labels)
    own = labels < 5
    counts = torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    assert loss.class_counts.tolist() == counts.tolist()
    close(parts["loss_cls_classes"], 2 * mmdet.seesaw_ce_loss(logits[own, :5], labels[own], counts).mean())
    close(parts["loss_cls_objectness"], 2 * torch_f.cross_entropy(logits[:, 5:], (~own).long()))
    scores = loss.get_activation(logits)
    assert scores.shape == (10, 6)
    close(scores.sum(1), torch.ones(10, dtype=torch.float64))
    background = L.SeesawLoss(num_classes=5, return_dict=False)(logits, torch.full((10,), 5))
    close(background, torch_f.cross_entropy(logits[:, 5:], torch.ones(10).long()))


def test_equalization_loss_has_a_column_for_the_background(rng: torch.Generator) -> None:
    logits, labels = torch.randn(10, 6, generator=rng, dtype=torch.float64), torch.randint(0, 6, (10,), generator=rng)
    loss = L.EQLV2Loss(num_classes=5)
    ratio = torch.full((5,), 100.0, dtype=torch.float64)
    background = torch_f.binary_cross_entropy_with_logits(logits[:, 5], (labels == 5).double(), reduction="sum") / 10
    close(loss(logits, labels), mmdet.eqlv2(logits[:, :5], labels, ratio) + background)
    ratio = loss.positive_gradients / loss.negative_gradients
    close(loss(logits, labels), mmdet.eqlv2(logits[:, :5], labels, ratio) + background)


def test_regression_and_distillation(rng: torch.Generator) -> None:
    pred, target = (torch.randn(8, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(8, 4, generator=rng, dtype=torch.float64)
    d = (pred - target).abs()
    for loss, every in (
        (L.L1Loss(), d), (L.MSELoss(), d * d), (L.SmoothL1Loss(beta=0.3), mmdet.smooth_l1_loss(pred, target, 0.3)),
        (L.BalancedL1Loss(), mmdet.balanced_l1_loss(pred, target)),
    ):  # fmt: skip
        close(loss(pred, target, weight, 5.0), mmdet.weight_reduce_loss(every, weight, "mean", 5.0))
        close(loss(pred, target, reduction_override="none"), every)
    close(L.KnowledgeDistillationKLDivLoss(T=4, reduction="none")(pred, target),
          mmdet.knowledge_distillation_kl_div_loss(pred, target, 4.0))  # fmt: skip


def test_dice_takes_the_override_fourth(rng: torch.Generator) -> None:
    logits, masks = torch.randn(5, 9, 9, generator=rng), (torch.rand(5, 9, 9, generator=rng) > 0.5).float()
    close(L.DiceLoss(naive_dice=True, reduction="none")(logits, masks), mmdet.dice_loss(logits, masks, naive_dice=True))
    every = mmdet.dice_loss(logits, masks, eps=0.0)
    close(L.DiceLoss(eps=0.0)(logits, masks, torch.arange(5.0), None, 7.0), (every * torch.arange(5.0)).sum() / 7, 1e-5)
    torch.testing.assert_close(L.DiceLoss(reduction="none")(logits, masks), mmdet.dice_loss(logits, masks), rtol=0, atol=1e-4)
    assert L.DiceLoss()(torch.full((1, 4), -200.0), torch.zeros(1, 4)) == 0  # there 1
    with pytest.raises(NotImplementedError):
        L.DiceLoss(use_sigmoid=False)(logits, masks)
    with pytest.raises(AssertionError):
        L.DiceLoss()(logits, masks, torch.rand(3))


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        (L.IoULoss(), boxes_of.iou_loss),
        (L.IoULoss(linear=True), lambda p, t: boxes_of.iou_loss(p, t, "linear")),
        (L.IoULoss(mode="square"), lambda p, t: boxes_of.iou_loss(p, t, "square")),
        (L.GIoULoss(), boxes_of.giou_loss),
        (L.DIoULoss(), boxes_of.diou_loss),
        (L.CIoULoss(), boxes_of.ciou_loss),
        (L.EIoULoss(), boxes_of.eiou_loss),
        (L.EIoULoss(smooth_point=0.6), lambda p, t: boxes_of.eiou_loss(p, t, 0.6)),
        (L.SIoULoss(), lambda p, t: boxes_of.siou_loss(p, t, neg_gamma=True)),
    ],
    ids=lambda x: repr(x) if isinstance(x, torch.nn.Module) else "",
)
def test_iou_losses_and_their_weights(rng: torch.Generator, loss: torch.nn.Module, formula: Callable[..., Tensor]) -> None:
    pred, target = pairs(rng)
    every = formula(pred, target)
    close(loss(pred, target, reduction_override="none"), every, 2e-6)
    weight = torch.rand(20, generator=rng, dtype=torch.float64)
    expected = mmdet.weight_reduce_loss(every, weight, "mean", 3.0)
    close(loss(pred, target, weight, 3.0), expected, 2e-6)
    close(loss(pred, target, weight[:, None].expand(20, 4), 3.0), expected, 2e-6)


def test_bounded_iou_mean_divides_by_four_times_the_boxes(rng: torch.Generator) -> None:
    pred, target = pairs(rng)
    every = boxes_of.bounded_iou_loss(pred, target, eps=1e-9)
    loss = L.BoundedIoULoss(eps=1e-9)
    close(loss(pred, target), every.mean())
    close(loss(pred, target, avg_factor=6), every.sum() / 6)


def test_boxes_apart_have_a_signed_extended_iou() -> None:
    """[0, 10] and [20, 30] in x: I = 10·10 + 10·10 − 20·10 − 20·0 … by the corners of the definition."""
    pred, target = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[20.0, 0.0, 30.0, 10.0]])
    loss = L.eiou_loss(pred, target)
    close(loss, boxes_of.eiou_loss(pred, target)[0])
    assert loss > 1
    assert L.EIoULoss()(target, target) == 0


def test_functions_have_the_arguments_of_weighted_loss(rng: torch.Generator) -> None:
    pred, target = pairs(rng)
    names = [n for n in L.__all__ if n.endswith("_loss") and n not in ("reduce_loss", "weight_reduce_loss", "weighted_loss")]
    for name in names:
        parameters = list(inspect.signature(getattr(L, name)).parameters)
        middle = (
            ["weight"] if name in ("sigmoid_focal_loss", "py_sigmoid_focal_loss", "varifocal_loss", "dice_loss") else ORDER[:1]
        )
        assert parameters[2:3] == middle and "avg_factor" in parameters and "reduction" in parameters, name
    close(L.giou_loss(pred, target, None, "none"), boxes_of.giou_loss(pred, target))
    close(L.ciou_loss(pred, target, None, "none"), boxes_of.ciou_loss(pred, target))
    close(L.l1_loss(pred, target, None, "mean", 3), (pred - target).abs().sum() / 3)
