"""ATSSLoss and GFLLoss against their formulas written out one positive at a time, and cases by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from criteria_cases import gradients, pixel_targets
from criteria_cases_atss import BINS, atss_maps, gfl_maps
from fcos_cases import SIZES, STRIDES
from torch import Tensor

from detloss import ATSSAssigner, ATSSLoss, GFLLoss
from detloss.geometry import Anchors, grid_anchors

SEEDS = pytest.mark.parametrize(("counts", "seed"), [((4, 0, 2), 0), ((1, 1), 1), ((9, 5, 7), 2), ((0, 0), 3)])


def anchors_at(offset: float) -> Anchors:
    return grid_anchors(SIZES, STRIDES, [[8 * s] for s in STRIDES], (1.0,), offset=offset, dtype=torch.float64)


def rows(maps: list[Tensor]) -> Tensor:
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps], 1)


def draw(counts: tuple[int, ...], seed: int, predict):  # type: ignore[no-untyped-def]
    torch.manual_seed(seed)
    targets = [{**t, "boxes": t["boxes"].double()} for t in pixel_targets(counts)]
    return predict(len(counts), torch.float64), targets


def giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(IoU, GIoU) of two boxes, in plain arithmetic."""
    w = (torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])).clamp(min=0)
    h = (torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])).clamp(min=0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    hull = (torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])) * (torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1]))
    return w * h / union, w * h / union - (hull - union) / hull


def center_of(ltrb: list[float]) -> float:
    left, top, right, bottom = ltrb
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def agree(losses, expected: list[Tensor], maps) -> None:  # type: ignore[no-untyped-def]
    for name, value in zip(losses, expected, strict=True):
        torch.testing.assert_close(losses[name], value, rtol=1e-9, atol=1e-12)
    want = torch.autograd.grad(sum(expected), [x for kind in maps for x in kind], allow_unused=True)
    for a, b in zip(gradients(losses.total_loss, maps), want, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-8, atol=1e-12)


@SEEDS
def test_atss_equals_mmdets_formula(counts: tuple[int, ...], seed: int) -> None:
    """Focal / n, 2 Σ centerness · GIoU / Σ centerness, BCE / n, boxes as deltas with deviations .1, .1, .2, .2."""
    maps, targets = draw(counts, seed, atss_maps)
    losses = ATSSLoss.preset("mmdet", num_classes=3, strides=STRIDES)(*maps, targets)
    anchors = anchors_at(0.0)
    chosen = ATSSAssigner()(anchors, targets).gt_index
    cls, codes, ctr = (rows(kind) for kind in maps)
    onehot, n, center_sum = torch.zeros_like(cls), 0, 0.0
    boxes, centers = codes.sum() * 0, ctr.sum() * 0
    for image, p in (chosen >= 0).nonzero().tolist():
        target = targets[image]["boxes"][chosen[image, p]]
        onehot[image, p, targets[image]["labels"][chosen[image, p]]] = 1
        x1, y1, x2, y2 = anchors.boxes[p].tolist()
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        d = codes[image, p] * torch.tensor([0.1, 0.1, 0.2, 0.2], dtype=torch.float64)
        cx, cy, pw, ph = x + d[0] * w, y + d[1] * h, w * d[2].exp(), h * d[3].exp()
        pred = torch.stack((cx - pw / 2, cy - ph / 2, cx + pw / 2, cy + ph / 2))
        t = target.tolist()
        center = center_of([x - t[0], y - t[1], t[2] - x, t[3] - y])
        boxes = boxes + 2 * center * (1 - giou(pred, target)[1])
        centers = centers + F.binary_cross_entropy_with_logits(ctr[image, p, 0], torch.tensor(center, dtype=ctr.dtype))
        n, center_sum = n + 1, center_sum + center
    assert (n > 0) == (sum(counts) > 0)
    prob = cls.sigmoid()
    missing = onehot * (1 - prob) + (1 - onehot) * prob
    alpha = 0.25 * onehot + 0.75 * (1 - onehot)
    focal = (alpha * missing**2 * F.binary_cross_entropy_with_logits(cls, onehot, reduction="none")).sum()
    agree(losses, [focal / max(n, 1), boxes / max(center_sum, 1), centers / max(n, 1)], maps)


