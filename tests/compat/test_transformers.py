"""transformers' losses of DETR and its relatives, against the installed package, and where they differ on purpose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compat.sides import DTYPES, assert_same, boxes, peer, random, slope_of
from torch import Tensor

from detloss.compat.transformers import loss as ours

peer("transformers")
theirs = SimpleNamespace(
    **{
        name: pytest.importorskip(f"transformers.loss.{name}")
        for name in ("loss_for_object_detection", "loss_deformable_detr", "loss_rt_detr", "loss_d_fine", "loss_utils")
    }
)

CLASSES, QUERIES, GROUPS, BINS, LAYERS = 4, 7, 2, 8, 3
COUNTS = [(3, 0, 2), (0, 0), (9, 1)]  # 9 objects for 7 queries
counts = pytest.mark.parametrize("counts", COUNTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)

DETR = SimpleNamespace(
    num_labels=CLASSES, class_cost=1, bbox_cost=5, giou_cost=2, eos_coefficient=0.1, bbox_loss_coefficient=5,
    giou_loss_coefficient=2, auxiliary_loss=True, decoder_layers=LAYERS, focal_alpha=0.25, mask_loss_coefficient=1.5,
    dice_loss_coefficient=0.5,
)  # fmt: skip
RT_DETR = SimpleNamespace(
    num_labels=CLASSES, matcher_class_cost=2.0, matcher_bbox_cost=5.0, matcher_giou_cost=2.0, use_focal_loss=True,
    matcher_alpha=0.25, matcher_gamma=2.0, weight_loss_vfl=1.0, weight_loss_bbox=5.0, weight_loss_giou=2.0, eos_coefficient=1e-4,
    focal_loss_alpha=0.75, focal_loss_gamma=2.0, auxiliary_loss=True, max_num_bins=BINS, reg_scale=4.0, up=0.5,
    weight_loss_fgl=0.15, weight_loss_ddf=1.5,
)  # fmt: skip


def unit_boxes(g: torch.Generator, *shape: int) -> Tensor:
    """(cx, cy, w, h) in units of the image."""
    return torch.cat((torch.rand(*shape, 2, generator=g) * 0.6 + 0.2, torch.rand(*shape, 2, generator=g) * 0.5 + 0.1), -1)


def labels_of(groups: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    g = random(1)
    return [
        {"boxes": unit_boxes(g, n).to(dtype), "class_labels": torch.randint(CLASSES, (n,), generator=g),
         "masks": (torch.rand(n, 12 + 4 * k, 16, generator=g) > 0.5).float()}
        for k, n in enumerate(groups)
    ]  # fmt: skip


def meta_of(groups: tuple[int, ...]) -> dict[str, Any]:
    most = max(groups)
    place = [torch.cat([torch.arange(n) + 2 * most * group for group in range(GROUPS)]) for n in groups]
    return {"dn_positive_idx": place, "dn_num_group": GROUPS, "dn_num_split": [2 * most * GROUPS, QUERIES]}


def layers(images: int, queries: int, columns: int, dtype: torch.dtype, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Logits and boxes ``[L, B, Q, ·]``."""
    g = random(seed)
    logits = torch.randn(LAYERS, images, queries, columns, generator=g).to(dtype)
    return logits, unit_boxes(g, LAYERS, images, queries).to(dtype)


def compare(run: Any, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """``run(side, *inputs)`` gives (total, terms) alike, and the same gradients of the total."""
    tolerance, found = (1e-5 if dtype == torch.float32 else 1e-9), []
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of the weights that they keep
    try:
        for side in (ours, theirs):
            leaves = [x.clone().requires_grad_() for x in inputs]
            total, terms = run(side, *leaves)[:2]
            slopes = torch.autograd.grad(total, leaves, allow_unused=True)
            found.append((total.detach(), {name: term.detach() for name, term in terms.items()}, slopes))
    finally:
        torch.set_default_dtype(before)
    (total, mine, slopes), (want, other, their_slopes) = found
    torch.testing.assert_close(total, want.to(total.dtype), rtol=tolerance, atol=tolerance)
    assert list(mine) == list(other)
    for name, value in other.items():
        message = lambda text, name=name: f"{name}: {text}"  # noqa: E731
        torch.testing.assert_close(mine[name].to(dtype), value.to(dtype), rtol=tolerance, atol=tolerance * 0.1, msg=message)
    for a, b in zip(slopes, their_slopes, strict=True):
        a, b = (torch.zeros(1) if x is None else x for x in (a, b))
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)
    return mine


