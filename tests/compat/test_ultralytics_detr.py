"""ultralytics' criteria of DETR and RT-DETR and their matcher, against the installed package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compat.sides import peer, random
from torch import Tensor

from detloss.compat.ultralytics.models.utils import loss, ops

peer("ultralytics")
theirs_loss = pytest.importorskip("ultralytics.models.utils.loss")
theirs_ops = pytest.importorskip("ultralytics.models.utils.ops")

CLASSES, QUERIES, GROUPS = 4, 9, 2
COUNTS = [(3, 0, 2), (0, 0), (12, 1)]  # 12 objects for 9 queries
OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_vfl": True},
    {"use_vfl": True, "use_uni_match": True, "uni_match_ind": 1},
    {"use_fl": False, "loss_gain": {"class": 2, "bbox": 1, "giou": 3}},
    {"aux_loss": False, "gamma": 2.0, "alpha": 0.75},
]
counts = pytest.mark.parametrize("counts", COUNTS)


def boxes(g: torch.Generator, *shape: int) -> Tensor:
    """(cx, cy, w, h) of 0.3 to 0.6 of the image, beside which their eps is not seen."""
    return torch.cat((torch.rand(*shape, 2, generator=g) * 0.4 + 0.3, torch.rand(*shape, 2, generator=g) * 0.3 + 0.3), -1)


def batch_of(groups: tuple[int, ...]) -> dict[str, Any]:
    g, total = random(1), sum(groups)
    return {"cls": torch.randint(CLASSES, (total,), generator=g), "bboxes": boxes(g, total), "gt_groups": list(groups)}


def layers(count: int, images: int, queries: int, seed: int) -> tuple[Tensor, Tensor]:
    g = random(seed)
    return boxes(g, count, images, queries), torch.randn(count, images, queries, CLASSES, generator=g)


def denoising(groups: tuple[int, ...]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    most = max(groups)
    place = [torch.cat([torch.arange(n) + 2 * most * group for group in range(GROUPS)]) for n in groups]
    starts = torch.tensor((0, *groups[:-1])).cumsum(0).tolist()
    objects = [torch.arange(n) + start for n, start in zip(groups, starts, strict=True)]
    meta = {"dn_pos_idx": place, "dn_num_group": GROUPS, "dn_gt_idx": objects}
    return (*layers(3, len(groups), 2 * most * GROUPS, 3), meta)


def compare(run: Any, inputs: tuple[Tensor, ...]) -> None:
    """``run(module, *inputs)`` gives the same losses by name, and the same gradients of their sum."""
    found = []
    for module in (loss, theirs_loss):
        leaves = [x.clone().requires_grad_() for x in inputs]
        losses = run(module, *leaves)
        slopes = torch.autograd.grad(sum(losses.values()), leaves, allow_unused=True)
        found.append(({name: value.detach() for name, value in losses.items()}, slopes))
    (mine, slopes), (other, their_slopes) = found
    assert set(mine) == set(other)
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
    for a, b in zip(slopes, their_slopes, strict=True):
        b = torch.zeros_like(a) if b is None else b
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1e-3)


@counts
@pytest.mark.parametrize("options", OPTIONS, ids=["focal", "varifocal", "one match", "cross entropy", "last layer"])
def test_detr_loss(options: dict[str, Any], counts: tuple[int, ...]) -> None:
    batch = batch_of(counts)
    compare(lambda module, b, s: module.DETRLoss(CLASSES, **options)(b, s, batch, "_x"), layers(3, len(counts), QUERIES, 2))


@counts
@pytest.mark.parametrize("with_denoising", [False, True])
def test_rtdetr_loss(counts: tuple[int, ...], with_denoising: bool) -> None:
    batch, plain = batch_of(counts), layers(4, len(counts), QUERIES, 4)
    if not (with_denoising and max(counts)):
        compare(lambda module, b, s: module.RTDETRDetectionLoss(CLASSES, use_vfl=True)((b, s), batch), plain)
        return
    *noisy, meta = denoising(counts)
    compare(
        lambda module, b, s, nb, ns: module.RTDETRDetectionLoss(CLASSES, use_vfl=True)((b, s), batch, nb, ns, meta),
        (*plain, *noisy),
    )


@counts
@pytest.mark.parametrize("use_fl", [True, False])
def test_matcher(counts: tuple[int, ...], use_fl: bool) -> None:
    batch, (pred, scores) = batch_of(counts), layers(1, len(counts), QUERIES, 5)
    given = pred[0], scores[0], batch["bboxes"], batch["cls"], batch["gt_groups"]
    got, want = (module.HungarianMatcher(use_fl=use_fl)(*given) for module in (ops, theirs_ops))
    for mine, other in zip(got, want, strict=True):
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1])


def test_a_query_that_is_not_finite_is_never_chosen() -> None:
    """There its costs are 0, less than those of all others here."""
    batch, (pred, scores) = batch_of((1,)), layers(1, 1, QUERIES, 6)
    pred[0, 0, 4] = torch.nan
    given = pred[0], scores[0], batch["bboxes"], batch["cls"], batch["gt_groups"]
    cost = {"class": 0, "bbox": 5, "giou": 2}  # all above 0
    assert theirs_ops.HungarianMatcher(cost)(*given)[0][0].tolist() == [4]
    assert ops.HungarianMatcher(cost)(*given)[0][0].tolist() not in ([4], [])


def test_another_matcher_is_asked_layer_by_layer() -> None:
    batch, given = batch_of((2, 1)), layers(3, 2, QUERIES, 7)
    stock, other = loss.DETRLoss(CLASSES), loss.DETRLoss(CLASSES)
    other.matcher = theirs_ops.HungarianMatcher({"class": 2, "bbox": 5, "giou": 2})
    want = stock(*given, batch)
    for name, value in other(*given, batch).items():
        torch.testing.assert_close(value, want[name])


def test_denoising_queries_need_an_object_each() -> None:
    with pytest.raises(ValueError, match="one object per query; got 3 and 2"):
        loss.RTDETRDetectionLoss.get_dn_match_indices([torch.arange(3)], 1, [torch.arange(2)])
    with pytest.raises(ValueError, match="dn_bboxes"):
        loss.RTDETRDetectionLoss(CLASSES)(layers(2, 1, QUERIES, 8), batch_of((1,)), dn_meta={})