@SEEDS
def test_gfl_equals_mmdets_formula(counts: tuple[int, ...], seed: int) -> None:
    """QFL / n; 2 · GIoU and 0.25 · DFL weighed by the highest score of the location, / the sum of these weights."""
    maps, targets = draw(counts, seed, gfl_maps)
    losses = GFLLoss.preset("mmdet", num_classes=3, strides=STRIDES, reg_max=BINS)(*maps, targets)
    anchors = anchors_at(0.0)
    chosen = ATSSAssigner()(anchors, targets).gt_index
    cls, bins = (rows(kind) for kind in maps)
    quality = cls.sigmoid() ** 2 * F.binary_cross_entropy_with_logits(cls, torch.zeros_like(cls), reduction="none")
    total, n, weight_sum, boxes, dfl = quality.sum(), 0, 0.0, bins.sum() * 0, bins.sum() * 0
    for image, p in (chosen >= 0).nonzero().tolist():
        stride = float(anchors.stride[p])
        x, y = (anchors.xy[p] / stride).tolist()
        own = targets[image]["boxes"][chosen[image, p]] / stride
        weight = float(cls[image, p].detach().sigmoid().max())
        sides = bins[image, p].view(4, BINS + 1)
        d = (sides.softmax(1) * torch.arange(BINS + 1)).sum(1)
        iou, value = giou(torch.stack((x - d[0], y - d[1], x + d[2], y + d[3])), own)
        boxes = boxes + 2 * weight * (1 - value)
        true = torch.stack((x - own[0], y - own[1], own[2] - x, own[3] - y)).clamp(0, BINS - 0.1)
        for side in range(4):
            low = int(true[side])
            log_p = sides[side].log_softmax(0)
            dfl = dfl - 0.25 * weight / 4 * (log_p[low] * (low + 1 - true[side]) + log_p[low + 1] * (true[side] - low))
        logit, s = cls[image, p, targets[image]["labels"][chosen[image, p]]], iou.detach()
        negative = logit.sigmoid() ** 2 * F.softplus(logit)
        positive = (s - logit.sigmoid()).abs() ** 2 * F.binary_cross_entropy_with_logits(logit, s)
        total, n, weight_sum = total - negative + positive, n + 1, weight_sum + weight
    agree(losses, [total / max(n, 1), boxes / max(weight_sum, 1), dfl / max(weight_sum, 1)], maps)


def test_a_perfect_atss_prediction_by_hand() -> None:
    """One object that is its anchor: delta 0, GIoU loss 0; its centre is the anchor's, so centerness 1 and BCE(0, 1) = ln 2."""
    box = torch.tensor([[0.0, 0.0, 64.0, 64.0]], dtype=torch.float64)  # the anchor of cell (4, 4) at stride 8
    maps = tuple([torch.zeros(1, c, 8, 8, dtype=torch.float64)] for c in (1, 4, 1))
    losses = ATSSLoss(1, (8,))(*maps, [{"boxes": box, "labels": torch.tensor([0])}])
    n = float(losses.metrics["num_pos"])
    assert n >= 1 and losses.metrics["mean_iou"] > 0
    # 64 logits of 0: background 0.75 · ln 2 / 4 each, positives 0.25 · ln 2 / 4 each
    assert float(losses["loss_cls"]) == pytest.approx(math.log(2) / 4 * (0.75 * (64 - n) + 0.25 * n) / n)


@pytest.mark.parametrize("make", [lambda **o: ATSSLoss(3, STRIDES, **o), lambda **o: GFLLoss(3, STRIDES, reg_max=BINS, **o)])
def test_class_weights_and_smoothing_reach_the_classification(make) -> None:  # type: ignore[no-untyped-def]
    atss = isinstance(make(), ATSSLoss)
    maps, targets = draw((4, 3), 0, atss_maps if atss else gfl_maps)
    plain = make(loss_cls={"type": "FocalLoss"})(*maps, targets)
    for option in ({"class_weight": [2.0, 1.0, 0.5]}, {"label_smoothing": 0.1}):
        changed = make(loss_cls={"type": "FocalLoss", **option})(*maps, targets)
        assert changed["loss_cls"] != plain["loss_cls"] and changed["loss_box"] == plain["loss_box"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ATSSLoss(3, box_coding="ltrb"), "box_coding must be one of 'delta', 'distance'; got 'ltrb'"),
        (lambda: ATSSLoss(0), "num_classes must be an integer >= 1; got 0"),
        (lambda: ATSSLoss(3, []), "strides must be a sequence with one number per level"),
        (lambda: GFLLoss(3, reg_max=0), "reg_max must be an integer >= 1; got 0"),
        (lambda: GFLLoss(3, loss_cls=dict(type="QualityFocalLoss", reduction="sum")), "loss_cls must have reduction='mean'"),
    ],
)
def test_bad_options(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_number_of_bins_says_what_is_expected() -> None:
    maps, targets = draw((1,), 0, gfl_maps)
    with pytest.raises(ValueError, match=r"bbox_preds\[0\] must have shape .* = \[1, 68, 8, 8\]; got \[1, 36, 8, 8\]"):
        GFLLoss(3, STRIDES)(*maps, targets)