@counts
@dtypes
def test_detr(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    labels = labels_of(counts, dtype)
    terms = compare(
        lambda side, s, b: side.loss_for_object_detection.ForObjectDetectionLoss(s[-1], labels, "cpu", b[-1], DETR, s, b),
        layers(len(counts), QUERIES, CLASSES + 1, dtype), dtype,
    )  # fmt: skip
    assert {"loss_ce", "cardinality_error", "loss_giou_1"} <= set(terms)


@pytest.mark.parametrize("counts", [(3, 0, 2), (9, 1)])
def test_detr_with_masks(counts: tuple[int, ...]) -> None:
    labels, masks = labels_of(counts), 3 * torch.randn(len(counts), QUERIES, 5, 6, generator=random(3))
    terms = compare(
        lambda side, s, b, m: side.loss_for_object_detection.ForSegmentationLoss(s[-1], labels, "cpu", b[-1], m, DETR, s, b),
        (*layers(len(counts), QUERIES, CLASSES + 1, torch.float32), masks), torch.float32,
    )  # fmt: skip
    assert {"loss_mask", "loss_dice"} <= set(terms) and "loss_mask_0" not in terms


@counts
@dtypes
def test_deformable_detr(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    labels = labels_of(counts, dtype)
    compare(
        lambda side, s, b: side.loss_deformable_detr.DeformableDetrForObjectDetectionLoss(
            s[-1], labels, "cpu", b[-1], DETR, s, b
        ),
        layers(len(counts), QUERIES, CLASSES, dtype), dtype,
    )  # fmt: skip


def rt_detr_inputs(counts: tuple[int, ...], dtype: torch.dtype, denoising: int) -> tuple[Tensor, ...]:
    """Logits and boxes ``[B, L, Q, ·]``, denoising queries first, and logits and boxes of the encoder."""
    decoder = layers(len(counts), denoising + QUERIES, CLASSES, dtype)
    encoder = layers(len(counts), QUERIES, CLASSES, dtype, 4)
    return (*(x.transpose(0, 1) for x in decoder), *(x[0] for x in encoder))


@counts
@dtypes
@pytest.mark.parametrize("noisy", [False, True])
def test_rt_detr(counts: tuple[int, ...], dtype: torch.dtype, noisy: bool) -> None:
    labels, meta = labels_of(counts, dtype), meta_of(counts) if noisy and max(counts) else None
    compare(
        lambda side, s, b, es, eb: side.loss_rt_detr.RTDetrForObjectDetectionLoss(
            s[:, -1], labels, "cpu", b[:, -1], RT_DETR, s, b, es, eb, meta
        ),
        rt_detr_inputs(counts, dtype, meta["dn_num_split"][0] if meta else 0), dtype,
    )  # fmt: skip


@pytest.mark.parametrize("counts", [(3, 0, 2), (6, 1)])
@pytest.mark.parametrize("noisy", [False, True])
def test_d_fine(counts: tuple[int, ...], noisy: bool) -> None:
    """Reference boxes near the objects, so that their sides lie between all bins and beyond them."""
    dtype, labels, meta = torch.float32, labels_of(counts), meta_of(counts) if noisy else None
    inputs = rt_detr_inputs(counts, dtype, meta["dn_num_split"][0] if meta else 0)
    g = random(5)
    corners = torch.randn(*inputs[0].shape[:3], 4 * (BINS + 1), generator=g)
    references = (inputs[1] + 0.05 * torch.randn(inputs[1].shape, generator=g)).clamp(0.05, 0.95)
    terms = compare(
        lambda side, s, b, es, eb, c: side.loss_d_fine.DFineForObjectDetectionLoss(
            s[:, -1], labels, "cpu", b[:, -1], RT_DETR, s, b, es, eb, meta, c, references
        ),
        (*inputs, corners), dtype,
    )  # fmt: skip
    assert terms["loss_fgl_aux_0"] > 0 and terms["loss_ddf_aux_0"] > 0 and ("loss_fgl_dn_2" in terms) == noisy


def test_bins_of_d_fine() -> None:
    up, g = torch.tensor([0.5]), random(6)
    for bins, scale in ((8, 4.0), (32, 4.0), (16, 8.0)):
        here, there = (side.loss_d_fine.weighting_function(bins, up, scale) for side in (ours, theirs))
        torch.testing.assert_close(here, there)
        offsets = torch.cat((8 * torch.randn(200, generator=g), there + 1e-3, torch.tensor([-1e3, 1e3])))
        for got, want in zip(*(side.loss_d_fine.translate_gt(offsets, bins, scale, up) for side in (ours, theirs)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        points, corners = (
            unit_boxes(g, 50),
            torch.cat((torch.rand(50, 2, generator=g) * 0.4, 0.5 + torch.rand(50, 2, generator=g)), 1),
        )
        pairs = (side.loss_d_fine.bbox2distance(points, corners, bins, scale, up) for side in (ours, theirs))
        for got, want in zip(*pairs, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bce", "cardinality", "vfl", "boxes"])
def test_other_losses_of_rt_detr(name: str) -> None:
    labels, (logits, predicted) = labels_of((3, 2)), layers(2, QUERIES, CLASSES, torch.float32)
    outputs, found = {"logits": logits[0], "pred_boxes": predicted[0]}, []
    for side in (ours, theirs):
        criterion = side.loss_rt_detr.RTDetrLoss(RT_DETR)
        found.append(criterion.get_loss(name, outputs, labels, criterion.matcher(outputs, labels), 5))
    assert set(found[0]) == set(found[1]) != set()
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value)


def test_losses_that_never_run_there() -> None:
    labels, (logits, predicted) = labels_of((3, 2)), layers(2, QUERIES, CLASSES + 1, torch.float32)
    outputs = {"logits": logits[0, ..., :CLASSES], "pred_boxes": predicted[0]}
    criterion, other = (side.loss_rt_detr.RTDetrLoss(RT_DETR) for side in (ours, theirs))
    pairs = criterion.matcher(outputs, labels)
    with pytest.raises(RuntimeError):
        other.get_loss("focal", outputs, labels, pairs, 5)
    target = torch.nn.functional.one_hot(criterion.target_classes(labels, pairs, outputs["logits"]), CLASSES + 1)[..., :-1]
    focal = theirs.loss_for_object_detection.sigmoid_focal_loss(outputs["logits"], target.float(), 5, 0.75, 2.0) * QUERIES
    torch.testing.assert_close(criterion.get_loss("focal", outputs, labels, pairs, 5)["loss_focal"], focal)
    with pytest.raises(AttributeError, match="class_weight"):
        other.get_loss("labels", {**outputs, "logits": logits[0]}, labels, pairs, 5)
    assert criterion.get_loss("labels", {**outputs, "logits": logits[0]}, labels, pairs, 5)["loss_ce"] > 0


@counts
@pytest.mark.parametrize("kind", ["HungarianMatcher", "DeformableDetrHungarianMatcher", "RTDetrHungarianMatcher", "softmax"])
def test_matchers(kind: str, counts: tuple[int, ...]) -> None:
    labels, (logits, predicted) = labels_of(counts), layers(len(counts), QUERIES, CLASSES + 1, torch.float32)
    outputs = {"logits": logits[0], "pred_boxes": predicted[0]}

    def pairs(side: Any) -> list[tuple[Tensor, Tensor]]:
        if kind == "HungarianMatcher":
            return side.loss_for_object_detection.HungarianMatcher(1, 5, 2)(outputs, labels)
        if kind.startswith("Deformable"):
            return side.loss_deformable_detr.DeformableDetrHungarianMatcher(2, 5, 2)(outputs, labels)
        config = SimpleNamespace(**{**vars(RT_DETR), "use_focal_loss": kind != "softmax"})
        return side.loss_rt_detr.RTDetrHungarianMatcher(config)(outputs, labels)

    for mine, other in zip(pairs(ours), pairs(theirs), strict=True):
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1])


def test_matchers_need_a_cost() -> None:
    with pytest.raises(ValueError, match="All costs of the Matcher can't be 0"):
        ours.loss_for_object_detection.HungarianMatcher(0, 0, 0)


@dtypes
@pytest.mark.parametrize("shape", [(6, CLASSES), (2, 3, CLASSES)])
def test_sigmoid_focal_loss(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    target = (torch.rand(shape, generator=random(7)) > 0.7).to(dtype)
    logits = (3 * torch.randn(shape, generator=random(8))).to(dtype)
    for options in ({}, {"alpha": -1, "gamma": 1.5}):
        assert_same(
            lambda x, o=options: ours.loss_for_object_detection.sigmoid_focal_loss(x, target, 5, **o),
            lambda x, o=options: theirs.loss_for_object_detection.sigmoid_focal_loss(x, target, 5, **o),
            logits,
        )


@dtypes
def test_dice_loss(dtype: torch.dtype) -> None:
    target = (torch.rand(4, 20, generator=random(9)) > 0.5).to(dtype)
    assert_same(
        lambda x: ours.loss_for_object_detection.dice_loss(x, target, 3),
        lambda x: theirs.loss_for_object_detection.dice_loss(x, target, 3),
        torch.randn(4, 4, 5, generator=random(10)).to(dtype),
    )


@dtypes
def test_overlaps_of_all_pairs(dtype: torch.dtype) -> None:
    pred, true = boxes(11, 12, dtype)
    for name, part in (("generalized_box_iou", ...), ("box_iou", 0), ("box_iou", 1)):

        def value(side: Any, x: Tensor, name: str = name, part: Any = part) -> Tensor:
            found = getattr(side.loss_for_object_detection, name)(x, true[:7])
            return found if part is ... else found[part]

        assert_same(lambda x: value(ours, x), lambda x: value(theirs, x), pred, 1e-5 if dtype == torch.float32 else 1e-9)


def test_bad_boxes_do_not_end_the_run() -> None:
    """A prediction that is NaN, one that is turned inside out, and an object without area."""
    labels = [{"boxes": torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.3, 0.3, 0.2, 0.2]]), "class_labels": torch.tensor([0, 1])}]
    logits, predicted = layers(1, QUERIES, CLASSES + 1, torch.float32)
    predicted[:, 0, 0], predicted[:, 0, 1, 2:] = torch.nan, -0.1
    arguments = (labels, "cpu", predicted[-1], DETR, logits, predicted)
    with pytest.raises(ValueError, match="corner"):
        theirs.loss_for_object_detection.ForObjectDetectionLoss(logits[-1], *arguments)
    total, terms, _ = ours.loss_for_object_detection.ForObjectDetectionLoss(logits[-1], *arguments)
    assert total.isfinite() and all(term.isfinite() for term in terms.values())
    point = torch.full((1, 4), 5.0)
    assert ours.loss_for_object_detection.generalized_box_iou(point, point) == 1
    focal = ours.loss_for_object_detection.sigmoid_focal_loss
    assert slope_of(lambda x: focal(x, torch.ones(1, 1), 1, gamma=0.5), torch.tensor([[60.0]])).isfinite()


