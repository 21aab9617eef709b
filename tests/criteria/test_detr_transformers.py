"""DETRLoss gives the losses and gradients of transformers' DETR, Deformable DETR and RT-DETR losses, all layers included."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from criteria_cases import fresh, gradients
from criteria_cases_detr import random_layer
from torch import Tensor

from detloss import LossDict
from detloss.criteria.detr import DETRLoss
from detloss.geometry import to_xyxy

detr = pytest.importorskip("transformers.loss.loss_for_object_detection")
deformable = pytest.importorskip("transformers.loss.loss_deformable_detr")
rt_detr = pytest.importorskip("transformers.loss.loss_rt_detr")

CLASSES, QUERIES, GROUPS = 5, 9, 2
COUNTS = [((3, 0, 2), 0), ((1, 1), 1), ((12, 4), 2), ((0, 0), 3), ((QUERIES, 7, 8, 1), 4)]  # 12 objects for 9 queries
cases = pytest.mark.parametrize(("counts", "seed"), COUNTS)
precisions = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])


def objects(counts: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Boxes (cx, cy, w, h) in units of the image."""
    made = []
    for count in counts:
        boxes = torch.cat((torch.rand(count, 2) * 0.6 + 0.2, torch.rand(count, 2) * 0.5 + 0.1), dim=1)
        made.append({"boxes": boxes.to(dtype), "labels": torch.randint(CLASSES, (count,))})
    return made


def for_them(targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{"boxes": t["boxes"], "class_labels": t["labels"]} for t in targets]


def as_dict(layer: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"logits": layer[0], "pred_boxes": layer[1]}


def agree(losses: LossDict, layers: Any, expected: dict[str, Tensor], copies: Any, tolerance: float) -> None:
    """The same terms before their weights, and the same gradients of their weighted sum."""
    assert set(losses) == set(expected)
    for name, want in expected.items():
        torch.testing.assert_close(losses.unweighted[name], want.detach(), rtol=tolerance, atol=tolerance * 1e-2)
    weight = {"loss_cls": 1.0, "loss_box": 5.0, "loss_iou": 2.0}
    want = gradients(sum(weight[name[:8]] * value for name, value in expected.items()), copies)
    for a, b in zip(gradients(losses.total_loss, layers), want, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)


def in_our_words(theirs: dict[str, Tensor], own: dict[str, str]) -> dict[str, Tensor]:
    """``loss_ce_0`` → ``loss_cls_0`` and so on; what is no loss is left out."""
    names = {f"loss_{their}": f"loss_{our}" for their, our in own.items()}
    found = {next((our + key[len(their) :] for their, our in names.items() if key.startswith(their)), ""): value
             for key, value in theirs.items()}  # fmt: skip
    return {name: value for name, value in found.items() if name}


def matcher_of(kind: Any, class_cost: float) -> Any:
    return kind(class_cost=class_cost, bbox_cost=5, giou_cost=2)


@cases
@precisions
@pytest.mark.parametrize("in_pixels", [False, True])
def test_detr(counts: tuple[int, ...], seed: int, dtype: torch.dtype, tolerance: float, in_pixels: bool) -> None:
    torch.manual_seed(seed)
    layers = [random_layer(len(counts), QUERIES, CLASSES + 1, dtype) for _ in range(3)]
    copies, targets = fresh(layers), objects(counts, dtype)
    theirs = detr.ImageLoss(matcher_of(detr.HungarianMatcher, 1), CLASSES, 0.1, ["labels", "boxes"]).to(dtype)
    theirs.empty_weight = torch.tensor([1.0] * CLASSES + [0.1], dtype=dtype)  # and not 0.1 rounded to float32
    outputs = {**as_dict(copies[2]), "auxiliary_outputs": [as_dict(layer) for layer in copies[:2]]}
    expected = in_our_words(theirs(outputs, for_them(targets)), {"ce": "cls", "bbox": "box", "giou": "iou"})
    criterion = DETRLoss.preset("detr", num_classes=CLASSES, target_format="xyxy_pixel" if in_pixels else "cxcywh_normalized")
    size = torch.tensor([[480.0, 640.0 + 32 * image] for image in range(len(counts))]) if in_pixels else None
    if in_pixels:
        targets = [
            {**t, "boxes": to_xyxy(t["boxes"], "cxcywh") * s.flip(0).repeat(2)} for t, s in zip(targets, size, strict=True)
        ]
    losses = criterion(*layers[2], targets, layers[:2], size)
    agree(losses, layers, expected, copies, tolerance)


