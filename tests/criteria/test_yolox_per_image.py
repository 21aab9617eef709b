"""YOLOXLoss against the official algorithm written out image by image and object by object."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fcos_cases import Target
from torch import Tensor

from detloss import YOLOXLoss

STRIDES, SIDE = (8, 16, 32), 128
SIZES = tuple((SIDE // s, SIDE // s) for s in STRIDES)
Maps = tuple[list[Tensor], list[Tensor], list[Tensor]]


def random_targets(counts: tuple[int, ...], num_classes: int) -> list[Target]:
    made = []
    for count in counts:
        size = 4 + torch.rand(count, 2, dtype=torch.float64) * 80
        corner = torch.rand(count, 2, dtype=torch.float64) * (SIDE - size)
        made.append({"boxes": torch.cat((corner, corner + size), 1), "labels": torch.randint(num_classes, (count,))})
    return made


def random_maps(images: int, num_classes: int, dtype: torch.dtype) -> Maps:
    """Boxes around their cells of about two strides."""
    kinds = []
    for channels, spread, shift in ((num_classes, 2.0, -1.0), (4, 0.7, 0.6), (1, 2.0, -1.0)):
        kinds.append([(torch.randn(images, channels, *s) * spread + shift).to(dtype).requires_grad_() for s in SIZES])
    return kinds[0], kinds[1], kinds[2]


def cells(maps: Maps, image: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of one image: class logits, raw boxes, objectness, and (column, row, stride) of the cells."""
    rows = [torch.cat([x[image].flatten(1).T for x in kind]) for kind in maps]
    grid = []
    for (height, width), stride in zip(SIZES, STRIDES, strict=True):
        grid += [(column, row, stride) for row in range(height) for column in range(width)]
    return rows[0], rows[1], rows[2][:, 0], torch.tensor(grid, dtype=rows[1].dtype)


def iou_of(box: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes given by centre and size."""
    low = torch.maximum(box[..., :2] - box[..., 2:] / 2, other[..., :2] - other[..., 2:] / 2)
    high = torch.minimum(box[..., :2] + box[..., 2:] / 2, other[..., :2] + other[..., 2:] / 2)
    common = (high - low).clamp(min=0).prod(-1)
    return common / (box[..., 2:].prod(-1) + other[..., 2:].prod(-1) - common)


@torch.no_grad()
def sim_ota(logits: Tensor, boxes: Tensor, objectness: Tensor, grid: Tensor, truth: Tensor, labels: Tensor) -> dict[int, int]:
    """Cell → object."""
    centre = (grid[:, :2] + 0.5) * grid[:, 2:]
    near = ((centre[None] - truth[:, None, :2]).abs() < 1.5 * grid[:, 2:]).all(-1)  # [G, P]
    pool = near.any(0).nonzero().flatten()
    confidence = (logits[pool].sigmoid() * objectness[pool, None].sigmoid()).sqrt()
    cost, iou = [], []
    for g in range(len(truth)):
        one_hot = F.one_hot(labels[g], logits.shape[1]).to(confidence).expand_as(confidence)
        entropy = F.binary_cross_entropy(confidence, one_hot, reduction="none").sum(1)
        iou.append(iou_of(truth[g], boxes[pool]))
        cost.append(entropy - 3 * (iou[g] + 1e-8).log() + 1e6 * ~near[g, pool])
    chosen: dict[int, list[int]] = {}
    for g in range(len(truth)):
        k = max(int(iou[g].topk(min(10, len(pool))).values.sum()), 1)
        for slot in cost[g].topk(min(k, len(pool)), largest=False).indices.tolist():
            chosen.setdefault(slot, []).append(g)
    cheapest = torch.stack(cost).argmin(0) if len(truth) else pool
    return {int(pool[slot]): own[0] if len(own) == 1 else int(cheapest[slot]) for slot, own in chosen.items()}


def expected(maps: Maps, targets: list[Target], num_classes: int) -> dict[str, Tensor]:
    totals = dict.fromkeys(("loss_cls", "loss_box", "loss_obj", "loss_l1"), torch.zeros((), dtype=maps[0][0].dtype))
    count = 0
    for image, target in enumerate(targets):
        logits, raw, objectness, grid = cells(maps, image)
        boxes = torch.cat(((raw[:, :2] + grid[:, :2]), raw[:, 2:].exp()), 1) * grid[:, 2:]
        corners = target["boxes"].to(boxes.dtype)
        truth = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
        wanted = torch.zeros_like(objectness)
        for cell, own in sim_ota(logits, boxes, objectness, grid, truth, target["labels"]).items():
            iou = iou_of(boxes[cell], truth[own])
            soft = F.one_hot(target["labels"][own], num_classes) * iou.detach()
            l1_target = torch.cat(
                (truth[own, :2] / grid[cell, 2] - grid[cell, :2], (truth[own, 2:] / grid[cell, 2] + 1e-8).log())
            )
            totals["loss_box"] = totals["loss_box"] + 5 * (1 - iou**2)
            totals["loss_cls"] = totals["loss_cls"] + F.binary_cross_entropy_with_logits(logits[cell], soft, reduction="sum")
            totals["loss_l1"] = totals["loss_l1"] + (raw[cell] - l1_target).abs().sum()
            wanted[cell] = 1
            count += 1
        totals["loss_obj"] = totals["loss_obj"] + F.binary_cross_entropy_with_logits(objectness, wanted, reduction="sum")
    return {name: total / max(count, 1) for name, total in totals.items()}


BATCHES = [((3, 0, 5), 3), ((1, 1), 80), ((25, 12), 20), ((0, 0), 5)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("counts", "num_classes"), BATCHES, ids=[str(b[0]) for b in BATCHES])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)], ids=["float32", "float64"])
def test_losses_and_gradients_are_those_of_the_official_algorithm(
    counts: tuple[int, ...], num_classes: int, seed: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(seed)
    maps, targets = random_maps(len(counts), num_classes, dtype), random_targets(counts, num_classes)
    losses = YOLOXLoss.preset("yolox", num_classes=num_classes, use_l1=True)(*maps, targets)
    assert losses.metrics["num_pos"] >= 0.8 * sum(counts)
    leaves = [level for kind in maps for level in kind]
    for name, want in expected(maps, targets, num_classes).items():
        torch.testing.assert_close(losses[name], want, rtol=tolerance, atol=0, msg=lambda text, name=name: f"{name}: {text}")
        got = torch.autograd.grad(losses[name], leaves, retain_graph=True, materialize_grads=True)
        if not want.requires_grad:
            assert not any(g.any() for g in got)
            continue
        true = torch.autograd.grad(want, leaves, retain_graph=True, materialize_grads=True)
        scale = max(g.abs().max() for g in true)
        for a, b in zip(got, true, strict=True):
            assert (a - b).abs().max() <= tolerance * scale, name
