"""A training step of torchvision's Mask R-CNN: our criterion gives the losses and gradients of the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from criteria_cases_rcnn import RecordedSampler, mask_targets
from torch import Tensor, nn

from detloss.criteria.mask_rcnn import MaskRCNNLoss

detection = pytest.importorskip("torchvision.models.detection")
ops = pytest.importorskip("torchvision.ops")

CLASSES, STRIDES, SIZES = 3, (8, 16), ((16,), (32,))
NAMES = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_box": "loss_rpn_box_reg",
    "loss_cls": "loss_classifier",
    "loss_box": "loss_box_reg",
    "loss_mask": "loss_mask",
}


class TinyBackbone(nn.Module):
    """Two feature maps of 8 channels with strides 8 and 16."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 8, stride=8)
        self.coarse = nn.Conv2d(8, 8, 2, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(x)
        return {"0": fine, "1": self.coarse(fine.relu())}


def mask_rcnn() -> nn.Module:
    """Mask R-CNN for images of 64 × 64 pixels without pretrained weights."""
    levels, outputs = ["0", "1"], CLASSES + 1
    return detection.MaskRCNN(
        TinyBackbone(), min_size=64, max_size=64, image_mean=[0.5] * 3, image_std=[0.3] * 3,
        rpn_anchor_generator=detection.rpn.AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 2),
        box_roi_pool=ops.MultiScaleRoIAlign(levels, 3, 2), mask_roi_pool=ops.MultiScaleRoIAlign(levels, 4, 2),
        box_head=detection.faster_rcnn.TwoMLPHead(8 * 9, 16), box_predictor=detection.faster_rcnn.FastRCNNPredictor(16, outputs),
        mask_head=nn.Conv2d(8, 8, 1), mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(8, 8, outputs),
        rpn_pre_nms_top_n_train=100, rpn_post_nms_top_n_train=40, box_batch_size_per_image=24,
    )  # fmt: skip


def watched(model: Any) -> dict[str, Any]:
    """What passes the heads in the next step, and the samples of both stages."""
    seen: dict[str, Any] = {}
    heads = {"rpn": model.rpn.head, "roi": model.roi_heads.box_predictor, "mask": model.roi_heads.mask_predictor}
    for name, head in heads.items():
        head.register_forward_hook(lambda module, given, output, name=name: seen.__setitem__(name, output))
    seen["sampler"] = RecordedSampler(256, model.rpn.fg_bg_sampler)
    model.rpn.fg_bg_sampler = seen["sampler"].of_torchvision
    select = model.roi_heads.select_training_samples

    def kept(*given: Any) -> Any:
        found = select(*given)
        seen["proposals"] = list(found[0])
        return found

    model.roi_heads.select_training_samples = kept
    return seen


@pytest.mark.parametrize(("counts", "seed"), [((3, 1), 0), ((2, 0, 4), 1)])
def test_losses_and_gradients_of_a_training_step(counts: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    model, targets = mask_rcnn().train(), mask_targets(counts)
    seen = watched(model)
    theirs = [{**t, "labels": t["labels"] + 1, "masks": t["masks"].to(torch.uint8)} for t in targets]
    expected = model([torch.rand(3, 64, 64) for _ in counts], theirs)
    criterion = MaskRCNNLoss.preset(
        "torchvision", num_classes=CLASSES, rpn={"strides": STRIDES, "anchor_sizes": SIZES, "sampler": seen["sampler"]}
    )
    losses = criterion(*seen["rpn"], *seen["roi"], seen["proposals"], targets, seen["mask"])
    assert 0 < losses.metrics["num_pos"] < losses.metrics["num_sampled"]
    parameters = [p for p in model.parameters() if p.requires_grad]
    for name, other in NAMES.items():
        torch.testing.assert_close(losses[name], expected[other], rtol=1e-5, atol=0)
    total = sum(expected.values())
    torch.testing.assert_close(losses.total_loss, total, rtol=1e-5, atol=0)
    got = torch.autograd.grad(losses.total_loss, parameters, retain_graph=True)
    want = torch.autograd.grad(total, parameters)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
