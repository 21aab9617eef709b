"""The patch of transformers, function by function: all terms and gradients, matchers, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor

import detloss

pytest.importorskip("transformers")

from transformers.loss import (
    loss_deformable_detr,
    loss_for_object_detection,
    loss_grounding_dino,
    loss_lw_detr,
    loss_rt_detr,
)
from transformers.loss.loss_utils import LOSS_MAPPING

CLASSES, QUERIES, LAYERS, BINS, GROUPS = 5, 10, 3, 8, 2
COUNTS = ((3, 0, 2), (1, 1, 4), (12, 4, 1), (0, 0, 0))  # 12 objects for 10 queries, and none at all
SETTINGS: dict[str, Any] = {
    "num_labels": CLASSES, "auxiliary_loss": True, "decoder_layers": LAYERS, "eos_coefficient": 0.1, "focal_alpha": 0.3,
    "class_cost": 1, "bbox_cost": 5, "giou_cost": 2, "class_loss_coefficient": 2, "bbox_loss_coefficient": 5,
    "giou_loss_coefficient": 2, "mask_loss_coefficient": 1, "dice_loss_coefficient": 1, "group_detr": GROUPS,
    "matcher_class_cost": 2.0, "matcher_bbox_cost": 5.0, "matcher_giou_cost": 2.0, "use_focal_loss": True,
    "matcher_alpha": 0.25, "matcher_gamma": 2.0, "focal_loss_alpha": 0.75, "focal_loss_gamma": 2.0, "weight_loss_vfl": 1.0,
    "weight_loss_mal": 1.5, "weight_loss_bbox": 5.0, "weight_loss_giou": 2.0, "weight_loss_fgl": 0.15, "weight_loss_ddf": 1.5,
    "max_num_bins": BINS, "reg_scale": 4.0, "up": 0.5, "mal_alpha": None, "use_dense_one_to_one": True,
}  # fmt: skip
Losses = tuple[Tensor, dict[str, Tensor]]
Case = Callable[..., tuple[Callable[[], Losses], list[Tensor]]]


def labels_of(counts: tuple[int, ...]) -> list[dict[str, Tensor]]:
    return [{"boxes": boxes(count).detach(), "class_labels": torch.randint(CLASSES, (count,))} for count in counts]


def boxes(*shape: int) -> Tensor:
    return torch.cat((torch.rand(*shape, 2) * 0.6 + 0.2, torch.rand(*shape, 2) * 0.5 + 0.05), -1).requires_grad_()


def logits(*shape: int) -> Tensor:
    return (torch.randn(shape) * 2).requires_grad_()


def plain(name: str, columns: int = CLASSES, groups: int = 1, **options: Any) -> Case:
    """A loss of DETR's kind: the last layer and the stack of all layers."""

    def make(counts: tuple[int, ...], **more: Any) -> tuple[Callable[[], Losses], list[Tensor]]:
        targets, queries = labels_of(counts), QUERIES * groups
        x, b = logits(LAYERS, len(counts), queries, columns), boxes(LAYERS, len(counts), queries)
        encoder = [logits(len(counts), queries, columns), boxes(len(counts), queries)] if groups > 1 else []
        config = SimpleNamespace(**SETTINGS | options | more)

        def call() -> Losses:
            total, terms, _ = LOSS_MAPPING[name](x[-1], targets, "cpu", b[-1], config, x, b, *encoder)
            return total, terms

        return call, [x, b, *encoder]

    return make


def real_time(name: str, **options: Any) -> Case:
    """A loss of RT-DETR's kind: decoder layers with denoising queries, the encoder, and corners."""

    def make(counts: tuple[int, ...], **more: Any) -> tuple[Callable[[], Losses], list[Tensor]]:
        targets, images, most = labels_of(counts), len(counts), max(counts)
        places = [torch.cat([torch.arange(n) + 2 * most * group for group in range(GROUPS)]) for n in counts]
        extra = 2 * most * GROUPS
        meta = {"dn_positive_idx": places, "dn_num_group": GROUPS, "dn_num_split": [extra, QUERIES]} if most else None
        shape = (images, LAYERS, extra + QUERIES)
        x, b, corners = logits(*shape, CLASSES), boxes(*shape), logits(*shape, 4 * (BINS + 1))
        encoder = [logits(images, QUERIES, CLASSES), boxes(images, QUERIES)]
        known = {"denoising_meta_values": meta, "predicted_corners": corners, "initial_reference_points": boxes(*shape).detach()}
        config = SimpleNamespace(**SETTINGS | options | more)

        def call() -> Losses:
            total, terms, _ = LOSS_MAPPING[name](
                x[:, -1], targets, "cpu", b[:, -1], config, x, b, enc_topk_logits=encoder[0], enc_topk_bboxes=encoder[1], **known
            )
            return total, terms

        return call, [x, b, corners, *encoder]

    return make