@cases
def test_detr_from_logits_to_the_total(counts: tuple[int, ...], seed: int) -> None:
    """Their whole function, as a model calls it, with its own weights."""
    torch.manual_seed(seed)
    layers, targets = [random_layer(len(counts), QUERIES, CLASSES + 1) for _ in range(3)], objects(counts, torch.float32)
    config = SimpleNamespace(
        class_cost=1, bbox_cost=5, giou_cost=2, num_labels=CLASSES, eos_coefficient=0.1, auxiliary_loss=True, decoder_layers=3,
        bbox_loss_coefficient=5, giou_loss_coefficient=2,
    )  # fmt: skip
    stacked = [torch.stack([layer[k] for layer in layers]) for k in (0, 1)]
    want, _, _ = detr.ForObjectDetectionLoss(layers[2][0], for_them(targets), "cpu", layers[2][1], config, *stacked)
    losses = DETRLoss(CLASSES, target_format="cxcywh_normalized")(*layers[2], targets, layers[:2])
    torch.testing.assert_close(losses.total_loss, want, rtol=1e-5, atol=0)


@cases
@precisions
@pytest.mark.parametrize("cost", [1.0, 2.0])
def test_deformable_detr(counts: tuple[int, ...], seed: int, dtype: torch.dtype, tolerance: float, cost: float) -> None:
    """Their model has cost 1 for the class, the paper's code 2; both weigh the loss apart from it."""
    torch.manual_seed(seed)
    layers = [random_layer(len(counts), QUERIES, CLASSES, dtype) for _ in range(3)]
    copies, targets = fresh(layers), objects(counts, dtype)
    matcher = matcher_of(deformable.DeformableDetrHungarianMatcher, cost)
    theirs = deformable.DeformableDetrImageLoss(matcher, CLASSES, 0.25, ["labels", "boxes"])
    outputs = {**as_dict(copies[2]), "auxiliary_outputs": [as_dict(layer) for layer in copies[:2]]}
    expected = in_our_words(theirs(outputs, for_them(targets)), {"ce": "cls", "bbox": "box", "giou": "iou"})
    criterion = DETRLoss.preset(
        "deformable_detr", num_classes=CLASSES, target_format="cxcywh_normalized", weights={"loss_cls": 1.0},
        assigner={"type": "HungarianAssigner", "cls_cost": "focal", "cls_weight": cost},
    )  # fmt: skip
    agree(criterion(*layers[2], targets, layers[:2]), layers, expected, copies, tolerance)


def denoising_meta(counts: tuple[int, ...]) -> tuple[dict[str, Any], Tensor]:
    """GROUPS groups of as many queries for positives as for negatives, as their model makes them; and the same for us."""
    most = max(counts)
    positive = [torch.cat([torch.arange(n) + 2 * most * group for group in range(GROUPS)]) for n in counts]
    index = torch.full((len(counts), 2 * most * GROUPS), -1)
    for image, n in enumerate(counts):
        index[image, positive[image]] = torch.arange(n).repeat(GROUPS)
    return {"dn_positive_idx": positive, "dn_num_group": GROUPS}, index


@cases
@precisions
def test_rt_detr_with_encoder_and_denoising(counts: tuple[int, ...], seed: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(seed)
    config = SimpleNamespace(
        matcher_class_cost=2.0, matcher_bbox_cost=5.0, matcher_giou_cost=2.0, use_focal_loss=True, matcher_alpha=0.25,
        matcher_gamma=2.0, num_labels=CLASSES, weight_loss_vfl=1.0, weight_loss_bbox=1.0, weight_loss_giou=1.0,
        eos_coefficient=1e-4, focal_loss_alpha=0.75, focal_loss_gamma=2.0,
    )  # fmt: skip
    targets = objects(counts, dtype)
    meta, index = denoising_meta(counts)
    layers = [random_layer(len(counts), QUERIES, CLASSES, dtype) for _ in range(4)]  # two auxiliary, the last, the encoder
    denoising = [random_layer(len(counts), index.shape[1], CLASSES, dtype) for _ in range(2)] if max(counts) else []
    copies = fresh([layers, denoising])
    outputs = {**as_dict(copies[0][2]), "auxiliary_outputs": [as_dict(copies[0][k]) for k in (0, 1, 3)]}
    if denoising:
        outputs |= {"dn_auxiliary_outputs": [as_dict(layer) for layer in copies[1]], "denoising_meta_values": meta}
    theirs = {name.replace("_aux_2", "_enc").replace("_aux", ""): value
              for name, value in rt_detr.RTDetrLoss(config)(outputs, for_them(targets)).items()}  # fmt: skip
    expected = in_our_words(theirs, {"vfl": "cls", "bbox": "box", "giou": "iou"})
    criterion = DETRLoss.preset("rtdetr", num_classes=CLASSES, target_format="cxcywh_normalized")
    losses = criterion(*layers[2], targets, layers[:2], enc_outputs=layers[3], dn_outputs=denoising or None, dn_gt_index=index)
    agree(losses, [layers, denoising], expected, copies, tolerance)
