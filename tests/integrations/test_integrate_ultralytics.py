"""ultralytics' models with our criteria: the contract of their loss, and a run of their own trainer."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("ultralytics.nn.tasks")

from compat.test_patch_ultralytics import CLASSES, RTDETR, batch, model_of

import detloss
from detloss.integrations.ultralytics import with_criterion, without_criterion
from detloss.integrations.ultralytics_losses import YOLOCriterion, objects_by_image

TINY = {
    "nc": CLASSES,
    "backbone": [[-1, 1, "Conv", [8, 3, 4]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[[1, 2], 1, "Detect", ["nc"]]],
}  # fmt: skip
SIDE = 64


def headed(kind: str, *arguments: Any) -> dict[str, Any]:
    """The small model with another head."""
    return {**copy.deepcopy(TINY), "head": [[[1, 2], 1, kind, ["nc", *arguments]]]}


def yolo() -> Any:
    return model_of(copy.deepcopy(TINY))


def rtdetr() -> Any:
    return model_of(copy.deepcopy(RTDETR), "RTDETRDetectionModel")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_their_settings_give_their_losses(index: int) -> None:
    model = yolo()
    data = batch(index, SIDE)
    want, items = model.loss(data)
    got, found = with_criterion(model).loss(data)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert list(found) == list(items) == list(model.criterion.loss_names)
    for name, value in items.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert not any(value.requires_grad for value in found.values())
    assert isinstance(model.criterion.last_losses, detloss.LossDict)


@pytest.mark.parametrize("index", [0, 2])
def test_their_settings_give_their_losses_of_rtdetr(index: int) -> None:
    model, data = rtdetr(), batch(index, SIDE)
    torch.manual_seed(0)
    want, items = model.loss(data)
    with_criterion(model)
    torch.manual_seed(0)
    got, found = model.loss(data)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert list(found) == list(items)
    with_criterion(model, loss_cls="FocalLoss", loss_iou="CIoULoss")
    torch.manual_seed(0)
    other, _ = model.loss(data)
    assert torch.isfinite(other) and not torch.equal(other, want)


@pytest.mark.parametrize("times_batch", [False, True])
def test_losses_are_those_of_the_criterion_on_the_outputs_of_the_head(times_batch: bool) -> None:
    criterion = detloss.YOLOv8Loss(
        CLASSES, strides=(8, 16), loss_box="SIoULoss", loss_cls="VarifocalLoss", times_batch=times_batch
    )
    model, data = yolo(), batch(0, SIDE)
    with_criterion(model, criterion)
    loss, items = model.loss(data)
    preds = model(data["img"])
    targets = []
    for image in range(3):
        own = data["batch_idx"] == image
        centre, size = (data["bboxes"][own] * SIDE).split(2, 1)
        boxes = torch.cat((centre - size / 2, centre + size / 2), 1)
        targets.append({"boxes": boxes, "labels": data["cls"][own].long().flatten()})
    expected = criterion(*criterion.split_outputs(preds), targets)
    own = torch.stack([expected["loss_box"], expected["loss_cls"], expected["loss_dfl"]])
    torch.testing.assert_close(loss, own if times_batch else 3 * own, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(items["box_loss"], expected["loss_box"].detach() / (3 if times_batch else 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("term", "choice"),
    [
        ("loss_box", "SIoULoss"),
        ("loss_box", "NWDLoss"),
        ("loss_cls", "VarifocalLoss"),
        ("loss_cls", "FocalLoss"),
        ("assigner", "simota"),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_has_a_gradient(term: str, choice: str, empty: bool) -> None:
    model, data = with_criterion(yolo(), **{term: choice}), batch(0, SIDE)
    if empty:
        data |= {key: data[key][:0] for key in ("batch_idx", "cls", "bboxes")}
    loss, _ = model.loss(data)
    loss.sum().backward()
    assert loss.shape == (3,)
    own = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    assert [key for key, p in own if p.grad is None or not torch.isfinite(p.grad).all()] == []
    branches = {branch: sum(p.grad.abs().sum() for key, p in own if branch in key) for branch in ("cv2", "cv3")}
    assert all(value > 0 for branch, value in branches.items() if branch == "cv3" or not empty)


def test_training_lowers_the_loss() -> None:
    model, data = with_criterion(yolo(), loss_box="EIoULoss"), batch(3, SIDE)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = model.loss(data)[0].sum()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.9 * history[0]


def test_autocast() -> None:
    model, data = with_criterion(yolo(), loss_box="SIoULoss").train(), batch(0, SIDE)
    plain, _ = model.loss(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.loss(data)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0.1, atol=0)


def test_copies_pickles_and_the_way_back() -> None:
    model, data = with_criterion(yolo(), loss_box="SIoULoss"), batch(0, SIDE)
    keys = list(model.state_dict())
    want = model.loss(data)[0].detach()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.criterion is not model.criterion
        torch.testing.assert_close(other.loss(data)[0].detach(), want)
    without_criterion(model)
    assert list(model.state_dict()) == keys == list(yolo().state_dict())
    model.loss(data)
    assert type(model.criterion).__name__ == "v8DetectionLoss"
    other = without_criterion(with_criterion(rtdetr()))
    other.loss(data)
    assert type(other.criterion).__name__ == "RTDETRDetectionLoss"


def test_the_gains_are_those_of_the_run() -> None:
    model = yolo()
    model.args = SimpleNamespace(box=3.0, cls=1.0, dfl=0.5)
    assert with_criterion(model).criterion.criterion.weights == {"loss_cls": 1.0, "loss_box": 3.0, "loss_dfl": 0.5}
    assert with_criterion(model, box_weight=2.0).criterion.criterion.weights["loss_box"] == 2.0


def test_objects_of_images_in_any_order() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.25, 0.5, 0.5, 0.5]])
    data = {"batch_idx": torch.tensor([2.0, 0.0]), "cls": torch.tensor([[1.0], [4.0]]), "bboxes": boxes}
    found = objects_by_image(data, 3, (100, 200), torch.device("cpu"))
    assert [t["labels"].tolist() for t in found] == [[4], [], [1]]
    assert found[0]["boxes"].tolist() == [[0.0, 25.0, 100.0, 75.0]] and found[2]["boxes"].tolist() == [[50.0, 0.0, 150.0, 100.0]]
    with pytest.raises(ValueError, match="below the number of images, 2; got 2"):
        objects_by_image(data, 2, (100, 200), torch.device("cpu"))


def data_set(folder: Path) -> str:
    """Eight images with one coloured square each, two of them for validation too, and their description."""
    image = pytest.importorskip("PIL.Image")
    for index in range(8):
        x, y = 8 * (index % 4), 4 * index
        picture = image.new("RGB", (SIDE, SIDE), (114, 114, 114))
        picture.paste((255, 0, 0) if index % 2 else (0, 255, 0), (x, y, x + 24, y + 24))
        for split in ("train", "val")[: 2 if index < 2 else 1]:
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
            picture.save(folder / "images" / split / f"{index}.png")
            line = f"{index % 2} {(x + 12) / SIDE} {(y + 12) / SIDE} {24 / SIDE} {24 / SIDE}\n"
            (folder / "labels" / split / f"{index}.txt").write_text(line)
    described = folder / "data.yaml"
    described.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: green, 1: red}}\n")
    return str(described)


def test_their_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of ``YOLO.train``: its model, made for the two classes of the data, and the average of its weights learn from
    our criterion, its log has its columns, and its checkpoint knows nothing of us."""
    ultralytics = pytest.importorskip("ultralytics")
    yaml = pytest.importorskip("yaml")
    monkeypatch.setattr("ultralytics.utils.checks.check_pip_update_available", lambda: False)
    (tmp_path / "yolov8-tiny.yaml").write_text(yaml.safe_dump(TINY))
    model = ultralytics.YOLO(str(tmp_path / "yolov8-tiny.yaml"), task="detect")
    assert with_criterion(model, loss_box="SIoULoss") is model
    seen: list[tuple[Any, Any]] = []
    model.add_callback("on_train_epoch_end", lambda t: seen.append((t.model.criterion, t.ema.ema.criterion)))
    model.train(
        data=data_set(tmp_path), epochs=1, imgsz=SIDE, batch=4, workers=0, plots=False, amp=False, device="cpu",
        project=str(tmp_path / "runs"), name="run", verbose=False, mosaic=0.0, erasing=0.0,
    )  # fmt: skip
    ((own, average),) = seen
    assert isinstance(own, YOLOCriterion) and isinstance(average, YOLOCriterion) and own is not average
    assert own.criterion.num_classes == 2 and type(own.criterion.loss_box).__name__ == "SIoULoss"
    assert own.last_losses is not None
    header, row = (tmp_path / "runs" / "run" / "results.csv").read_text().splitlines()
    columns = dict(zip(header.split(","), row.split(","), strict=True))
    for split in ("train", "val"):
        assert all(float(columns[f"{split}/{name}"]) >= 0 for name in ("box_loss", "cls_loss", "dfl_loss"))
    assert float(columns["val/cls_loss"]) > 0 and average.last_losses is not None
    assert b"detloss" not in (tmp_path / "runs" / "run" / "weights" / "best.pt").read_bytes()
    pickle.loads(pickle.dumps(model.callbacks["on_pretrain_routine_end"]))  # as for the processes of several GPUs
    without_criterion(model)
    assert not any("detloss" in type(one).__module__ for one in model.callbacks["on_pretrain_routine_end"])


