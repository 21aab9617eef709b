"""CenterNetLoss gives the numbers and gradients of the official code and of mmdet, written out here as their loops over objects.

Neither is a package that can be installed beside the others. Their quirks that no setting of ours has are left out of the
loops and named: the official 1e-4 in the denominators of size and offset, and its clamp of the probabilities.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from criteria_cases import fresh, gradients
from criteria_cases_centernet import random_centre_maps
from torch import Tensor

from detloss.criteria.centernet import CenterNetLoss

STRIDE, SIDE, CLASSES = 4, 16, 3


def radius(height: float, width: float, o: float, official: bool) -> int:
    """CornerNet's three cases; mmdet divides by 2a and takes the smaller root of the first two."""
    b1, c1 = height + width, width * height * (1 - o) / (1 + o)
    b2, c2 = 2 * (height + width), (1 - o) * width * height
    a3, b3, c3 = 4 * o, -2 * o * (height + width), (o - 1) * width * height
    roots = [math.sqrt(max(b * b - 4 * a * c, 0)) for a, b, c in ((1, b1, c1), (4, b2, c2), (a3, b3, c3))]
    if official:
        return max(0, int(min((b1 + roots[0]) / 2, (b2 + roots[1]) / 2, (b3 + roots[2]) / 2)))
    return max(0, int(min((b1 - roots[0]) / 2, (b2 - roots[1]) / 8, (b3 + roots[2]) / (2 * a3))))


def bump(heat: Tensor, x: int, y: int, r: int) -> None:
    """Draw one Gaussian into ``heat [H, W]`` in place, keeping the larger values."""
    for row in range(max(0, y - r), min(SIDE, y + r + 1)):
        for column in range(max(0, x - r), min(SIDE, x + r + 1)):
            value = math.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
            heat[row, column] = max(heat[row, column].item(), value)


def heat_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Sum of the penalty-reduced focal loss over all pixels and classes."""
    positive = F.logsigmoid(logits) * (1 - logits.sigmoid()) ** 2
    negative = F.logsigmoid(-logits) * logits.sigmoid() ** 2 * (1 - heat) ** 4
    return -torch.where(heat == 1, positive, negative).sum()


def official(heatmaps: Tensor, sizes: Tensor, offsets: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Targets in slots per object, which are gathered: objects that share a cell both pay."""
    heat, size, offset, objects = torch.zeros_like(heatmaps).detach(), 0.0, 0.0, 0
    for image, target in enumerate(targets):
        for box, label in zip(target["boxes"].double(), target["labels"].tolist(), strict=True):
            x1, y1, x2, y2 = (box / STRIDE).tolist()
            cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
            column, row = int(cx), int(cy)
            bump(heat[image, label], column, row, radius(math.ceil(y2 - y1), math.ceil(x2 - x1), 0.7, True))
            size = size + (sizes[image, :, row, column] - sizes.new_tensor([x2 - x1, y2 - y1])).abs().sum()
            offset = offset + (offsets[image, :, row, column] - sizes.new_tensor([cx - column, cy - row])).abs().sum()
            objects += 1
    peaks = max(1, int((heat == 1).sum()))
    cells = max(1, 2 * objects)
    return {
        "loss_cls": heat_loss(heatmaps, heat) / peaks,
        "loss_size": 0.1 * size / cells + 0 * sizes.sum(),
        "loss_offset": offset / cells + 0 * offsets.sum(),
    }


def mmdet(heatmaps: Tensor, sizes: Tensor, offsets: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Targets in maps, where the last object of a cell overwrites the others."""
    heat = torch.zeros_like(heatmaps).detach()
    true_size, true_offset = torch.zeros_like(sizes).detach(), torch.zeros_like(offsets).detach()
    weight = torch.zeros_like(true_size)
    for image, target in enumerate(targets):
        for box, label in zip(target["boxes"].double(), target["labels"].tolist(), strict=True):
            x1, y1, x2, y2 = (box / STRIDE).tolist()
            cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
            column, row = int(cx), int(cy)
            bump(heat[image, label], column, row, radius(y2 - y1, x2 - x1, 0.3, False))
            true_size[image, :, row, column] = sizes.new_tensor([x2 - x1, y2 - y1])
            true_offset[image, :, row, column] = sizes.new_tensor([cx - column, cy - row])
            weight[image, :, row, column] = 1
    peaks = max(1, int((heat == 1).sum()))
    return {
        "loss_cls": heat_loss(heatmaps, heat) / peaks,
        "loss_size": 0.1 * ((sizes - true_size).abs() * weight).sum() / (2 * peaks),
        "loss_offset": ((offsets - true_offset).abs() * weight).sum() / (2 * peaks),
    }


def crowded(counts: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """Random objects, and with the last of every image once again itself and a smaller one of another class, same centre."""
    targets = []
    for count in counts:
        low, size = torch.rand(count, 2) * 24, torch.rand(count, 2) * 30 + 8
        targets.append({"boxes": torch.cat((low, low + size), 1), "labels": torch.randint(CLASSES, (count,))})
    for target in targets:
        if len(target["labels"]):
            box = target["boxes"][-1:]
            smaller = box + torch.tensor([[2.0, 1.0, -2.0, -1.0]])
            label = (target["labels"][-1:] + 1) % CLASSES
            target["boxes"] = torch.cat((target["boxes"], box + 0.0, smaller))
            target["labels"] = torch.cat((target["labels"], target["labels"][-1:], label))
    return targets


@pytest.mark.parametrize(("counts", "seed"), [((4, 0, 2), 0), ((1,), 1), ((12, 9, 1), 2), ((0, 0), 3), ((30,), 4)])
@pytest.mark.parametrize(("preset", "peer"), [("centernet", official), ("mmdet", mmdet), ("visdet", mmdet)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_losses_and_gradients_agree(preset, peer, counts, seed, dtype, tolerance) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(seed)
    maps, targets = random_centre_maps(len(counts), dtype=dtype), crowded(counts)
    copies = fresh(maps, lambda x: x.double())
    losses = CenterNetLoss.preset(preset, num_classes=CLASSES)(*maps, targets)
    expected = peer(*(levels[0] for levels in copies), targets)
    for name in expected:
        torch.testing.assert_close(losses[name].double(), expected[name], rtol=tolerance, atol=1e-12)
    got, want = gradients(losses.total_loss, maps), gradients(sum(expected.values()), copies)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= tolerance * max(float(b.abs().max()), 1e-6)


def test_the_presets_differ() -> None:
    torch.manual_seed(0)
    maps, targets = random_centre_maps(2), crowded((5, 3))
    values = [CenterNetLoss.preset(name, num_classes=CLASSES)(*maps, targets) for name in ("centernet", "mmdet", "visdet")]
    assert values[0]["loss_cls"] != values[1]["loss_cls"] and values[0]["loss_size"] != values[1]["loss_size"]
    assert values[1].total_loss == values[2].total_loss
