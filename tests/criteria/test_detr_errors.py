"""Every mistake in a call or an option of DETRLoss is named: expected, got, where; and what it says of itself."""

from __future__ import annotations

import pytest
import torch
from criteria_cases_detr import random_layer

import detloss
from detloss.criteria.detr import DETRLoss

TARGETS = [{"boxes": torch.tensor([[0, 0, 32, 32]]), "labels": torch.tensor([label])} for label in (0, 2)]
LAYER = random_layer(2, 6, 4)
SIZE = (64, 64)


def call(*layer: object, criterion: DETRLoss | None = None, targets: object = TARGETS, **more: object) -> None:
    (criterion or DETRLoss(3))(*(layer or LAYER), targets, **{"image_sizes": SIZE, **more})  # type: ignore[arg-type]


BAD_CALLS = {
    "columns": (
        lambda: call(*random_layer(2, 6, 3)),
        ValueError,
        r"logits of pred_logits and pred_boxes .*\[B, Q, 4\]; got \[2, 6, 3\]",
    ),
    "columns of focal": (
        lambda: call(criterion=DETRLoss.preset("dino", num_classes=3)),
        ValueError,
        r"must have shape \[B, Q, 3\]; got \[2, 6, 4\]",
    ),
    "boxes": (
        lambda: call(LAYER[0], LAYER[1][:, :5]),
        ValueError,
        r"boxes of pred.* must have shape \[2, 6, 4\]; got \[2, 5, 4\]",
    ),
    "integers": (
        lambda: call(LAYER[0].long(), LAYER[1]),
        TypeError,
        r"the logits of pred.* floating-point dtype; got torch.int64",
    ),
    "None": (
        lambda: call(None, LAYER[1]),
        TypeError,
        "the logits of pred_logits and pred_boxes must be a torch.Tensor; got NoneType",
    ),
    "aux is a tensor": (lambda: call(aux_outputs=LAYER[0]), TypeError, "aux_outputs must be a list of layers; got Tensor"),
    "aux of one": (
        lambda: call(aux_outputs=[LAYER, LAYER[:1]]),
        TypeError,
        r"aux_outputs\[1\] must be \(logits, boxes\) or a dict.*got tuple of 1",
    ),
    "aux keys": (
        lambda: call(aux_outputs=[{"logits": LAYER[0]}]),
        ValueError,
        r"aux_outputs\[0\] must have.*got keys \['logits'\]",
    ),
    "aux images": (
        lambda: call(aux_outputs=[random_layer(1, 6, 4)]),
        ValueError,
        r"logits of aux_outputs\[0\].*\[2, Q, 4\]; got \[1, 6, 4\]",
    ),
    "too many": (lambda: call(aux_outputs=[LAYER] * 30), ValueError, "at most 30 layers, all kinds together; got 31"),
    "no sizes": (lambda: call(image_sizes=None), ValueError, r"targets in pixels need image_sizes=\(height, width\).*got None"),
    "sizes": (lambda: call(image_sizes=torch.ones(3, 2)), ValueError, r"or have shape \[2, 2\]; got \[3, 2\]"),
    "no index": (lambda: call(dn_outputs=[LAYER]), ValueError, r"dn_outputs need dn_gt_index \[B, N\].*got None"),
    "index": (
        lambda: call(dn_outputs=[LAYER], dn_gt_index=torch.zeros(2, 5).long()),
        ValueError,
        r"must have shape \[2, 6\]; got \[2, 5\]",
    ),
    "index floats": (
        lambda: call(dn_outputs=[LAYER], dn_gt_index=torch.zeros(2, 6)),
        TypeError,
        "dn_gt_index must have an integer dtype; got torch.fl",
    ),
    "images": (lambda: call(targets=TARGETS[:1]), ValueError, "expected one target per image, 2 of them; got 1"),
    "one dict": (lambda: call(targets=TARGETS[0]), TypeError, "targets must be a list of dicts, one per image; got dict"),
    "a list of None": (
        lambda: call(targets=[None, None], criterion=DETRLoss(3, target_format="cxcywh_normalized")),
        TypeError,
        r"targets\[0\] must be a dict with 'boxes' and 'labels'; got NoneType",
    ),
    "label": (
        lambda: call(targets=[TARGETS[0], {**TARGETS[1], "labels": torch.tensor([3])}]),
        ValueError,
        r"must be in 0…2 .*; got 3",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_says_expected_got_and_where(case: str) -> None:
    act, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        act()


BAD_OPTIONS = [
    ({"num_classes": 0}, ValueError, "num_classes must be an integer >= 1; got 0"),
    ({"no_object_weight": -0.1}, ValueError, "no_object_weight must be a finite number >= 0; got -0.1"),
    ({"dn_weight": float("nan")}, ValueError, "dn_weight must be a finite number >= 0; got nan"),
    ({"target_format": "xyxy"}, ValueError, "target_format must be one of 'xyxy_pixel', 'cxcywh_normalized'; got 'xyxy'"),
    ({"box_count": "pair"}, ValueError, "box_count must be one of 'objects', 'pairs'; got 'pair'. Did you mean 'pairs'"),
    ({"weights": {"loss_bbox": 1.0}}, ValueError, "no term 'loss_bbox' to weigh. Did you mean 'loss_box'"),
    ({"loss_iou": {"type": "GIoULoss", "box_format": "cxcywh"}}, ValueError, "loss_iou is fed corners.*got 'cxcywh'"),
    ({"loss_cls": {"type": "FocalLoss", "reduction": "sum"}}, ValueError, "loss_cls must have reduction='mean'; got 'sum'"),
    ({"loss_cls": {"type": "MatchedVarifocalLoss", "alfa": 1}}, TypeError, "unknown option 'alfa'. Did you mean 'alpha'"),
    (
        {"assigner": {"type": "HungarianAssigner", "cls_cost": "sigmoid"}},
        ValueError,
        "cls_cost must be one of 'softmax', 'focal'",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_when_the_criterion_is_made(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DETRLoss(**{"num_classes": 3, **options})


def test_presets_choose_classes_costs_and_weights() -> None:
    made = {name: DETRLoss.preset(name, num_classes=3) for name in DETRLoss.PRESETS}
    kinds = {
        name: (type(c.loss_cls).__name__, c.assigner.cls_cost, c.assigner.cls_weight, *c.weights.values())
        for name, c in made.items()
    }
    assert kinds == {
        "detr": ("CrossEntropyLoss", "softmax", 1, 1, 5, 2),
        "deformable_detr": ("FocalLoss", "focal", 2, 2, 5, 2),
        "dino": ("FocalLoss", "focal", 2, 1, 5, 2),
        "rtdetr": ("MatchedVarifocalLoss", "focal", 2, 1, 5, 2),
        "ultralytics": ("MatchedVarifocalLoss", "focal", 2, 1, 5, 2),
    }
    assert made["rtdetr"].loss_cls is not DETRLoss.preset("rtdetr", num_classes=3).loss_cls
    assert (made["rtdetr"].loss_cls.alpha, made["rtdetr"].loss_cls.gamma) == (0.75, 2.0)
    with pytest.raises(ValueError, match="Did you mean 'rtdetr'"):
        DETRLoss.preset("rt-detr", num_classes=3)


def test_the_cost_follows_the_loss_and_can_be_another() -> None:
    assert DETRLoss(3).assigner.cls_cost == "softmax" and DETRLoss(3, loss_cls="QualityFocalLoss").assigner.cls_cost == "focal"
    mine = detloss.build({"type": "HungarianAssigner", "iou": "diou"})
    assert DETRLoss(3, assigner=mine).assigner is mine
    seesaw = DETRLoss(3, loss_cls={"type": "SeesawLoss", "num_classes": 4}, background_column=True)
    assert seesaw.assigner.cls_cost == "softmax"
    losses = seesaw(*LAYER, TARGETS, image_sizes=SIZE)
    assert torch.isfinite(losses["loss_cls"]) and losses["loss_cls"] > 0


def test_describe_names_preset_losses_and_the_factors_of_layers() -> None:
    text = DETRLoss.preset("rtdetr", num_classes=3, aux_weight=0.5).describe()
    for part in (
        "preset: rtdetr",
        "loss_cls = 1 × MatchedVarifocalLoss",
        "loss_box = 5 × L1Loss",
        "2 × GIoULoss",
        "aux 0.5, enc 1",
    ):
        assert part in text


@pytest.mark.parametrize("target_format", ["xyxy_pixel", "cxcywh_normalized"])
def test_explain_shows_pixels(target_format: str) -> None:
    criterion = DETRLoss(3, target_format=target_format)
    targets = TARGETS
    if target_format != "xyxy_pixel":
        targets = [{**t, "boxes": torch.tensor([[0.25, 0.25, 0.5, 0.5]])} for t in TARGETS]
    explained = criterion.explain(*LAYER, targets, image_sizes=SIZE)
    assert [report.box for report in explained.objects] == [(0, 0, 32, 32)] * 2
    assert [report.positives for report in explained.objects] == [1, 1] and explained.objects[0].quality is not None
    torch.testing.assert_close(torch.stack(explained.locations), LAYER[1][..., :2].detach() * 64)


def test_explain_says_why_an_object_got_no_query() -> None:
    logits, boxes = random_layer(1, 2, 4)
    many = [{"boxes": torch.tensor([[0.0, 0, 32, 32]] * 3), "labels": torch.tensor([0, 1, 2])}]
    reasons = [r.reason for r in DETRLoss(3).explain(logits, boxes, many, image_sizes=SIZE).objects if not r.positives]
    assert reasons == ["every candidate went to another object"]
    broken = DETRLoss(3).explain(logits * float("nan"), boxes, many, image_sizes=SIZE)
    assert set(broken.reasons) == {"no query with finite predictions"}