@pytest.mark.parametrize(
    ("model", "criterion", "options", "error", "words"),
    [
        (lambda: nn.Linear(1, 1), None, {}, TypeError, "expected a DetectionModel or RTDETRDetectionModel; got Linear"),
        (lambda: 3, None, {}, TypeError, "YOLO or RTDETR, or a DetectionModel; got int"),
        (lambda: model_of(headed("Segment", 32, 16), "SegmentationModel"), None, {}, TypeError, "got SegmentationModel"),
        (lambda: model_of(headed("v10Detect")), None, {}, ValueError, "expected one head.*got an end-to-end model"),
        (yolo, "DETRLoss", {}, ValueError, "fit YOLOv8Loss; got 'DETRLoss'"),
        (yolo, detloss.YOLOv8Loss(3, strides=(8, 16)), {}, ValueError, f"num_classes={CLASSES}; got 3"),
        (yolo, detloss.YOLOv8Loss(CLASSES), {}, ValueError, r"strides=\(8, 16\); got \(8, 16, 32\)"),
        (yolo, None, {"loss_bbox": "siou"}, TypeError, "unknown option 'loss_bbox'"),
        (rtdetr, detloss.DETRLoss(CLASSES), {}, ValueError, "target_format='cxcywh_normalized'; got 'xyxy_pixel'"),
    ],
)
def test_what_does_not_fit_is_an_error(model: Any, criterion: Any, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        with_criterion(model(), criterion, **options)


def test_weights_of_classes_by_frequency_are_told_apart() -> None:
    model = yolo()
    model.class_weights = torch.ones(CLASSES)
    with pytest.raises(ValueError, match="options of loss_cls here"):
        with_criterion(model)
