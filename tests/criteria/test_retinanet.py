"""RetinaNetLoss against torchvision's, against mmdet's and detectron2's formulas, and cases by hand."""

from __future__ import annotations

import math

import pytest
import torch
from criteria_cases import fresh, gradients, leaves, pixel_targets
from criteria_cases_atss import random_levels
from criteria_cases_retinanet import PER_CELL, SIZES, retinanet_maps
from fcos_cases import STRIDES
from torch import Tensor

from detloss import RetinaNetLoss
from detloss.geometry import base_anchors

detection = pytest.importorskip("torchvision.models.detection")
retinanet = pytest.importorskip("torchvision.models.detection.retinanet")

STRIDES5 = (8, 16, 32, 64, 128)
GRIDS5 = ((32, 32), (16, 16), (8, 8), (4, 4), (2, 2))  # an image of 256 × 256 pixels
COUNTS = pytest.mark.parametrize(("counts", "seed"), [((4, 0, 2), 0), ((1, 1), 1), ((12, 30), 2), ((0, 0), 3)])


def large_targets(counts: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Boxes of 8 to 256 pixels."""
    return [{**t, "boxes": (t["boxes"] * 4).to(dtype)} for t in pixel_targets(counts)]


def torchvision_loss(cls: Tensor, deltas: Tensor, targets: list, dtype: torch.dtype) -> dict[str, Tensor]:  # type: ignore[type-arg]
    """The loss of torchvision's RetinaNet with its own anchors and matcher, on flat predictions [B, P, ·]."""
    head = retinanet.RetinaNetHead(8, 9, 3).to(dtype)
    generator = retinanet._default_anchorgen()
    images = detection.image_list.ImageList(torch.zeros(len(targets), 3, 256, 256, dtype=dtype), [(256, 256)] * len(targets))
    anchors = generator(images, [torch.zeros(len(targets), 8, *grid, dtype=dtype) for grid in GRIDS5])
    model = retinanet.RetinaNet.__new__(retinanet.RetinaNet)
    torch.nn.Module.__init__(model)
    model.proposal_matcher = detection._utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    model.head = head
    outputs = {"cls_logits": cls, "bbox_regression": deltas}
    found: dict[str, Tensor] = model.compute_loss(targets, outputs, anchors)
    return found


def flat(maps: list[Tensor], channels: int) -> Tensor:
    """[B, A·C, H, W] as torchvision's heads flatten them."""
    parts = [x.view(len(x), -1, channels, *x.shape[2:]).permute(0, 3, 4, 1, 2).reshape(len(x), -1, channels) for x in maps]
    return torch.cat(parts, 1)


@COUNTS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_torchvision_losses_and_gradients(counts: tuple[int, ...], seed: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(seed)
    targets = large_targets(counts, dtype)
    maps = tuple(
        [(torch.randn(len(counts), 9 * channels, *grid) * 0.5).to(dtype).requires_grad_() for grid in GRIDS5]
        for channels in (3, 4)
    )
    copies = fresh(maps)
    losses = RetinaNetLoss.preset("torchvision", num_classes=3)(*maps, targets)
    expected = torchvision_loss(flat(copies[0], 3), flat(copies[1], 4), targets, dtype)
    torch.testing.assert_close(losses["loss_cls"], expected["classification"], rtol=tolerance, atol=0)
    torch.testing.assert_close(losses["loss_box"], expected["bbox_regression"], rtol=tolerance, atol=0)
    assert (losses.metrics["num_pos"] > 0) == (sum(counts) > 0)
    for term, other, ours, theirs in zip(losses.values(), expected.values(), maps, copies, strict=True):
        got, want = (torch.cat([g.flatten() for g in torch.autograd.grad(t, m)]) for t, m in ((term, ours), (other, theirs)))
        assert (got - want).abs().max() <= tolerance * want.abs().max()


def written_out(maps, targets: list, anchors: Tensor, average, beta: float) -> list[Tensor]:  # type: ignore[no-untyped-def, type-arg]
    """Focal and smooth-L1 sums over the images, both / ``average(positives per image)``; matching by loops."""
    cls, deltas = flat(maps[0], 3), flat(maps[1], 4)
    focal, box, counts = cls.sum() * 0, deltas.sum() * 0, []
    for image, target in enumerate(targets):
        own, ignored = loop_match(anchors, target["boxes"])
        counts.append(sum(g >= 0 for g in own))
        for p, g in enumerate(own):
            if ignored[p]:
                continue
            for c in range(3):
                x = cls[image, p, c]
                hit = g >= 0 and c == int(target["labels"][g])
                z, alpha = (-x, 0.25) if hit else (x, 0.75)
                focal = focal + alpha * z.sigmoid() ** 2 * torch.nn.functional.softplus(z)
            if g >= 0:
                a, b = anchors[p], target["boxes"][g]
                wa, ha, w, h = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
                true = torch.stack(
                    (
                        (b[0] + b[2] - a[0] - a[2]) / 2 / wa,
                        (b[1] + b[3] - a[1] - a[3]) / 2 / ha,
                        (w / wa).log(),
                        (h / ha).log(),
                    )
                )
                d = (deltas[image, p] - true).abs()
                box = box + (torch.where(d < beta, 0.5 * d**2 / beta, d - 0.5 * beta) if beta else d).sum()
    return [focal / average(counts), box / average(counts)]


def loop_match(anchors: Tensor, boxes: Tensor) -> tuple[list[int], list[bool]]:
    """IoU >= 0.5 positive, < 0.4 negative; then every object takes its best anchors, later objects win."""
    table = [[iou(a, b) for b in boxes.tolist()] for a in anchors.tolist()]
    own, ignored = [], []
    for row in table:
        best = max(row, default=0.0)
        own.append(row.index(best) if best >= 0.5 else -1)
        ignored.append(0.4 <= best < 0.5)
    for g in range(len(boxes)):
        best = max(row[g] for row in table)
        for p, row in enumerate(table):
            if best > 0 and row[g] == best:
                own[p], ignored[p] = g, False
    return own, ignored


def iou(a: list[float], b: list[float]) -> float:
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@COUNTS
def test_mmdet_formula(counts: tuple[int, ...], seed: int) -> None:
    """Both divided by Σ over images of max(positives, 1)."""
    torch.manual_seed(seed)
    counts = tuple(min(n, 4) for n in counts)
    targets = [{**t, "boxes": t["boxes"].double()} for t in pixel_targets(counts)]
    maps = retinanet_maps(len(counts), torch.float64)
    copies = fresh(maps)
    criterion = RetinaNetLoss.preset("mmdet", num_classes=3, strides=STRIDES, **SIZES)
    losses = criterion(*maps, targets)
    anchors = criterion.match(*maps, targets).priors.boxes
    expected = written_out(copies, targets, anchors, lambda n: sum(max(x, 1) for x in n), 0.0)
    for value, want in zip(losses.values(), expected, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-9, atol=0)
    got, want = gradients(losses.total_loss, maps), torch.autograd.grad(sum(expected), leaves(copies))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_detectron2_divides_by_a_moving_average_from_100() -> None:
    torch.manual_seed(0)
    targets = [{**t, "boxes": t["boxes"].double()} for t in pixel_targets((3, 2))]
    maps = retinanet_maps(2, torch.float64)
    average = RetinaNetLoss.preset("detectron2", num_classes=3, strides=STRIDES, **SIZES)
    plain = RetinaNetLoss.preset("detectron2", num_classes=3, strides=STRIDES, normalizer="local", **SIZES)
    n = float(plain(*maps, targets).metrics["num_pos"])
    first = 0.9 * 100 + 0.1 * n
    for expected in (first, 0.9 * first + 0.1 * n):
        got, sums = average(*maps, targets), plain(*maps, targets)
        for name in got:
            assert got[name].item() == pytest.approx(sums[name].item() * n / expected, rel=1e-12)


def test_default_anchors_are_those_of_the_paper() -> None:
    """Per level 4 strides times 1, ∛2, ∛4 and ratios 1:2, 1:1, 2:1, so areas from 32² on P3 to 812² on P7."""
    boxes = RetinaNetLoss(3).grid.anchors([(1, 1)] * 5, torch.zeros(1, dtype=torch.float64)).boxes
    sides = [float(((b[2] - b[0]) * (b[3] - b[1])).sqrt()) for b in boxes]
    assert sides[:3] == pytest.approx([32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)], rel=1e-6)
    assert max(sides) == pytest.approx(512 * 2 ** (2 / 3), rel=1e-6) and len(sides) == 45
    assert float((boxes[0, 3] - boxes[0, 1]) / (boxes[0, 2] - boxes[0, 0])) == pytest.approx(0.5)


def test_two_anchors_by_hand() -> None:
    """One cell, anchors of 8 and 16 pixels at the corner; the object is the second one: its delta is 0."""
    criterion = RetinaNetLoss(1, (8,), anchor_sizes=[[8, 16]], anchor_ratios=[1.0])
    logits, deltas = torch.tensor([0.0, 0.0]).view(1, 2, 1, 1), torch.zeros(1, 8, 1, 1)
    deltas[0, 4:, 0, 0] = torch.tensor([0.1, -0.2, 0.3, 0.4])
    target = {"boxes": base_anchors([16], [1.0]), "labels": torch.tensor([0])}
    losses = criterion([logits], [deltas], [target])
    # IoU with the first anchor is 64/256 = 0.25 < 0.4: background. 0.75 · ln 2 / 4 + 0.25 · ln 2 / 4
    assert float(losses["loss_cls"]) == pytest.approx(math.log(2) / 4)
    assert float(losses["loss_box"]) == pytest.approx(0.1 + 0.2 + 0.3 + 0.4)


def test_given_anchors_take_the_place_of_those_of_the_options() -> None:
    torch.manual_seed(0)
    maps, targets = retinanet_maps(2, torch.float32), pixel_targets((3, 2))
    criterion = RetinaNetLoss(3, STRIDES, **SIZES)
    boxes = criterion.match(*maps, targets).priors.boxes
    shifted = criterion(*maps, targets, boxes + 4)
    assert torch.equal(criterion(*maps, targets, boxes)["loss_box"], criterion(*maps, targets)["loss_box"])
    assert not torch.equal(shifted["loss_box"], criterion(*maps, targets)["loss_box"])
    with pytest.raises(ValueError, match=r"anchors must have shape \[336, 4\], 4 per cell of every level; got \[335, 4\]"):
        criterion(*maps, targets, boxes[1:])


def test_class_weights_and_smoothing_reach_the_classification() -> None:
    torch.manual_seed(0)
    maps, targets = retinanet_maps(2, torch.float64), pixel_targets((3, 2))
    plain = RetinaNetLoss(3, STRIDES, **SIZES)(*maps, targets)
    for option in ({"class_weight": [2.0, 1.0, 0.5]}, {"label_smoothing": 0.1}, {"alpha": [0.1, 0.5, 0.9]}):
        changed = RetinaNetLoss(3, STRIDES, loss_cls={"type": "FocalLoss", **option}, **SIZES)(*maps, targets)
        assert changed["loss_cls"] != plain["loss_cls"] and changed["loss_box"] == plain["loss_box"]


def test_wrong_channels_say_what_is_expected() -> None:
    with pytest.raises(ValueError, match=rf"must have shape .* = \[1, {PER_CELL * 3}, 8, 8\]; got \[1, 3, 8, 8\]"):
        RetinaNetLoss(3, STRIDES, **SIZES)(random_levels(1, 3, torch.float32), retinanet_maps(1, torch.float32)[1], [])