def test_a_matcher_of_the_user_is_asked_layer_by_layer() -> None:
    labels, (logits, predicted) = labels_of((3, 2)), layers(2, QUERIES, CLASSES + 1, torch.float32)
    outputs = {"logits": logits[-1], "pred_boxes": predicted[-1],
               "auxiliary_outputs": [{"logits": logits[0], "pred_boxes": predicted[0]}]}  # fmt: skip
    own, other = (side.loss_for_object_detection.HungarianMatcher(1, 5, 2) for side in (ours, theirs))
    names = ["labels", "boxes"]
    want = ours.loss_for_object_detection.ImageLoss(own, CLASSES, 0.1, names)(outputs, labels)
    for name, value in ours.loss_for_object_detection.ImageLoss(other, CLASSES, 0.1, names)(outputs, labels).items():
        torch.testing.assert_close(value, want[name])


def test_mapping_and_errors() -> None:
    for name, function in ours.loss_utils.LOSS_MAPPING.items():
        assert function.__name__ == theirs.loss_utils.LOSS_MAPPING[name].__name__
    criterion = ours.loss_for_object_detection.ImageLoss(None, CLASSES, 0.1, ["labels"])
    with pytest.raises(ValueError, match="Loss mask not supported; expected one of labels"):
        criterion.get_loss("mask", {}, [], [], 1)
    with pytest.raises(KeyError, match="No logits were found"):
        criterion.get_loss("labels", {}, [], [], 1)
    assert set(criterion.state_dict()) == {"empty_weight"}
    outputs = {"logits": torch.zeros(1, 2, CLASSES), "pred_boxes": torch.zeros(1, 2, 4), "dn_auxiliary_outputs": []}
    with pytest.raises(ValueError, match="denoising_meta_values"):
        ours.loss_rt_detr.RTDetrLoss(RT_DETR)(outputs, labels_of((0,)))
    with pytest.raises(ValueError, match="expected 6 positive denoising queries; got 2"):
        ours.loss_rt_detr.RTDetrLoss.get_cdn_matched_indices(
            {"dn_positive_idx": [torch.arange(2)], "dn_num_group": GROUPS}, labels_of((3,))
        )