CASES: dict[str, Case] = {
    "detr": plain("ForObjectDetection", CLASSES + 1),
    "detr_last_layer": plain("ForObjectDetection", CLASSES + 1, auxiliary_loss=False),
    "deformable": plain("DeformableDetrForObjectDetection"),
    "deformable_no_alpha": plain("DeformableDetrForObjectDetection", focal_alpha=-1),
    "lw_detr": plain("LwDetrForObjectDetection", groups=GROUPS),
    "rt_detr": real_time("RTDetrForObjectDetection"),
    "rt_detr_softmax_cost": real_time("RTDetrForObjectDetection", use_focal_loss=False),
    "rt_detr_last_layer": real_time("RTDetrForObjectDetection", auxiliary_loss=False),
    "d_fine": real_time("DFineForObjectDetection"),
    "deimv2": real_time("Deimv2ForObjectDetection"),
    "deimv2_alpha": real_time("Deimv2ForObjectDetection", mal_alpha=0.5, focal_loss_gamma=1.5),
    "deimv2_sparse": real_time("Deimv2ForObjectDetection", use_dense_one_to_one=False),
}


def results(call: Callable[[], Losses], inputs: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    total, terms = call()
    return {"total": total, **terms}, list(torch.autograd.grad(total, inputs, allow_unused=True))


def check_equal(call: Callable[[], Losses], inputs: list[Tensor], tolerance: float = 2e-5) -> dict[str, Tensor]:
    """The same terms in the same order, and the same gradients of the total, with the patch and without."""
    want, want_grads = results(call, inputs)
    with detloss.patch("transformers"):
        got, grads = results(call, inputs)
    assert list(got) == list(want)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    for a, b in zip(grads, want_grads, strict=True):
        if b is None or not b.any():
            assert a is None or not a.any()
        else:
            assert a is not None and (a - b).abs().max() <= tolerance * b.abs().max()
    return got


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("name", CASES)
def test_all_terms_and_gradients(name: str, counts: tuple[int, ...]) -> None:
    torch.manual_seed(sum(counts))
    check_equal(*CASES[name](counts))


def test_panoptic_detr_keeps_its_mask_terms() -> None:
    torch.manual_seed(0)
    targets = labels_of((3, 0, 2))
    for target in targets:
        target["masks"] = torch.rand(len(target["boxes"]), 8, 8).round()
    x, b, masks = logits(LAYERS, 3, QUERIES, CLASSES + 1), boxes(LAYERS, 3, QUERIES), logits(3, QUERIES, 4, 4)
    config = SimpleNamespace(**SETTINGS)

    def call() -> Losses:
        return LOSS_MAPPING["ForSegmentation"](x[-1], targets, "cpu", b[-1], masks, config, x, b)[:2]

    assert {"loss_mask", "loss_dice", "loss_ce_1"} <= set(check_equal(call, [x, b, masks]))


def as_pairs(found: list[tuple[Tensor, Tensor]]) -> list[tuple[list[int], list[int]]]:
    return [(query.tolist(), own.tolist()) for query, own in found]


@pytest.mark.parametrize("counts", COUNTS)
def test_matchers(counts: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    targets, config = labels_of(counts), SimpleNamespace(**SETTINGS)
    outputs = {"logits": logits(3, QUERIES, CLASSES + 1), "pred_boxes": boxes(3, QUERIES)}
    matchers = [
        loss_for_object_detection.HungarianMatcher(1, 5, 2), loss_deformable_detr.DeformableDetrHungarianMatcher(2, 5, 2),
        loss_rt_detr.RTDetrHungarianMatcher(config), loss_lw_detr.LwDetrHungarianMatcher(2, 5, 2),
    ]  # fmt: skip
    calls = [(matcher, (outputs, targets)) for matcher in matchers[:3]]
    calls += [(matchers[3], (outputs, targets, groups)) for groups in (1, 2)]
    want = [as_pairs(matcher(*arguments)) for matcher, arguments in calls]
    with detloss.patch("transformers"):
        found = [matcher(*arguments) for matcher, arguments in calls]
    assert [as_pairs(pairs) for pairs in found] == want
    assert all(index.dtype == torch.int64 and index.device.type == "cpu" for pairs in found for pair in pairs for index in pair)


def test_num_boxes_of_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs averages twice; the patch divides by the same number."""
    module = loss_for_object_detection
    state = type("PartialState", (), {"_shared_state": {"backend": "gloo"}, "num_processes": 2})
    monkeypatch.setattr(module, "is_accelerate_available", lambda: True)
    monkeypatch.setattr(module, "PartialState", state, raising=False)
    monkeypatch.setattr(module, "reduce", lambda number: number * 3, raising=False)
    torch.manual_seed(0)
    call, inputs = CASES["deformable"]((3, 2))
    with_ranks = check_equal(call, inputs)
    state._shared_state = {}
    alone = results(call, inputs)[0]
    torch.testing.assert_close(with_ranks["loss_bbox"] * 1.5, alone["loss_bbox"])


def test_num_boxes_of_lw_detr_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda x, op=None: x.mul_(3))
    torch.manual_seed(0)
    check_equal(*CASES["lw_detr"]((3, 2)))


def test_a_bad_box_ends_the_run_there_and_not_here() -> None:
    torch.manual_seed(0)
    call, (_, b) = CASES["detr"]((3, 2))
    b.data[:, 0, 4] = torch.nan
    with pytest.raises(ValueError, match="corner"):
        call()
    with detloss.patch("transformers"):
        total, _ = call()
    total.backward()
    assert bool(total.isfinite()) and bool(b.grad.isfinite().all())


def test_a_confident_false_alarm_of_lw_detr_is_finite() -> None:
    torch.manual_seed(0)
    call, inputs = CASES["lw_detr"]((2, 1))
    inputs[0].data[-1, 0, 0, 0] = 20.0
    assert call()[1]["loss_ce"].isinf()
    with detloss.patch("transformers"):
        found, grads = results(call, inputs)
    assert found["loss_ce"].isfinite() and all(bool(grad.isfinite().all()) for grad in grads if grad is not None)


def test_a_pair_without_area_has_a_quality() -> None:
    torch.manual_seed(0)
    criterion, point = loss_rt_detr.RTDetrLoss(SimpleNamespace(**SETTINGS)), torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    outputs = {"logits": logits(1, 1, CLASSES), "pred_boxes": point.unsqueeze(0)}
    targets = [{"boxes": point, "class_labels": torch.tensor([1])}]
    assert criterion(outputs, targets)["loss_vfl"].isnan()
    with detloss.patch("transformers"):
        assert criterion(outputs, targets)["loss_vfl"].isfinite()


class OwnMatcher(loss_for_object_detection.HungarianMatcher):
    """A matcher of a user: query k with object k."""

    def forward(self, outputs: Any, targets: Any) -> Any:
        return [(torch.arange(len(t["boxes"])), torch.arange(len(t["boxes"]))) for t in targets]


class OwnCriterion(loss_for_object_detection.ImageLoss):
    """A criterion of a user, with twice the box terms."""

    def loss_boxes(self, *arguments: Any) -> dict[str, Tensor]:
        return {name: 2 * value for name, value in super().loss_boxes(*arguments).items()}


def check_same(call: Callable[[], dict[str, Tensor]]) -> None:
    """Bit by bit, as the functions are theirs."""
    want = call()
    with detloss.patch("transformers"):
        got = call()
    assert {name: value.tolist() for name, value in got.items()} == {name: value.tolist() for name, value in want.items()}


def test_classes_of_users_keep_their_rules() -> None:
    torch.manual_seed(0)
    targets, outputs = labels_of((3, 2)), {"logits": logits(2, QUERIES, CLASSES + 1), "pred_boxes": boxes(2, QUERIES)}
    stock = loss_for_object_detection
    losses = ["labels", "boxes", "cardinality"]
    theirs = stock.ImageLoss(OwnMatcher(1, 5, 2), CLASSES, 0.1, losses)
    doubled = OwnCriterion(stock.HungarianMatcher(1, 5, 2), CLASSES, 0.1, losses)
    strange = stock.ImageLoss(stock.HungarianMatcher(-1, 5, 2), CLASSES, 0.1, losses)  # a cost below 0 has no counterpart
    for criterion in (theirs, doubled, strange):
        check_same(lambda criterion=criterion: criterion(outputs, targets))


def test_grounding_dino_runs_its_own_criterion() -> None:
    """It inherits the ``forward`` that is replaced, with classes that are tokens of a text."""
    torch.manual_seed(0)
    targets, tokens = labels_of((2, 1)), 7
    maps = [torch.eye(CLASSES, tokens)] * 2
    outputs = {
        "logits": logits(2, QUERIES, tokens), "pred_boxes": boxes(2, QUERIES), "label_maps": maps,
        "text_mask": torch.ones(2, QUERIES, tokens, dtype=torch.bool),
    }  # fmt: skip
    matcher = loss_grounding_dino.GroundingDinoHungarianMatcher(1, 5, 2)
    criterion = loss_grounding_dino.GroundingDinoImageLoss(matcher, 0.25, ["labels", "boxes", "cardinality"])
    check_same(lambda: criterion(outputs, targets))


@pytest.mark.parametrize(("name", "least"), [("detr", 2.0), ("rt_detr", 2.0)])
def test_memory_falls(name: str, least: float) -> None:
    torch.manual_seed(0)
    call, inputs = CASES[name]((12,) * 8)
    peaks = []
    for patched in (False, True):
        with LiveBytes() as live:
            if patched:
                with detloss.patch("transformers"):
                    results(call, inputs)
            else:
                results(call, inputs)
        peaks.append(live.peak)
    assert peaks[0] > least * peaks[1], f"{peaks[0]} bytes there, {peaks[1]} here"
