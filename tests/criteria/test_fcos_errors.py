"""Every mistake in a call or an option of FCOSLoss is named: expected, got, where."""

from __future__ import annotations

import pytest
import torch
from fcos_cases import STRIDES, Maps, random_maps

import detloss
from detloss import FCOSLoss

GOOD = [{"boxes": torch.tensor([[0, 0, 32, 32]]), "labels": torch.tensor([label])} for label in (0, 2)]


def without(index: int, level: int, change) -> Maps:  # type: ignore[no-untyped-def]
    maps = random_maps(2)
    maps[index][level] = change(maps[index][level])
    return maps


BAD_CALLS = {
    "no levels": (lambda: (([], [], []), GOOD), ValueError, r"expected 1 to 3 levels, one per stride \(8, 16, 32\); got 0"),
    "too many levels": (lambda: (tuple(x * 2 for x in random_maps(2)), GOOD), ValueError, "expected 1 to 3 levels.*got 6"),
    "levels missing": (
        lambda: ((*random_maps(2)[:2], random_maps(2)[2][:1]), GOOD),
        ValueError,
        "centernesses must have 3.*got 1",
    ),
    "a bare tensor": (
        lambda: ((random_maps(2)[0][0], *random_maps(2)[1:]), GOOD),
        TypeError,
        "cls_scores must be a list.*got Tensor",
    ),
    "None": (lambda: ((random_maps(2)[0], None, None), GOOD), TypeError, "bbox_preds must be a list.*got NoneType"),
    "classes": (
        lambda: (random_maps(2, 4), GOOD),
        ValueError,
        r"cls_scores\[0\] must have shape.*\[2, 3, 8, 8\]; got \[2, 4, 8, 8\]",
    ),
    "channels": (
        lambda: (without(1, 2, lambda x: x[:, :3]), GOOD),
        ValueError,
        r"bbox_preds\[2\] must have.*\[2, 4, 2, 2\]; got \[2, 3, 2, 2\]",
    ),
    "grid": (
        lambda: (without(2, 1, lambda x: x[..., :1]), GOOD),
        ValueError,
        r"centernesses\[1\].*\[2, 1, 4, 4\]; got \[2, 1, 4, 1\]",
    ),
    "no channel": (lambda: (without(2, 0, lambda x: x[:, 0]), GOOD), ValueError, r"centernesses\[0\] must have.*got \[2, 8, 8\]"),
    "images": (lambda: (without(0, 1, lambda x: x[:1]), GOOD), ValueError, r"cls_scores\[1\] must have.*got \[1, 3, 4, 4\]"),
    "integers": (
        lambda: (without(1, 0, lambda x: x.long()), GOOD),
        TypeError,
        r"bbox_preds\[0\].*floating-point dtype; got torch.int64",
    ),
    "not a tensor": (
        lambda: (without(0, 0, lambda x: x.tolist()), GOOD),
        TypeError,
        r"cls_scores\[0\] must be a torch.Tensor; got list",
    ),
    "targets missing": (lambda: (random_maps(2), GOOD[:1]), ValueError, "expected one target per image, 2 of them; got 1"),
    "targets None": (lambda: (random_maps(2), None), TypeError, "targets must be a list of dicts, one per image; got NoneType"),
    "one dict": (lambda: (random_maps(2), GOOD[0]), TypeError, "targets must be a list of dicts, one per image; got dict"),
    "label": (
        lambda: (random_maps(2), [GOOD[0], {"boxes": torch.tensor([[0, 0, 9, 9]]), "labels": torch.tensor([3])}]),
        ValueError,
        r"targets\[1\]\['labels'\]\[0\] must be in 0…2 \(num_classes=3\); got 3",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_says_expected_got_and_where(case: str) -> None:
    make, error, message = BAD_CALLS[case]
    maps, targets = make()
    with pytest.raises(error, match=message):
        FCOSLoss(3, strides=STRIDES)(*maps, targets)


BAD_OPTIONS = [
    ({"num_classes": 0}, ValueError, "num_classes must be an integer >= 1; got 0"),
    ({"num_classes": 2.0}, ValueError, "num_classes must be an integer >= 1; got 2.0"),
    ({"strides": ()}, ValueError, r"strides must be a sequence with one number per level; got \(\)"),
    ({"strides": 8}, ValueError, "strides must be a sequence with one number per level; got 8"),
    ({"strides": (8, 0)}, ValueError, "strides must be a finite number > 0; got 0"),
    ({"regress_ranges": ((-1, 64),)}, ValueError, "one regress range per stride; got 1 ranges and 5 strides"),
    ({"strides": (8,), "regress_ranges": ((9, 8),)}, ValueError, r"lo < hi per level; got \(9, 8\)"),
    (
        {"distance_unit": "pixels"},
        ValueError,
        "distance_unit must be one of 'pixel', 'stride'; got 'pixels'. Did you mean 'pixel'",
    ),
    ({"normalizer": "global"}, ValueError, "normalizer must be one of 'sync', 'local', 'ema'; got 'global'"),
    ({"center_sampling_radius": -1.5}, ValueError, "center_sampling_radius must be a finite number > 0; got -1.5"),
    ({"weights": {"loss_bbox": 1.0}}, ValueError, "no term 'loss_bbox' to weigh. Did you mean 'loss_box'"),
    ({"weights": {"loss_box": -1.0}}, ValueError, "loss_box must be a finite number >= 0; got -1.0"),
    ({"weights": {"loss_box": float("nan")}}, ValueError, "loss_box must be a finite number >= 0; got nan"),
    ({"weights": [1.0]}, TypeError, "weights must be a dict of term name to number; got list"),
    ({"reg_loss_weight": "2"}, TypeError, "loss_box must be a number; got str"),
    ({"focal_alpha": 2.0}, ValueError, "alpha must"),
    ({"loss_box": "CIUoLoss"}, ValueError, "unknown loss 'CIUoLoss'. Did you mean 'CIoULoss'"),
    ({"loss_box": {"type": "CIoULoss", "epsilon": 1.0}}, TypeError, "CIoULoss: unknown option 'epsilon'. Did you mean 'eps'"),
    ({"loss_box": 7}, TypeError, "expected a configuration"),
    ({"loss_box": {"type": "GIoULoss", "box_format": "cxcywh"}}, ValueError, "box_format must be 'xyxy'; got 'cxcywh'"),
    ({"loss_cls": {"type": "FocalLoss", "reduction": "none"}}, ValueError, "loss_cls must have reduction='mean'; got 'none'"),
    (
        {"loss_centerness": detloss.CenternessLoss(reduction="sum")},
        ValueError,
        "loss_centerness must have reduction='mean'; got 'sum'",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_when_the_criterion_is_made(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FCOSLoss(**{"num_classes": 3, **options})


def test_options_after_the_ranges_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        FCOSLoss(3, 0.25, 2.0, 1.0, 1.0, 1.0, (8,), None, "FocalLoss")
