"""The losses page of visdet with only the import line changed: configurations, listing, and the families it describes."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from seeds.test_seed_001_configs import CONFIGS, DEFAULTS

from detloss.compat.configs import from_mmdet
from detloss.compat.visdet.registry import MODELS, build_loss

FOCAL = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)
CENTERNESS = dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0)
FAMILIES = {
    "RetinaHead": dict(loss_cls=FOCAL, loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0)),
    "FCOSHead": dict(loss_cls=FOCAL, loss_bbox=dict(type="IoULoss", mode="log", loss_weight=1.0), loss_centerness=CENTERNESS),
    "ATSSHead": dict(loss_cls=FOCAL, loss_bbox=dict(type="GIoULoss", loss_weight=2.0), loss_centerness=CENTERNESS),
    "GFLHead": dict(
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
    ),
}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_configuration_builds(config: dict) -> None:
    loss = build_loss(config)
    assert type(loss).__name__ == config["type"]
    assert {name: getattr(loss, name) for name in config if name != "type"} == {k: v for k, v in config.items() if k != "type"}


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_the_page(name: str) -> None:
    loss = build_loss(dict(type=name))
    assert {key: getattr(loss, key) for key in DEFAULTS[name]} == DEFAULTS[name]


def test_listing_available_losses() -> None:
    from detloss.compat.visdet.registry import MODELS

    # Filter for loss modules
    losses = [name for name in sorted(MODELS.module_dict.keys()) if "Loss" in name]
    assert set(DEFAULTS) <= set(losses)


@pytest.mark.parametrize("name", DEFAULTS)
def test_forward_takes_the_documented_arguments_by_place(name: str) -> None:
    assert list(inspect.signature(MODELS.get(name).forward).parameters)[3:6] == ["weight", "avg_factor", "reduction_override"]


def test_values_by_hand() -> None:
    third = math.log(3)  # a logit of ln 3 is the probability 3/4

    def loss(name: str, pred: list, target: object, **config: object) -> list:
        made = build_loss(dict(type=name, **config))
        return made(torch.tensor(pred), target, reduction_override="none").reshape(-1).tolist()

    assert loss("CrossEntropyLoss", [[third, 0.0]], torch.tensor([0])) == pytest.approx([-math.log(3 / 4)])
    focal = loss("FocalLoss", [[0.0, 0.0]], torch.tensor([0]))
    assert focal == pytest.approx([0.25 * math.log(2) / 4, 0.75 * math.log(2) / 4])
    qfl = loss("QualityFocalLoss", [[third, 0.0]], (torch.tensor([0]), torch.tensor([0.5])))
    assert qfl == pytest.approx([-(0.5 * math.log(3 / 4) + 0.5 * math.log(1 / 4)) / 16 + math.log(2) / 4])
    assert loss("SmoothL1Loss", [[0.5, 3.0]], torch.zeros(1, 2), beta=2.0) == [0.0625, 2.0]
    box, other = [[0.0, 0.0, 2.0, 2.0]], torch.tensor([[1.0, 0.0, 3.0, 2.0]])
    assert loss("IoULoss", box, other) == pytest.approx([math.log(3)])
    assert loss("GIoULoss", box, other) == pytest.approx([2 / 3])
    dfl = loss("DistributionFocalLoss", [[0.0, third, 0.0]], torch.tensor([1.25]))
    assert dfl == pytest.approx([-0.75 * math.log(3 / 5) - 0.25 * math.log(1 / 5)])


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_families_make_criteria(kind: str) -> None:
    found = from_mmdet(dict(type=kind, num_classes=3, **FAMILIES[kind]), strict=True)
    assert found.unknown == () and found.criterion.num_classes == 3
    for name, config in FAMILIES[kind].items():
        assert type(getattr(found.criterion, name.replace("bbox", "box"))).__name__ == config["type"]
