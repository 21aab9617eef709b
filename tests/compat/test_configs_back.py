"""The way back: every criterion as a configuration, and ultralytics' arguments."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from criteria_all import CASES
from criteria_cases import Case

import detloss
from detloss.assigners.samplers import BalancedSampler
from detloss.compat.configs import criterion_config, from_ultralytics
from detloss.compat.mmdet.models import losses as L
from detloss.criteria.roi_head import RoIHeadLoss
from detloss.criteria.yolov8 import YOLOv8Loss

PRESETS = [(name, preset) for name in detloss.CRITERIA for preset in detloss.CRITERIA.get(name).PRESETS]
YOLO_ARGS = dict(task="detect", model="yolov8n.yaml", box=5.0, cls=0.7, dfl=2.0, pose=12.0, kobj=1.0, lr0=0.01, nbs=64, batch=16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_round_trip_of_every_criterion(case: Case) -> None:
    first = next(iter(case.make().term_names))
    criterion = case.make(normalizer="local", weights={first: 0.7})
    config = criterion_config(criterion)
    again = detloss.build(config)
    assert criterion_config(again) == config and repr(again.assigner) == repr(criterion.assigner)
    words = [[line for line in made.describe().splitlines() if "preset" not in line] for made in (criterion, again)]
    assert words[0] == words[1]
    torch.manual_seed(0)
    predictions, targets = case.predict(2, torch.float32), case.targets([3, 1])
    results = []
    for made in (criterion, again):
        torch.manual_seed(1)
        results.append(case.call(made, predictions, targets))
    assert {k: v.item() for k, v in results[0].items()} == {k: v.item() for k, v in results[1].items()}


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_round_trip_of_every_preset(name: str, preset: str) -> None:
    criterion = detloss.CRITERIA.get(name).preset(preset, **({} if name == "RPNLoss" else {"num_classes": 5}))
    config = criterion_config(criterion)
    assert criterion_config(detloss.build(config)) == config
    assert json.loads(json.dumps(config)).keys() == config.keys()


def test_a_moving_average_and_a_sampler_are_kept() -> None:
    criterion = RoIHeadLoss(3, normalizer={"mode": "ema", "momentum": 0.5, "initial": 40.0}, sampler=BalancedSampler(16, 0.5))
    config = criterion_config(criterion)
    assert config["normalizer"] == {"mode": "ema", "momentum": 0.5, "initial": 40.0}
    assert detloss.build(config).sampler is criterion.sampler


def test_losses_of_the_compatible_kind_become_their_equals() -> None:
    criterion = detloss.FCOSLoss(3, loss_cls=L.FocalLoss(gamma=1.0), loss_box=L.CIoULoss(loss_weight=2.0))
    config = criterion_config(criterion)
    assert config["loss_cls"] == {"type": "FocalLoss", "use_sigmoid": True, "gamma": 1.0, "alpha": 0.25, "activated": False,
                                  "loss_weight": 1.0, "reduction": "mean"}  # fmt: skip
    assert detloss.build(config).loss_box.alpha_threshold == 0.5


def test_what_no_configuration_can_name() -> None:
    class Mine(detloss.FCOSLoss):
        """Not registered."""

    with pytest.raises(TypeError, match="Mine is not registered in CRITERIA"):
        criterion_config(Mine(3))
    with pytest.raises(TypeError, match="Linear is not registered in LOSSES"):
        criterion_config(detloss.FCOSLoss(3, loss_box=torch.nn.Linear(1, 1)))
    assert criterion_config(detloss.GIoULoss(eps=1e-5))["eps"] == 1e-5


def test_gains_of_ultralytics_are_the_weights() -> None:
    found = from_ultralytics(YOLO_ARGS, num_classes=3, strict=True, strides=(8, 16))
    assert found.used == ("box", "cls", "dfl", "task")
    assert {"pose", "kobj", "lr0", "model", "nbs"} <= set(found.ignored)
    theirs = YOLOv8Loss.preset("ultralytics", num_classes=3, strides=(8, 16), box_weight=5.0, cls_weight=0.7, dfl_weight=2.0)
    maps = [torch.randn(2, 3, s, s) for s in (8, 4)], [torch.randn(2, 64, s, s) for s in (8, 4)]
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 30.0]]), "labels": torch.tensor([1])}] * 2
    ours, expected = found.criterion(*maps, targets), theirs(*maps, targets)
    assert {k: v.item() for k, v in ours.items()} == {k: v.item() for k, v in expected.items()}
    assert ours["loss_box"] > 0


def test_arguments_of_ultralytics_say_classes_and_bins(tmp_path: Path) -> None:
    assert from_ultralytics(dict(nc=7, reg_max=8)).criterion.reg_max == 8
    assert from_ultralytics(dict(names={0: "a", 1: "b"})).criterion.num_classes == 2
    path = tmp_path / "args.json"
    path.write_text(json.dumps({**YOLO_ARGS, "nc": 4}))
    assert from_ultralytics(path).criterion.num_classes == 4
    assert from_ultralytics(SimpleNamespace(box=5.0), num_classes=2).criterion.weights["loss_box"] == 5  # as model.args
    assert from_ultralytics(dict(nc=4, bxo=7.5)).unknown == ("bxo",)
    with pytest.raises(ValueError, match="Did you mean 'box'"):
        from_ultralytics(dict(nc=4, bxo=7.5), strict=True)
    assert from_ultralytics(dict(nc=4, cls_pw=0.5)).unknown == ("cls_pw",)
    assert from_ultralytics(dict(nc=4, names=["a"]), num_classes=2, strict=True).criterion.num_classes == 2
    assert from_ultralytics(dict(nc=4, end2end=True)).unknown == ("end2end",)
    assert from_ultralytics(dict(nc=4, single_cls=True)).criterion.num_classes == 1
    with pytest.raises(ValueError, match="give num_classes"):
        from_ultralytics(dict(box=7.5))
    with pytest.raises(ValueError, match="task 'detect'; got 'pose'"):
        from_ultralytics(dict(task="pose", nc=1))


def test_arguments_of_the_installed_ultralytics_are_all_known() -> None:
    yaml = pytest.importorskip("yaml")
    package = pytest.importorskip("ultralytics")
    text = (Path(package.__file__).parent / "cfg" / "default.yaml").read_text(encoding="utf-8")
    found = from_ultralytics(yaml.safe_load(text), num_classes=3)
    assert found.unknown == () and set(found.used) >= {"box", "cls", "dfl", "task"}
