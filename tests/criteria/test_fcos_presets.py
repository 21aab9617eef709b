"""Presets of FCOSLoss against the frameworks: their assignment, losses and gradients for the same predictions and targets."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from criteria_cases import fresh, gradients, leaves
from fcos_cases import SIZES, STRIDES, Maps, random_maps, random_targets
from torch import Tensor

from detloss import FCOSLoss
from detloss.geometry import Points, grid_points
from detloss.reduction import Normalizer

RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, math.inf))
SEEDS = pytest.mark.parametrize(("counts", "seed"), [((4, 0, 2), 0), ((1, 1), 1), ((9, 5, 7), 2), ((0, 0), 3), ((60,), 4)])


def agree(ours: FCOSLoss, maps: Maps, targets: list, theirs, tolerance: float) -> None:  # type: ignore[no-untyped-def]
    """``theirs(maps)`` gives their three terms; values and gradients within ``tolerance``, relative."""
    copies = fresh(maps)
    losses, expected = ours(*maps, targets), theirs(copies)
    for name, value in zip(("loss_cls", "loss_box", "loss_centerness"), expected, strict=True):
        torch.testing.assert_close(losses[name], value.to(losses[name].dtype), rtol=tolerance, atol=tolerance)
    got = gradients(losses.total_loss, maps)
    want = torch.autograd.grad(sum(expected), leaves(copies), allow_unused=True)
    want = [torch.zeros_like(x) if g is None else g for g, x in zip(want, leaves(copies), strict=True)]
    for kind in range(3):  # class, box and centerness maps have gradients of different size
        mine, other = (torch.cat([g.flatten() for g in grads[kind * 3 : kind * 3 + 3]]) for grads in (got, want))
        assert (mine - other).abs().max() <= tolerance * max(float(other.abs().max()), 1e-6)


def draw(counts: tuple[int, ...], seed: int, dtype: torch.dtype, reach: float) -> tuple[Maps, list[dict[str, Tensor]]]:
    torch.manual_seed(seed)
    targets = random_targets(counts, step=0.37)
    return random_maps(len(counts), dtype=dtype, reach=reach), [{**t, "boxes": t["boxes"].to(dtype)} for t in targets]


def anchors_of(points: Points) -> Tensor:
    half = points.stride[:, None] / 2
    return torch.cat((points.xy - half, points.xy + half), dim=1)


def torchvision_terms(maps: Maps, targets: list, offset: float) -> list[Tensor]:  # type: ignore[type-arg]
    """Assignment and losses of torchvision's FCOS with anchors at ``offset``."""
    fcos = pytest.importorskip("torchvision.models.detection.fcos")
    head = fcos.FCOSHead(in_channels=32, num_anchors=1, num_classes=3, num_convs=0)
    points = grid_points(SIZES, STRIDES, offset, dtype=maps[0][0].dtype)
    cls, box, ctr = (torch.cat([x.flatten(2).transpose(1, 2) for x in kind], 1) for kind in maps)
    outputs = {"cls_logits": cls, "bbox_regression": box, "bbox_ctrness": ctr}
    detector = SimpleNamespace(center_sampling_radius=1.5, head=head)
    found = fcos.FCOS.compute_loss(detector, targets, outputs, [anchors_of(points)] * len(targets), list(points.counts))
    return [found["classification"], found["bbox_regression"], found["bbox_ctrness"]]


@SEEDS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-7)])
def test_torchvision(counts: tuple[int, ...], seed: int, dtype: torch.dtype, tolerance: float) -> None:
    """float64: their GIoU adds 1e-7 to areas."""
    maps, targets = draw(counts, seed, dtype, reach=4.0)
    ours = FCOSLoss.preset("torchvision", num_classes=3, strides=STRIDES)
    agree(ours, maps, targets, lambda copies: torchvision_terms(copies, targets, offset=0.0), tolerance)


@SEEDS
def test_detectron2(counts: tuple[int, ...], seed: int) -> None:
    """Its FCOS is torchvision's with points in the middle of cells and a moving average that starts at 300."""
    maps, targets = draw(counts, seed, torch.float64, reach=4.0)
    ours = FCOSLoss.preset("detectron2", num_classes=3, strides=STRIDES)

    def theirs(copies: Maps) -> list[Tensor]:
        positives = max(1, int(FCOSLoss.preset("detectron2", num_classes=3, strides=STRIDES)(*maps, targets).metrics["num_pos"]))
        average = 0.9 * 300 + 0.1 * positives
        return [term * positives / average for term in torchvision_terms(copies, targets, offset=0.5)]

    agree(ours, maps, targets, theirs, 1e-7)


def loop_targets(
    points: Points, level_of: list[int], target: dict[str, Tensor], half_open: bool
) -> list[tuple[int, list[float]]]:
    """Per location (object or −1, distances): the smallest object that contains it and fits its level, one at a time."""
    found = []
    for (x, y), level in zip(points.xy.tolist(), level_of, strict=True):
        best, smallest, sides = -1, math.inf, [0.0] * 4
        for g, (x1, y1, x2, y2) in enumerate(target["boxes"].tolist()):
            ltrb = [x - x1, y - y1, x2 - x, y2 - y]
            low, high = RANGES[level]
            fits = low <= max(ltrb) and (max(ltrb) < high if half_open else max(ltrb) <= high)
            area = (x2 - x1) * (y2 - y1)
            if min(ltrb) > 0 and fits and area < smallest:
                best, smallest, sides = g, area, ltrb
        found.append((best, sides))
    return found


