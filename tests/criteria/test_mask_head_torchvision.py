"""torchvision's mask head gives the same loss and gradients for the same logits, proposals and masks."""

from __future__ import annotations

import pytest
import torch
from criteria_cases import gradients
from criteria_cases_rcnn import mask_targets
from fcos_cases import Target
from torch import Tensor

from detloss.criteria.mask_head import MaskHeadLoss

roi_heads = pytest.importorskip("torchvision.models.detection.roi_heads")

CLASSES = 3


def moved_boxes(targets: list[Target], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Three proposals near every object, and which object each has; all of them overlap it by more than half."""
    boxes = [(t["boxes"].repeat(3, 1) + torch.rand(3 * len(t["boxes"]), 4) * 0.8).to(dtype) for t in targets]
    return boxes, [torch.arange(len(t["boxes"])).repeat(3) for t in targets]


@pytest.mark.parametrize(("counts", "seed"), [((2, 0, 1), 0), ((1, 1), 1), ((3, 3), 2)])
@pytest.mark.parametrize("size", [14, 28])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_loss_and_gradients_agree(counts: tuple[int, ...], seed: int, size: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(seed)
    targets = mask_targets(counts)
    proposals, index = moved_boxes(targets, dtype)
    logits = torch.randn(3 * sum(counts), CLASSES + 1, size, size, dtype=dtype, requires_grad=True)
    labels, masks = [t["labels"] + 1 for t in targets], [t["masks"].to(torch.uint8) for t in targets]
    losses = MaskHeadLoss.preset("torchvision", num_classes=CLASSES)(logits, proposals, targets)
    # Objects may overlap so much that a proposal has another one; both get ours.
    own = MaskHeadLoss(CLASSES).match(logits[:, 1:], proposals, targets).samples.gt_index.split([len(p) for p in proposals])
    assert sum(int((a == b).sum()) for a, b in zip(own, index, strict=True)) > 0.8 * len(logits)
    expected = roi_heads.maskrcnn_loss(logits, proposals, masks, labels, list(own))
    assert losses.metrics["num_pos"] == len(logits)
    torch.testing.assert_close(losses["loss_mask"], expected, rtol=tolerance, atol=0)
    (got,), (want,) = gradients(losses["loss_mask"], logits), gradients(expected, logits)
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_without_positives_both_are_0() -> None:
    logits = torch.zeros(0, CLASSES + 1, 14, 14, requires_grad=True)
    targets, proposals = mask_targets([0, 0]), [torch.zeros(0, 4)] * 2
    losses = MaskHeadLoss.preset("torchvision", num_classes=CLASSES)(logits, proposals, targets)
    masks, labels = [t["masks"].to(torch.uint8) for t in targets], [t["labels"] for t in targets]
    assert roi_heads.maskrcnn_loss(logits, proposals, masks, labels, labels) == losses["loss_mask"] == 0
    gradients(losses["loss_mask"], logits)
