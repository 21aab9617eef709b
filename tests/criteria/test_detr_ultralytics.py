"""DETRLoss gives the losses and gradients of ultralytics' RT-DETR loss, with auxiliary and denoising layers, in float32.

Its overlap adds 1e-7 to areas in units of the image, so the boxes here are large enough for that not to be seen.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from criteria_cases import fresh, gradients
from torch import Tensor

from detloss.criteria.detr import DETRLoss

loss_module = pytest.importorskip("ultralytics.models.utils.loss")

CLASSES, QUERIES, GROUPS = 5, 9, 2
WEIGHTS = {"class": ("loss_cls", 1.0), "bbox": ("loss_box", 5.0), "giou": ("loss_iou", 2.0)}
Layers = list[tuple[Tensor, Tensor]]


def boxes(*shape: int) -> Tensor:
    """(cx, cy, w, h) of 0.3 to 0.6 of the image."""
    return torch.cat((torch.rand(*shape, 2) * 0.4 + 0.3, torch.rand(*shape, 2) * 0.3 + 0.3), dim=-1)


def layers_of(count: int, images: int, queries: int) -> Layers:
    shape = (images, queries)
    return [(torch.randn(*shape, CLASSES).requires_grad_(), boxes(*shape).requires_grad_()) for _ in range(count)]


def objects(counts: tuple[int, ...]) -> list[dict[str, Tensor]]:
    return [{"boxes": boxes(n), "labels": torch.randint(CLASSES, (n,))} for n in counts]


def their_batch(targets: list[dict[str, Tensor]]) -> dict[str, Any]:
    groups = [len(t["labels"]) for t in targets]
    return {
        "cls": torch.cat([t["labels"] for t in targets]),
        "bboxes": torch.cat([t["boxes"] for t in targets]),
        "gt_groups": groups,
    }


def stacked(layers: Layers) -> tuple[Tensor, Tensor]:
    """Boxes and scores ``[L, B, Q, ·]``."""
    return torch.stack([layer[1] for layer in layers]), torch.stack([layer[0] for layer in layers])


def summed(losses: dict[str, Tensor], name: str, kind: str) -> Tensor:
    """Our terms of one kind of layers, added up: the last or auxiliary ones, with or without denoising."""
    suffixes = [key[len(name) :] for key in losses if key.startswith(name)]
    denoising = [s for s in suffixes if s.startswith("_dn")]
    of_kind = {
        "": [""],
        "_aux": [s for s in suffixes if s and s not in denoising],
        "_dn": denoising[-1:],
        "_aux_dn": denoising[:-1],
    }
    return sum((losses[name + suffix] for suffix in of_kind[kind]), torch.zeros(()))


@pytest.mark.parametrize(("counts", "seed"), [((3, 0, 2), 0), ((1, 1), 1), ((12, 4), 2), ((QUERIES, 7, 8), 3), ((0, 5), 4)])
@pytest.mark.parametrize("denoising", [False, True])
def test_losses_and_gradients_agree(counts: tuple[int, ...], seed: int, denoising: bool) -> None:
    """The first layer is the encoder's; 12 objects are more than the queries."""
    torch.manual_seed(seed)
    targets, most = objects(counts), max(counts)
    layers, noisy = layers_of(4, len(counts), QUERIES), layers_of(3, len(counts), 2 * most * GROUPS)
    copies, noisy_copies = fresh(layers), fresh(noisy)
    index = torch.full((len(counts), 2 * most * GROUPS), -1)
    meta: dict[str, Any] = {"dn_pos_idx": [], "dn_num_group": GROUPS, "dn_gt_idx": []}
    for image, n in enumerate(counts):
        place = torch.cat([torch.arange(n) + 2 * most * group for group in range(GROUPS)])
        index[image, place] = torch.arange(n).repeat(GROUPS)
        meta["dn_pos_idx"].append(place)
        meta["dn_gt_idx"].append(torch.arange(n) + sum(counts[:image]))
    more = dict(zip(("dn_bboxes", "dn_scores"), stacked(noisy_copies), strict=True), dn_meta=meta) if denoising else {}
    expected = loss_module.RTDETRDetectionLoss(nc=CLASSES, use_vfl=True)(stacked(copies), their_batch(targets), **more)
    given = {"dn_outputs": noisy, "dn_gt_index": index} if denoising else {}
    criterion = DETRLoss.preset("ultralytics", num_classes=CLASSES, target_format="cxcywh_normalized")
    losses = criterion(*layers[-1], targets, layers[1:-1], enc_outputs=layers[0], **given)
    for their_name, (name, weight) in WEIGHTS.items():
        for kind in ("", "_aux", *(("_dn", "_aux_dn") if denoising else ())):
            want = expected[f"loss_{their_name}{kind}"]
            torch.testing.assert_close(summed(losses, name, kind), want, rtol=1e-5, atol=1e-6 * weight)
    trees = ([layers, noisy], [copies, noisy_copies]) if denoising else (layers, copies)
    got, want = gradients(losses.total_loss, trees[0]), gradients(sum(expected.values()), trees[1])
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_a_batch_without_objects_costs_three_times_as_much_there() -> None:
    """It falls back to a focal loss then, whose negatives weigh 1 − 0.25, not 0.25."""
    torch.manual_seed(0)
    layers, targets = layers_of(2, 2, QUERIES), objects((0, 0))
    expected = loss_module.RTDETRDetectionLoss(nc=CLASSES, use_vfl=True)(stacked(layers), their_batch(targets))
    criterion = DETRLoss.preset("ultralytics", num_classes=CLASSES, target_format="cxcywh_normalized")
    losses = criterion(*layers[-1], targets, layers[:-1])
    torch.testing.assert_close(3 * losses["loss_cls"], expected["loss_class"], rtol=1e-5, atol=0)
    assert losses["loss_box"] == expected["loss_bbox"] == 0
