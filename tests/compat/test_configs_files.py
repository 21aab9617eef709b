"""Configuration files are read, never executed: inheritance, what is allowed, and errors with file and line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from compat import mmdet_configs as C

import detloss
from detloss.compat.configs import ConfigFileError, criterion_config, from_mmdet, load_config
from detloss.compat.configs.python_files import evaluate

BASE = '''"""Model."""
num_classes = 3
model = dict(
    type="RetinaNet",
    backbone=dict(type="ResNet", depth=50),
    bbox_head=dict(
        type="RetinaHead",
        num_classes=num_classes,
        anchor_generator=dict(
            type="AnchorGenerator", octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
            strides=[8, 8 * 2, 2 ** 5]),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=1 / 4, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type="PseudoSampler"), allowed_border=-1, pos_weight=-1, debug=False))
'''
CHILD = """_base_ = ["./base/retina.py", "base/schedule.json"]
model = dict(bbox_head=dict(loss_cls=dict(gamma=1.5), loss_bbox=dict(_delete_=True, type="GIoULoss", loss_weight=2.0)))
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "retina.py").write_text(BASE)
    (tmp_path / "base" / "schedule.json").write_text(json.dumps({"max_epochs": 12}))
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    return child


def test_inheritance_merges_dicts_and_delete_replaces_them(files: Path) -> None:
    config = load_config(files)
    assert config["max_epochs"] == 12 and config["num_classes"] == 3
    head = config["model"]["bbox_head"]
    assert head["loss_cls"] == dict(type="FocalLoss", use_sigmoid=True, gamma=1.5, alpha=0.25, loss_weight=1.0)
    assert head["loss_bbox"] == dict(type="GIoULoss", loss_weight=2.0)
    assert head["anchor_generator"]["strides"] == [8, 16, 32]
    found = from_mmdet(files, strict=True)
    assert found.criterion.loss_cls.gamma == 1.5 and type(found.criterion.loss_box).__name__ == "GIoULoss"
    assert {"max_epochs", "num_classes", "model.backbone"} <= set(found.ignored)


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    config = {"model": {"type": "RetinaNet", "bbox_head": C.RETINA, "train_cfg": C.RETINA_TRAIN}}
    yaml = pytest.importorskip("yaml")
    texts = {"a.py": f"model = {config['model']!r}", "a.json": json.dumps(config), "a.yaml": yaml.safe_dump(config)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert load_config(tmp_path / name) == config
    (tmp_path / "b.yaml").write_text("_base_: a.json\nmodel:\n  bbox_head:\n    num_classes: 7\n")
    assert from_mmdet(str(tmp_path / "b.yaml")).criterion.num_classes == 7


def test_what_python_files_may_say() -> None:
    text = (
        "a, b = 1, [2.5, -3]\nlast: int = 3\nINF = float('inf')\npair = (b, None, True, not False)\n"
        "d = dict(x=a, **dict(y=b))\ne = {**d, 'z': {'k': 7 // 2 + 7 % 4}}\nkeys = list(d)\nt = tuple(b)\n__hidden = 1\n"
    )
    assert evaluate(text, "f.py") == {
        "a": 1, "b": [2.5, -3], "last": 3, "INF": float("inf"), "pair": ([2.5, -3], None, True, True),
        "d": {"x": 1, "y": [2.5, -3]}, "e": {"x": 1, "y": [2.5, -3], "z": {"k": 6}}, "keys": ["x", "y"], "t": (2.5, -3),
    }  # fmt: skip


def test_what_the_data_sections_of_mmdet_say_is_read(tmp_path: Path) -> None:
    text = (
        "root = 'data/coco/'\nfile = root + 'annotations/a.json'\nsteps = [1] * 2 + [*(3, 4)]\nhead = dict(strides=[8, 16])\n"
        "stride, again = head['strides'][-1], head.strides\nname = f'{root}{stride}'\nempty = [0] * -1\n"
    )
    found = evaluate(text, "f.py")
    assert (found["file"], found["steps"]) == ("data/coco/annotations/a.json", [1, 1, 3, 4])
    assert (found["stride"], found["again"], found["name"], found["empty"]) == (16, [8, 16], "data/coco/16", [])


DATA_SET = """# what the files of most detectors inherit besides a model
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
backend_args = None
train_pipeline = [dict(type='LoadImageFromFile', backend_args=backend_args), dict(type='PackDetInputs')]
train_dataloader = dict(
    batch_size=2, dataset=dict(type=dataset_type, data_root=data_root, ann_file='train.json', pipeline=train_pipeline))
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/val.json', metric=['bbox', 'segm'])
"""


@pytest.mark.parametrize(("kind", "config"), [
    ("FCOSLoss", {"type": "FCOS", "bbox_head": C.FCOS}),
    ("ATSSLoss", {"type": "ATSS", "bbox_head": C.ATSS, "train_cfg": C.ATSS_TRAIN}),
    ("GFLLoss", {"type": "GFL", "bbox_head": C.GFL, "train_cfg": C.ATSS_TRAIN}),
    ("YOLOXLoss", {"type": "YOLOX", "bbox_head": C.YOLOX, "train_cfg": {"assigner": {"type": "SimOTAAssigner"}}}),
])  # fmt: skip
def test_a_model_beside_a_data_set(tmp_path: Path, kind: str, config: dict[str, object]) -> None:
    (tmp_path / "model.py").write_text(f"model = {config!r}\n")
    (tmp_path / "data.py").write_text(DATA_SET)
    mine = "_base_ = ['model.py', 'data.py']\nmodel = dict(_scope_='mmdet', bbox_head=dict(num_classes=7))\ndata_root = 'mine/'\n"
    (tmp_path / "mine.py").write_text(mine + "train_dataloader = dict(dataset=dict(data_root=data_root))\n")
    found = from_mmdet(tmp_path / "mine.py", strict=True)
    assert type(found.criterion).__name__ == kind and found.criterion.num_classes == 7
    assert {"train_dataloader", "val_evaluator", "model._scope_"} <= set(found.ignored)
    again = detloss.build(found.to_config())
    assert type(again) is type(found.criterion) and criterion_config(again) == found.to_config()


def test_a_file_reads_what_it_inherits(files: Path) -> None:
    config = load_config(files)
    own = files.parent / "own.py"
    own.write_text(
        "_base_ = ['./child.py']\nhead = _base_.model.bbox_head\nepochs = {{_base_.max_epochs}} * 2\n"
        "model = dict(neck=dict(anchors=_base_['model']['bbox_head']['anchor_generator']))\n"
    )
    found = load_config(own)
    assert (found["head"], found["epochs"]) == (config["model"]["bbox_head"], 24)
    assert found["model"]["neck"]["anchors"] == config["model"]["bbox_head"]["anchor_generator"]
    assert load_config(files) == config and "_base_" not in found
    assert from_mmdet(own, strict=True).criterion.loss_cls.gamma == 1.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import os", "name = value"),
        ("from mmengine.config import read_base", "name = value"),
        ("x = open('/etc/passwd').read()", "a literal, dict"),
        ("x = __import__('os').system('true')", "a literal, dict"),
        ("x = [i for i in range(3)]", "a literal, dict"),
        ("x = (lambda: 1)()", "a literal, dict"),
        ("x = f'{1:03d}'", "without formats"),
        ("x = f'{ok!r}'", "without formats"),
        ("x = f'{[1]}'", "of strings and numbers"),
        ("x = 1 if True else 2", "a literal, dict"),
        ("x = {'a': 1}['b']", "no entry 'b'"),
        ("x = {'a': 1}[[]]", "no entry"),
        ("x = [1][1]", "no entry 1"),
        ("x = [1].append", "no entry 'append'"),
        ("x = ok.real", "no entry 'real'"),
        ("x = dict(a=1).items()", "a literal, dict"),
        ("x = model.bbox_head", "a name assigned before"),
        ("x = [*ok]", "a list after"),
        ("x = dict([('a', 1)])", "a literal, dict"),
        ("x = undefined", "a name assigned before"),
        ("x = [0] * 1000000000", "up to 100000 elements"),
        ("x = 'a' * 100000 + 'b'", "up to 100000 elements"),
        ("x = 'a' + 1", "joined with their like"),
        ("x = [1] + (2,)", "joined with their like"),
        ("x = 'a' % 1", "joined with their like"),
        ("x = {} + {}", "numbers only"),
        ("x = 9 ** 9 ** 9", "powers go up to"),
        ("x = 1 / 0", "cannot be computed"),
        ("x = float('one')", "expected a number"),
        ("x['a'] = 1", "a name to assign to"),
        ("x += 1", "name = value"),
        ("if True:\n    x = 1", "name = value"),
        ("del x", "name = value"),
        ("x = dict(**[1])", "a dict after"),
        ("x = (", "not valid Python"),
    ],
)  # fmt: skip
def test_everything_else_is_an_error_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(f"ok = 1\n\n{line}\n")
    with pytest.raises(ConfigFileError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:3:")


def test_nothing_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "evil.py"
    path.write_text(f"x = open({str(tmp_path / 'made')!r}, 'w')\n")
    with pytest.raises(ConfigFileError):
        load_config(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_base_ = 'self.py'", "inherits itself"),
        ("_base_ = 'nowhere.py'", "no such file"),
        ("_base_ = 'mmdet::retinanet/retinanet.py'", "in a package"),
        ("_base_ = 3", "a path or a list of paths"),
        ("_base_ = ['one.py', 'two.py']", "two files of _base_ assign x"),
        ("_base_ = 'one.py'\nx = dict(a=1)", "x is a dict here and int in _base_"),
    ],
)
def test_inheritance_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text("x = 1")
    (tmp_path / "self.py").write_text(text)
    with pytest.raises(ConfigFileError, match=message):
        load_config(tmp_path / "self.py")


def test_delete_replaces_a_value_that_is_no_dict(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1")
    (tmp_path / "two.py").write_text("_base_ = 'one.py'\nx = dict(_delete_=True, a=dict(_delete_=True, b=2))")
    assert load_config(tmp_path / "two.py") == {"x": {"a": {"b": 2}}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{\n'x': 1}", ":2: not valid JSON"),
        ("a.json", "[1]", "expected a mapping"),
        ("a.yaml", "x: [1\ny: 2", "not valid YAML"),
        ("a.yaml", "x: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a.toml", "x = 1", "ends in .py, .json"),
        ("a.py", "\x00", "a.py:1: not valid Python"),
        ("a.py", "x = " + "[" * 500 + "]" * 500, "a.py:1:"),
    ],
)
def test_files_that_are_not_valid(tmp_path: Path, name: str, text: str, message: str) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigFileError, match=message):
        load_config(path)


def test_yaml_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "a.yaml"
    path.write_text("x: 1")
    with pytest.raises(ImportError, match="need PyYAML"):
        load_config(path)