def written_out(maps: Maps, targets: list, centerness_weighted: bool, half_open: bool, eps: float) -> list[Tensor]:  # type: ignore[type-arg]
    """FCOS as mmdet describes it: focal / n, −ln IoU weighted by centerness / Σ centerness (or / n), BCE / n."""
    points = grid_points(SIZES, STRIDES, dtype=maps[0][0].dtype)
    level_of = [level for level, n in enumerate(points.counts) for _ in range(n)]
    cls, box, ctr = (torch.cat([x.flatten(2).transpose(1, 2) for x in kind], 1) for kind in maps)
    focal, boxes, centers, weight_sum, n = cls.sum() * 0, cls.sum() * 0, cls.sum() * 0, 0.0, 0
    for image, target in enumerate(targets):
        onehot = torch.zeros_like(cls[image])
        for p, (own, ltrb) in enumerate(loop_targets(points, level_of, target, half_open)):
            if own < 0:
                continue
            n += 1
            onehot[p, target["labels"][own]] = 1
            left, top, right, bottom = ltrb
            center = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
            a, b = box[image, p], torch.tensor(ltrb, dtype=box.dtype)
            common = (torch.minimum(a[0], b[0]) + torch.minimum(a[2], b[2])) * (
                torch.minimum(a[1], b[1]) + torch.minimum(a[3], b[3])
            )
            union = (a[0] + a[2]) * (a[1] + a[3]) + (b[0] + b[2]) * (b[1] + b[3]) - common
            boxes = boxes - (common / union).clamp(min=eps).log() * (center if centerness_weighted else 1.0)
            weight_sum += center if centerness_weighted else 1.0
            centers = centers + F.binary_cross_entropy_with_logits(ctr[image, p, 0], torch.tensor(center, dtype=ctr.dtype))
        p = cls[image].sigmoid()
        pt = p * onehot + (1 - p) * (1 - onehot)
        alpha = 0.25 * onehot + 0.75 * (1 - onehot)
        bce = F.binary_cross_entropy_with_logits(cls[image], onehot, reduction="none")
        focal = focal + (alpha * (1 - pt) ** 2 * bce).sum()
    n = max(n, 1)
    return [focal / n, boxes / max(weight_sum, 1e-6), centers / n] if centerness_weighted else [focal / n, boxes / n, centers / n]


@SEEDS
def test_mmdet(counts: tuple[int, ...], seed: int) -> None:
    maps, targets = draw(counts, seed, torch.float64, reach=40.0)
    ours = FCOSLoss.preset("mmdet", num_classes=3, strides=STRIDES)
    agree(ours, maps, targets, lambda copies: written_out(copies, targets, True, False, 1e-6), 1e-9)


@SEEDS
def test_autotimm(counts: tuple[int, ...], seed: int) -> None:
    """Its helper, computed by the package: per-level sums over the number of positives."""
    helper = pytest.importorskip("autotimm.tasks._fcos_targets")
    from autotimm import FocalLoss

    maps, targets = draw(counts, seed, torch.float32, reach=40.0)
    ours = FCOSLoss.preset("autotimm", num_classes=3, strides=STRIDES)

    def theirs(copies: Maps) -> list[Tensor]:
        boxes, labels = ([t[key] for t in targets] for key in ("boxes", "labels"))
        focal = FocalLoss(alpha=0.25, gamma=2.0, reduction="sum")
        found = helper.compute_fcos_detection_loss(*copies, boxes, labels, STRIDES, RANGES, focal, 3)
        return [found["cls_loss"], found["reg_loss"], found["centerness_loss"]]

    agree(ours, maps, targets, theirs, 1e-5)


def test_options_replace_those_of_a_preset_and_an_unknown_preset_is_named() -> None:
    criterion = FCOSLoss.preset("torchvision", num_classes=3, center_sampling_radius=2.5, loss_box="ciou")
    assert criterion.assigner.center_sampling_radius == 2.5 and type(criterion.loss_box).__name__ == "CIoULoss"
    assert criterion.preset_name == "torchvision" and "preset: torchvision" in criterion.describe()
    with pytest.raises(ValueError, match=r"name must be one of 'torchvision', .*got 'torchvison'\. Did you mean 'torchvision'"):
        FCOSLoss.preset("torchvison", num_classes=3)


def test_another_assigner_takes_the_place_of_the_fcos_one() -> None:
    maps, targets = draw((3, 2), 0, torch.float64, reach=40.0)
    swapped = FCOSLoss(3, strides=STRIDES, assigner={"type": "FCOSAssigner", "center_sampling_radius": 1.5})
    named = FCOSLoss(3, strides=STRIDES, center_sampling_radius=1.5)
    assert torch.equal(swapped(*maps, targets).total_loss, named(*maps, targets).total_loss)


def test_a_moving_average_by_hand() -> None:
    """Starts at 10, momentum 0.5: after counts 4 and 0 (at least 1) it is 7, then 4."""
    average = Normalizer("ema", momentum=0.5, initial=10.0, size=2)
    first = average(torch.tensor([4.0, 10.0]), (1.0, 1.0))
    assert first.tolist() == [7.0, 10.0]
    assert average(torch.tensor([0.0, 10.0]), (1.0, 1.0)).tolist() == [4.0, 10.0]
    average.eval()
    assert average(torch.tensor([99.0, 99.0]), (1.0, 1.0)).tolist() == [4.0, 10.0]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"mode": "ema", "momentum": 1.0}, ValueError, "momentum must be below 1"),
        ({"mode": "mean"}, ValueError, "mode must be one of"),
        ({"mode": "ema", "decay": 0.5}, TypeError, "takes mode, momentum and initial; got"),
    ],
)
def test_bad_normalizers(config: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FCOSLoss(3, normalizer=config)
