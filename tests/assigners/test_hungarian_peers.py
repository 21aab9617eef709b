"""Hungarian matching is that of transformers (DETR, Deformable DETR, RT-DETR) and of ultralytics on random predictions."""

from __future__ import annotations

import pytest
import torch
from fcos_cases import Target, random_targets
from torch import Tensor

from detloss.assigners.hungarian import HungarianAssigner
from detloss.geometry import convert_boxes


def as_pairs(index: Tensor) -> list[tuple[int, int]]:
    return sorted((q, g) for q, g in enumerate(index.tolist()) if g >= 0)


def normalised(targets: list[Target]) -> list[Target]:
    unit = torch.tensor([64.0, 48.0] * 2)
    return [{"boxes": (t["boxes"] / unit), "labels": t["labels"]} for t in targets]


def peer_scene(classes: int) -> tuple[list[Target], Tensor, Tensor]:
    """Normalised targets and, in float32, logits and boxes (cx, cy, w, h)."""
    targets = [{**t, "labels": torch.randint(classes - 1, t["labels"].shape)} for t in normalised(random_targets([12, 0, 30, 1]))]
    boxes = torch.cat((torch.rand(4, 40, 2), torch.rand(4, 40, 2) * 0.5 + 0.01), -1)
    return targets, torch.randn(4, 40, classes) * 2, boxes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["detr", "deformable", "rtdetr", "rtdetr_softmax"])
def test_equals_transformers(kind: str, seed: int) -> None:
    pytest.importorskip("transformers")
    from types import SimpleNamespace

    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
    from transformers.loss.loss_for_object_detection import HungarianMatcher
    from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

    torch.manual_seed(seed)
    focal = kind in ("deformable", "rtdetr")
    targets, scores, boxes = peer_scene(9)
    if kind == "detr":
        peer, weight = HungarianMatcher(1, 5, 2), 1.0
    elif kind == "deformable":
        peer, weight = DeformableDetrHungarianMatcher(2, 5, 2), 2.0
    else:
        weight = 2.0
        names = {"matcher_class_cost": 2.0, "matcher_bbox_cost": 5.0, "matcher_giou_cost": 2.0, "use_focal_loss": focal}
        peer = RTDetrHungarianMatcher(SimpleNamespace(matcher_alpha=0.25, matcher_gamma=2.0, **names))
    theirs = [{"class_labels": t["labels"], "boxes": convert_boxes(t["boxes"], "xyxy", "cxcywh")} for t in targets]
    expected = peer({"logits": scores, "pred_boxes": boxes}, theirs)
    ours = HungarianAssigner("focal" if focal else "softmax", cls_weight=weight)
    corners = convert_boxes(boxes, "cxcywh", "xyxy")
    got = ours(None, targets, scores, corners)
    pixels = ours(None, [{**t, "boxes": t["boxes"] * 512} for t in targets], scores, corners * 512, (512, 512))
    for image, (query, object_) in enumerate(expected):
        pairs = sorted(zip(query.tolist(), object_.tolist(), strict=True))
        assert as_pairs(got.gt_index[image]) == pairs and as_pairs(pixels.gt_index[image]) == pairs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("focal", [True, False])
def test_equals_ultralytics(focal: bool, seed: int) -> None:
    ops = pytest.importorskip("ultralytics.models.utils.ops")
    torch.manual_seed(seed)
    targets, scores, boxes = peer_scene(9)
    counts = [len(t["labels"]) for t in targets]
    objects = convert_boxes(torch.cat([t["boxes"] for t in targets]), "xyxy", "cxcywh")
    matcher = ops.HungarianMatcher({"class": 2, "bbox": 5, "giou": 2}, use_fl=focal)
    expected = matcher(boxes, scores, objects, torch.cat([t["labels"] for t in targets]), counts)
    assigner = HungarianAssigner("focal" if focal else "softmax", cls_weight=2.0)
    got = assigner(None, targets, scores, convert_boxes(boxes, "cxcywh", "xyxy"))
    for image, (query, object_) in enumerate(expected):
        first = sum(counts[:image])
        pairs = sorted(zip(query.tolist(), (object_ - first).tolist(), strict=True))
        assert as_pairs(got.gt_index[image]) == pairs
