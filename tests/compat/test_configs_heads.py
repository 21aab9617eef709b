"""Heads and models of mmdet as criteria: the numbers of the presets, or of formulas written down here."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from compat import mmdet_configs as C
from torch import Tensor

from detloss.compat.configs import from_mmdet
from detloss.compat.mmdet.models import losses as L
from detloss.criteria.atss import ATSSLoss
from detloss.criteria.centernet import CenterNetLoss
from detloss.criteria.detr import DETRLoss
from detloss.criteria.fcos import FCOSLoss
from detloss.criteria.gfl import GFLLoss
from detloss.criteria.mask_head import MaskHeadLoss
from detloss.criteria.mask_rcnn import MaskRCNNLoss
from detloss.criteria.retinanet import RetinaNetLoss
from detloss.criteria.rpn import RPNLoss
from detloss.criteria.yolox import YOLOXLoss

STRIDES = (8, 16, 32)
RANGES = ((-1, 64), (64, 128), (128, 1e8))


@pytest.fixture
def targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 20.0, 60.0, 44.0], [30.0, 2.0, 52.0, 20.0]])
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    full = {"boxes": boxes, "labels": torch.tensor([0, 2, 1]), "masks": masks}
    return [full, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": masks[:0]}]


def maps(*channels: int, strides: tuple[int, ...] = STRIDES) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [[torch.randn(2, c, 64 // s, 64 // s, generator=generator).abs() * 2 for s in strides] for c in channels]


def equal(ours: Any, theirs: Any) -> None:
    assert set(ours) == set(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
    assert theirs.total_loss > 0


def model(head: dict[str, Any], train: dict[str, Any] | None = None) -> dict[str, Any]:
    return dict(type="SingleStageDetector", backbone=dict(type="ResNet"), neck=dict(type="FPN"), bbox_head=head, train_cfg=train)


DENSE: dict[str, tuple[dict, dict | None, Callable[[], Any], list[list[Tensor]]]] = {
    "retina": (C.RETINA, C.RETINA_TRAIN, lambda: RetinaNetLoss.preset("mmdet", num_classes=3, strides=STRIDES), maps(27, 36)),
    "fcos": (
        C.FCOS, None, lambda: FCOSLoss.preset("mmdet", num_classes=3, strides=STRIDES, regress_ranges=RANGES), maps(3, 4, 1),
    ),
    "atss": (C.ATSS, C.ATSS_TRAIN, lambda: ATSSLoss.preset("mmdet", num_classes=3, strides=STRIDES), maps(3, 4, 1)),
    "gfl": (C.GFL, C.ATSS_TRAIN, lambda: GFLLoss.preset("mmdet", num_classes=3, strides=STRIDES, reg_max=8), maps(3, 36)),
    "yolox": (
        C.YOLOX, dict(assigner=dict(type="SimOTAAssigner", center_radius=2.5)),
        lambda: YOLOXLoss.preset("mmdet", num_classes=3, strides=STRIDES), maps(3, 4, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("whole", [True, False])
def test_dense_heads_have_the_numbers_of_the_presets(name: str, whole: bool, targets: list[dict[str, Tensor]]) -> None:
    head, train, preset, predictions = DENSE[name]
    found = from_mmdet(model(head, train), strict=True) if whole else from_mmdet(head, train_cfg=train, strict=True)
    equal(found.criterion(*predictions, targets), preset()(*predictions, targets))
    prefix = "bbox_head." if whole else ""
    assert found.unknown == () and f"{prefix}loss_cls.type" in found.used and f"{prefix}in_channels" in found.ignored


def test_centernet_has_the_numbers_of_the_preset(targets: list[dict[str, Tensor]]) -> None:
    predictions = [level[0] for level in maps(3, 2, 2, strides=(4,))]
    found = from_mmdet(dict(type="CenterNet", bbox_head=C.CENTERNET, train_cfg=None), strict=True)
    equal(found.criterion(*predictions, targets), CenterNetLoss.preset("mmdet", num_classes=3)(*predictions, targets))
    heavier = from_mmdet({**C.CENTERNET, "loss_wh": dict(type="L1Loss", loss_weight=0.2)})
    ratio = heavier.criterion(*predictions, targets)["loss_size"] / found.criterion(*predictions, targets)["loss_size"]
    assert ratio.item() == pytest.approx(2)


def test_rpn_has_the_numbers_of_the_preset(targets: list[dict[str, Tensor]]) -> None:
    """Enough places in the sample for all anchors, so that nothing is random."""
    found = from_mmdet(dict(type="RPN", rpn_head=C.RPN, train_cfg=dict(rpn=C.TWO_STAGE_TRAIN["rpn"])), strict=True)
    preset = RPNLoss.preset("mmdet", strides=STRIDES, anchor_scales=(4,), sampler=found.criterion.sampler)
    assert (found.criterion.sampler.num, found.criterion.sampler.pos_fraction) == (10_000, 0.5)
    predictions = maps(3, 12)
    equal(found.criterion(*predictions, targets), preset(*predictions, targets))


def test_mask_rcnn_has_the_numbers_of_the_preset(targets: list[dict[str, Tensor]]) -> None:
    found = from_mmdet(dict(model=C.MASK_RCNN, optim_wrapper=dict(type="OptimWrapper"), default_scope="mmdet"), strict=True)
    preset = MaskRCNNLoss.preset(
        "mmdet", num_classes=3,
        rpn={"strides": STRIDES, "anchor_scales": (4,), "sampler": found.criterion.rpn.sampler},
    )  # fmt: skip
    assert (found.criterion.roi.sampler.num, found.criterion.roi.sampler.pos_fraction) == (512, 0.25)
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(2, 30, 2, generator=generator) * 40
    proposals = list(torch.cat((corner, corner + 4 + torch.rand(2, 30, 2, generator=generator) * 20), 2))
    results = []
    for criterion in (found.criterion, preset):
        torch.manual_seed(0)
        samples = criterion.sample(proposals, targets)
        count, positives = len(samples.labels), len(samples.positives.labels)
        assert count == 63 and positives > 3
        generator.manual_seed(4)
        logits, deltas, masks = (
            torch.randn(*shape, generator=generator) for shape in ((count, 4), (count, 12), (positives, 3, 14, 14))
        )
        results.append(criterion(*maps(3, 12), logits, deltas, samples, targets, masks))
    equal(*results)
    assert {"rpn_head.in_channels", "roi_head.bbox_head.fc_out_channels", "train_cfg.rpn_proposal"} <= {
        path.removeprefix("model.") for path in found.ignored
    }
    assert "optim_wrapper" in found.ignored


def test_faster_rcnn_and_the_parts_alone(targets: list[dict[str, Tensor]]) -> None:
    faster = deepcopy(C.MASK_RCNN)
    faster["type"] = "FasterRCNN"
    for name in ("mask_head", "mask_roi_extractor"):
        del faster["roi_head"][name]
    faster["roi_head"]["bbox_head"]["reg_class_agnostic"] = True
    assert from_mmdet(faster, strict=True).criterion.roi.class_agnostic
    box = from_mmdet(C.BOX_HEAD, train_cfg=C.TWO_STAGE_TRAIN["rcnn"]).criterion
    assert box.append_ground_truth and box.assigner.min_pos_iou == 0.5 and box.delta_weights == (10, 10, 5, 5)
    mask = from_mmdet(C.MASK_HEAD, strict=True).criterion
    preset = MaskHeadLoss.preset("mmdet", num_classes=3)
    logits = torch.randn(3, 3, 14, 14)
    proposals = [targets[0]["boxes"], torch.zeros(0, 4)]
    equal(mask(logits, proposals, targets), preset(logits, proposals, targets))


@pytest.mark.parametrize(
    ("head", "train", "preset"),
    [
        (C.DETR, C.DETR_TRAIN, lambda: DETRLoss(num_classes=3)),
        (C.DINO, C.DINO_TRAIN, lambda: DETRLoss.preset("dino", num_classes=3)),
        (
            {**C.DINO, "type": "DeformableDETRHead", "loss_cls": {**C.DINO["loss_cls"], "loss_weight": 2.0}}, C.DINO_TRAIN,
            lambda: DETRLoss.preset("deformable_detr", num_classes=3),
        ),
    ],
    ids=["detr", "dino", "deformable"],
)  # fmt: skip
def test_detr_heads_have_the_numbers_of_the_presets(
    head: dict[str, Any], train: dict[str, Any], preset: Callable[[], DETRLoss], targets: list[dict[str, Tensor]]
) -> None:
    found = from_mmdet(dict(type="DETR", num_queries=10, bbox_head=head, train_cfg=train), strict=True)
    theirs = preset()
    columns = 3 + theirs.background_column
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 10, columns, generator=generator)
    boxes = torch.rand(3, 2, 10, 4, generator=generator) * 0.4 + 0.2
    arguments = logits[0], boxes[0], targets, list(zip(logits[1:], boxes[1:], strict=True)), (64, 64)
    equal(found.criterion(*arguments), theirs(*arguments))
    assert found.criterion.encoder_class_agnostic == (head["type"] == "DeformableDETRHead")


def test_options_of_fcos_are_honoured(targets: list[dict[str, Tensor]]) -> None:
    head = {
        **C.FCOS, "norm_on_bbox": True, "centerness_on_reg": True, "center_sampling": True, "center_sample_radius": 2.0,
        "regress_ranges": ((-1, 32), (32, 64), (64, "INF")), "loss_bbox": dict(type="GIoULoss", loss_weight=2.0),
    }  # fmt: skip
    found = from_mmdet(head)
    theirs = FCOSLoss(
        3, strides=STRIDES, regress_ranges=((-1, 32), (32, 64), (64, float("inf"))), center_sampling_radius=2.0,
        distance_unit="stride", centerness_weighted=True, loss_box=dict(type="GIoULoss", loss_weight=2.0),
    )  # fmt: skip
    predictions = maps(3, 4, 1)
    equal(found.criterion(*predictions, targets), theirs(*predictions, targets))
    assert "centerness_on_reg" in found.ignored and "norm_on_bbox" in found.used


def test_options_of_anchors_coder_and_assigner_are_honoured(targets: list[dict[str, Tensor]]) -> None:
    head = deepcopy(C.RETINA)
    head["anchor_generator"] = dict(
        type="AnchorGenerator",
        scales=[2.0, 3.0],
        ratios=[1.0, 2.0],
        strides=[8, 16, 32],
        base_sizes=[10, 20, 40],
        scale_major=False,
    )
    head["bbox_coder"]["target_stds"] = [0.1, 0.1, 0.2, 0.2]
    head["loss_bbox"] = dict(type="SmoothL1Loss", beta=0.11)
    train = dict(assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.4, neg_iou_thr=(0.1, 0.3), match_low_quality=False))
    theirs = RetinaNetLoss.preset(
        "mmdet", num_classes=3, strides=STRIDES, anchor_sizes=[[20, 30], [40, 60], [80, 120]], anchor_ratios=(1.0, 2.0),
        anchor_order="size", delta_weights=(10, 10, 5, 5), loss_box=dict(type="SmoothL1Loss", beta=0.11),
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.4, neg_iou_thr=(0.1, 0.3), match_low_quality=False),
    )  # fmt: skip
    predictions = maps(12, 16)
    equal(from_mmdet(head, train_cfg=train, strict=True).criterion(*predictions, targets), theirs(*predictions, targets))


def test_ghm_divides_by_its_own_count(targets: list[dict[str, Tensor]]) -> None:
    """mmdet's GHM losses pay no heed to the number of positives, so they come as they are."""
    head = {
        **C.RETINA,
        "loss_cls": dict(type="GHMC", bins=30, use_sigmoid=True),
        "loss_bbox": dict(type="GHMR", loss_weight=10.0),
    }
    predictions = maps(27, 36)
    criterion = from_mmdet(head).criterion
    losses = criterion(*predictions, targets)
    matched = criterion.match(*predictions, targets)
    positive = matched.assignment.gt_index.reshape(-1) >= 0
    labels = torch.where(positive, targets[0]["labels"][matched.assignment.gt_index.reshape(-1).clamp(min=0)], 3)
    counted = (~matched.assignment.ignore).reshape(-1).float()
    expected = L.GHMC(bins=30)(matched.logits.reshape(-1, 3), labels, counted)
    torch.testing.assert_close(losses["loss_cls"], expected)
    assert losses["loss_box"] > 0
