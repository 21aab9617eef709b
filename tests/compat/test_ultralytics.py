"""ultralytics' losses, assigner and criteria, against the installed package, and where they differ on purpose."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compat.sides import DTYPES, assert_same, boxes, peer, random
from torch import Tensor, nn

from detloss import YOLOv8Loss
from detloss.compat import ultralytics as ours
from detloss.compat.ultralytics.utils.detection import v8DetectionLoss

peer("ultralytics")
theirs_loss = pytest.importorskip("ultralytics.utils.loss")
theirs_tal = pytest.importorskip("ultralytics.utils.tal")
theirs_metrics = pytest.importorskip("ultralytics.utils.metrics")

STRIDES, SIDE, CLASSES = (8, 16, 32), 160, 4
OVERLAPS: list[dict[str, bool]] = [{}, {"GIoU": True}, {"DIoU": True}, {"CIoU": True}]
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@dtypes
@pytest.mark.parametrize("kind", OVERLAPS, ids=["IoU", "GIoU", "DIoU", "CIoU"])
@pytest.mark.parametrize("xywh", [False, True])
def test_bbox_iou(dtype: torch.dtype, kind: dict[str, bool], xywh: bool) -> None:
    pred, true = boxes(0, dtype=dtype)
    if xywh:
        pred, true = (torch.cat(((x[:, :2] + x[:, 2:]) / 2, x[:, 2:] - x[:, :2]), 1) for x in (pred, true))
    options = {"xywh": xywh, **kind}
    assert_same(
        lambda x: ours.utils.metrics.bbox_iou(x, true, **options),
        lambda x: theirs_metrics.bbox_iou(x, true, **options, **({} if dtype == torch.float32 else {"eps": 1e-16})),
        pred,
    )


def test_bbox_iou_broadcasts() -> None:
    pred, true = boxes(1, dtype=torch.float32)
    want = theirs_metrics.bbox_iou(pred[:, None], true[None, :7], xywh=False, CIoU=True)
    got = ours.utils.metrics.bbox_iou(pred[:, None], true[None, :7], xywh=False, CIoU=True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert ours.utils.metrics.bbox_iou(pred[0], true[0], xywh=False).shape == (1,)


@pytest.mark.parametrize("options", [{}, {"CIoU": True}, {"floor": 0.01}], ids=["plain", "ciou", "floor"])
def test_probiou(options: dict[str, Any]) -> None:
    g = random(2)
    centre, size = 100 * torch.rand(30, 2, generator=g).double(), 10 + 40 * torch.rand(30, 2, generator=g).double()
    angle = torch.rand(30, 1, generator=g).double() * 3
    true = torch.cat((centre, size, angle), 1)
    pred = true + torch.rand(30, 5, generator=g).double() * torch.tensor([20, 20, 10, 10, 0.5])
    assert_same(
        lambda x: ours.utils.metrics.probiou(true, x, **options),
        lambda x: theirs_metrics.probiou(true, x, eps=1e-14, **options),
        pred,
        1e-6,
    )


@dtypes
@pytest.mark.parametrize("shape", [(12, CLASSES), (2, 5, CLASSES)])
@pytest.mark.parametrize("options", [{}, {"gamma": 2.0, "alpha": 0.75}, {"alpha": 0.0}], ids=["default", "other", "no alpha"])
def test_focal_loss(dtype: torch.dtype, shape: tuple[int, ...], options: dict[str, float]) -> None:
    label = (torch.rand(shape, generator=random(3)) > 0.7).to(dtype)
    pred = (4 * torch.randn(shape, generator=random(4))).to(dtype)
    assert_same(
        lambda x: ours.utils.loss.FocalLoss(**options)(x, label),
        lambda x: theirs_loss.FocalLoss(**options)(x, label),
        pred,
    )


@pytest.mark.parametrize("shape", [(12, CLASSES), (2, 5, CLASSES)])
def test_varifocal_loss(shape: tuple[int, ...]) -> None:
    """In float32, in which theirs is computed always; a positive with a score of 0 is among them."""
    label = (torch.rand(shape, generator=random(5)) > 0.6).float()
    score = label * (torch.rand(shape, generator=random(6)) - 0.1).clamp(min=0)
    assert (score < label).any()
    assert_same(
        lambda x: ours.utils.loss.VarifocalLoss()(x, score, label),
        lambda x: theirs_loss.VarifocalLoss()(x, score, label),
        4 * torch.randn(shape, generator=random(7)),
    )


@dtypes
def test_dfl(dtype: torch.dtype) -> None:
    target = 9 * torch.rand(6, 4, generator=random(8)).to(dtype)  # some beyond the last bin
    given = target.clone()
    assert_same(
        lambda x: ours.utils.loss.DFLoss(8)(x, given),
        lambda x: theirs_loss.DFLoss(8)(x, target.clone()),
        torch.randn(24, 8, generator=random(9)).to(dtype),
    )
    assert torch.equal(given, target)  # theirs writes into it


@pytest.mark.parametrize("reg_max", [16, 1])
def test_bbox_loss(reg_max: int) -> None:
    g, images, points = random(10), 2, 20
    anchors, stride = 20 * torch.rand(points, 2, generator=g), torch.full((points, 1), 8.0)
    corners = [anchors + (2 + 4 * torch.rand(images, points, 2, generator=g)) * sign for sign in (-1, 1)]
    target, scores = torch.cat(corners, -1), torch.rand(images, points, CLASSES, generator=g)
    mask = torch.rand(images, points, generator=g) > 0.5
    rest = target, scores, scores.sum(), mask, torch.tensor([160.0, 200.0]), stride
    pred = target + torch.randn(images, points, 4, generator=g)
    bins = torch.randn(images, points, 4 * reg_max, generator=g)
    for part in (0, 1):
        at = (pred, bins)[part]

        def both(module: Any, x: Tensor, part: int = part) -> Tensor:
            inputs = (x, pred) if part else (bins, x)
            losses: tuple[Tensor, Tensor] = module(reg_max)(*inputs, anchors, *rest)
            return losses[part]

        assert_same(lambda x: both(ours.utils.loss.BboxLoss, x), lambda x: both(theirs_loss.BboxLoss, x), at, 1e-5)


class Model(nn.Module):
    """What a criterion reads of a model."""

    def __init__(self, reg_max: int = 8, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=5)
        self.model = [SimpleNamespace(stride=torch.tensor([8.0, 16.0, 32.0]), nc=CLASSES, reg_max=reg_max)]
        self.class_weights = class_weights


def batch_of(counts: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    g, total = random(seed), sum(counts)
    size = 0.1 + 0.6 * torch.rand(total, 2, generator=g)
    centre = size / 2 + torch.rand(total, 2, generator=g) * (1 - size)
    return {
        "batch_idx": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).float(),
        "cls": torch.randint(CLASSES, (total, 1), generator=g).float(), "bboxes": torch.cat((centre, size), 1),
    }  # fmt: skip


def predictions(images: int, reg_max: int, seed: int) -> dict[str, Any]:
    g = random(seed)
    sizes = [(SIDE // s, SIDE // s) for s in STRIDES]
    points = sum(h * w for h, w in sizes)
    bins = torch.randn(images, 4, reg_max, points, generator=g)
    if reg_max == 1:
        bins = 1 + 3 * bins.abs()
    else:
        peak = torch.rand(images, 4, 1, points, generator=g) * (reg_max - 1) * 0.6
        bins = bins - (torch.arange(reg_max).view(1, 1, -1, 1) - peak).abs()
    return {
        "boxes": bins.flatten(1, 2), "scores": torch.randn(images, CLASSES, points, generator=g) * 2 - 2,
        "feats": [torch.zeros(images, 1, *size) for size in sizes],
    }  # fmt: skip


def compare(make: Callable[[Any], Any], model: Model, preds: dict[str, Any], batch: dict[str, Tensor]) -> None:
    """The same losses, items and gradients from both modules."""
    found = []
    for module in (ours.utils.loss, theirs_loss):
        leaves = {name: preds[name].clone().requires_grad_() for name in ("boxes", "scores")}
        losses, items = make(module)(model)({**preds, **leaves}, batch)
        found.append((losses.detach(), items, torch.autograd.grad(losses.sum(), list(leaves.values()))))
    (loss, items, slopes), (their_loss, their_items, their_slopes) = found
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-6)
    assert list(items) == list(their_items)
    for name, value in items.items():
        torch.testing.assert_close(value, their_items[name], rtol=1e-5, atol=1e-6)
    for a, b in zip(slopes, their_slopes, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("counts", [(3, 0, 5), (1, 1), (0, 0)])
@pytest.mark.parametrize("reg_max", [8, 1])
def test_detection_loss(counts: tuple[int, ...], reg_max: int) -> None:
    compare(lambda module: module.v8DetectionLoss, Model(reg_max), predictions(len(counts), reg_max, 11), batch_of(counts, 12))


def test_detection_loss_with_class_weights() -> None:
    model = Model(class_weights=torch.tensor([1.0, 2.0, 0.5, 3.0]))
    compare(lambda module: module.v8DetectionLoss, model, predictions(2, 8, 13), batch_of((3, 4), 14))


@pytest.mark.parametrize("seed", range(3))
def test_one_to_one_assignment(seed: int) -> None:
    """7 locations per object, of which the best ones stay."""
    for topk2 in (1, 3):
        compare(
            lambda module, k=topk2: lambda model: module.v8DetectionLoss(model, 7, k),
            Model(), predictions(3, 8, 20 + seed), batch_of((3, 0, 5), 30 + seed),
        )  # fmt: skip


def test_end_to_end_loss() -> None:
    heads = {"one2many": predictions(2, 8, 15), "one2one": predictions(2, 8, 16)}
    batch, found = batch_of((3, 4), 17), []
    for module in (ours.utils.loss, theirs_loss):
        criterion = module.E2ELoss(Model())
        first = criterion(heads, batch)[0]
        criterion.update()
        found.append((first, criterion(heads, batch)[0]))
    assert not torch.equal(*found[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_detection_loss_is_the_criterion() -> None:
    """Their predictions during evaluation come second in a pair; a batch multiplies by its number of images."""
    preds, batch = predictions(2, 8, 18), batch_of((3, 4), 19)
    losses, items = v8DetectionLoss(Model())((None, preds), batch)
    criterion = YOLOv8Loss.preset("ultralytics", num_classes=CLASSES, reg_max=8, normalizer="local")
    sizes = [x.shape[2:] for x in preds["feats"]]
    maps = [
        [
            part.unflatten(2, tuple(size))
            for part, size in zip(preds[name].split([h * w for h, w in sizes], 2), sizes, strict=True)
        ]
        for name in ("scores", "boxes")
    ]
    corner, size = batch["bboxes"].split(2, 1)
    corners = torch.cat((corner - size / 2, corner + size / 2), 1) * SIDE
    targets = [
        {"boxes": own, "labels": label.reshape(-1).long()}
        for own, label in zip(corners.split([3, 4]), batch["cls"].split([3, 4]), strict=True)
    ]
    want = criterion(*maps, targets)
    for name, value in zip(items, losses, strict=True):  # both are times the number of images
        torch.testing.assert_close(value, want[f"loss_{name.removesuffix('_loss')}"].detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses, 2 * torch.stack(list(items.values())))


def assigned(module: Any, counts: tuple[int, ...], seed: int, **options: Any) -> tuple[Tensor, ...]:
    g, most, images = random(seed), max(counts), len(counts)
    points = torch.cat([(torch.stack(torch.meshgrid(*[torch.arange(SIDE // s)] * 2, indexing="xy"), -1) + 0.5).reshape(-1, 2) * s
                        for s in STRIDES])  # fmt: skip
    size = 20 + 80 * torch.rand(images, most, 2, generator=g)
    corner = torch.rand(images, most, 2, generator=g) * (SIDE - size)
    mask = torch.arange(most)[None, :, None] < torch.tensor(counts)[:, None, None]
    objects = torch.cat((corner, corner + size), -1) * mask
    half = 10 + 40 * torch.rand(images, len(points), 2, generator=g)
    found: tuple[Tensor, ...] = module.TaskAlignedAssigner(num_classes=CLASSES, **options)(
        torch.rand(images, len(points), CLASSES, generator=g), torch.cat((points - half, points + half), -1), points,
        torch.randint(CLASSES, (images, most, 1), generator=g).float(), objects, mask.float(),
    )  # fmt: skip
    return found


@pytest.mark.parametrize("options", [{}, {"topk": 5, "alpha": 0.5, "topk2": 2}], ids=["default", "topk2"])
def test_assigner(options: dict[str, Any]) -> None:
    got, want = (assigned(module, (4, 1, 7), 40, **options) for module in (ours.utils.tal, theirs_tal))
    positive = want[3]
    assert positive.any() and torch.equal(got[3], positive)
    assert torch.equal(got[4], want[4] * positive)
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a[positive], b[positive])
    torch.testing.assert_close(got[2], want[2], rtol=1e-5, atol=1e-6)


def test_assigner_without_objects_and_with_few_locations() -> None:
    labels, own, scores, positive, index = assigned(ours.utils.tal, (0, 0), 41)
    want = assigned(theirs_tal, (0, 0), 41)
    for a, b in zip((labels, own, scores, positive, index), want, strict=True):
        assert torch.equal(a.to(b.dtype), b)
    assert labels.dtype == index.dtype == torch.long
    few = torch.full((1, 3, CLASSES), 0.5), torch.tensor([[[0.0, 0, 9, 9]] * 3]), torch.tensor([[4.0, 4], [5, 5], [80, 80]])
    objects = torch.zeros(1, 1, 1), torch.tensor([[[0.0, 0, 10, 10]]]), torch.ones(1, 1, 1)
    assert ours.utils.tal.TaskAlignedAssigner(num_classes=CLASSES)(*few, *objects)[3].tolist() == [[True, True, False]]
    with pytest.raises(RuntimeError, match="out of range"):
        theirs_tal.TaskAlignedAssigner(num_classes=CLASSES)(*few, *objects)
    with pytest.raises(TypeError, match="gt_kpts"):
        ours.utils.tal.TaskAlignedAssigner(num_classes=CLASSES)(*few, *objects, gt_kpts=few[0])


def test_what_is_mended() -> None:
    """A tiny exact match, a box turned inside out, and an exact match of rotated boxes."""
    tiny, inverted = torch.tensor([[0.0, 0.0, 1e-3, 1e-3]]), torch.tensor([[10.0, 10.0, 0.0, 0.0]])
    whole = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    rotated = torch.tensor([[50.0, 50.0, 40.0, 20.0, 0.3]])
    here, there = ours.utils.metrics, theirs_metrics
    assert here.bbox_iou(tiny, tiny, xywh=False, CIoU=True) == 1 and there.bbox_iou(tiny, tiny, xywh=False, CIoU=True) < 0.95
    assert here.bbox_iou(inverted, whole, False, GIoU=True) == -2 and there.bbox_iou(inverted, whole, False, GIoU=True) > 0.99
    assert here.bbox_iou(inverted, whole, False) == 0
    assert here.probiou(rotated, rotated) == 1 and there.probiou(rotated, rotated) < 1
