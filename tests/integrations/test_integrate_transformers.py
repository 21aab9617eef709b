"""transformers' DETR models with our criteria: the contract of their loss, detection, and the log of their Trainer."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from integrations.tiny_transformers import CLASSES, MODELS, batch, build

import detloss
from detloss.integrations.transformers import log_parts, with_criterion, without_criterion
from detloss.integrations.transformers_losses import rest_of

VARIFOCAL = {"type": "MatchedVarifocalLoss"}


def losses_of(model: Any, data: Any) -> Any:
    """The outputs, with the same random denoising queries every time."""
    torch.manual_seed(0)
    return model(**data)


@pytest.mark.parametrize("name", MODELS)
def test_their_settings_give_their_loss_and_the_gradient_reaches_all(name: str) -> None:
    model = build(name).train()
    for module in model.modules():  # the same noise in both calls
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    keys = list(model.state_dict())
    for counts in ((3, 1, 0), (0, 0)):
        without_criterion(model)
        theirs = losses_of(model, batch(counts))
        ours = losses_of(with_criterion(model), batch(counts))
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sum(ours.loss_dict.values()), ours.loss)
        assert len(ours.auxiliary_outputs or ()) == len(theirs.auxiliary_outputs or ())
        model.zero_grad()
        ours.loss.backward()
        idle = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert [key for key in idle if sum(counts) or "denoising" not in key] == []  # without objects nothing is denoised
        assert isinstance(model.loss_function.last_losses, detloss.LossDict)
    assert list(model.state_dict()) == keys


def test_terms_of_all_stages() -> None:
    ends = {key.removeprefix("loss_cls") for key in losses_of(with_criterion(build("RTDetr").train()), batch()).loss_dict}
    assert ends >= {"", "_0", "_enc", "_dn_0", "_dn_1"}


@pytest.mark.parametrize("target_format", ["cxcywh_normalized", "xyxy_pixel"])
def test_losses_are_those_of_the_criterion_on_the_outputs(target_format: Any) -> None:
    criterion = detloss.DETRLoss(CLASSES, loss_cls=VARIFOCAL, loss_iou="CIoULoss", target_format=target_format)
    model, data = with_criterion(build("Detr").eval(), criterion), batch()
    found = model(**data)
    targets = [{"boxes": t["boxes"], "labels": t["class_labels"]} for t in data["labels"]]
    plain = detloss.DETRLoss(CLASSES, loss_cls=VARIFOCAL, loss_iou="CIoULoss", target_format="cxcywh_normalized")
    aux = [(layer["logits"][..., :CLASSES], layer["pred_boxes"]) for layer in found.auxiliary_outputs]
    expected = plain(found.logits[..., :CLASSES], found.pred_boxes, targets, aux)
    assert set(found.loss_dict) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found.loss_dict[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["Detr", "Yolos"])
def test_a_detr_learns_varifocal_scores(name: str) -> None:
    model, data = with_criterion(build(name).train(), loss_cls="MatchedVarifocalLoss"), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**data).loss
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.8 * history[0]


def test_the_image_processor_reads_the_varifocal_scores() -> None:
    """Softmax over the classes and "no object" is σ of the best class, where one class at most is likely."""
    logits = torch.tensor(
        [[2.0, -5.0, -4.0, -6.0], [-3.0, -9.0, -9.0, -2.0], [-20.0, -30.0, -12.0, -18.0], [9.0, -8.0, -8.0, -8.0]]
    )
    softmax = torch.cat((logits, rest_of(logits)), -1).softmax(-1)
    torch.testing.assert_close(softmax[:, :-1].amax(-1), logits.sigmoid().amax(-1), rtol=1e-5, atol=1e-9)
    assert torch.equal(softmax[:, :-1].argmax(-1), logits.argmax(-1))
    extreme = rest_of(torch.tensor([[1e4, 1e4, -1e4, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert torch.isfinite(extreme).all() and (extreme < -10).all()
    transformers = pytest.importorskip("transformers")
    model = with_criterion(build("Detr").eval(), loss_cls="MatchedVarifocalLoss")
    layer = model.class_labels_classifier
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([-8.0, -7.0, 1.5, -9.0, 123.0]))
        outputs = model(batch()["pixel_values"])
    processor = transformers.DetrImageProcessor()
    for found in processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(64, 64)] * 3):
        assert len(found["scores"]) == 9 and bool((found["labels"] == 2).all())
        torch.testing.assert_close(found["scores"], torch.full((9,), 1.5).sigmoid(), rtol=1e-4, atol=0)


def test_autocast() -> None:
    model = with_criterion(build("Yolos").eval(), loss_cls="MatchedVarifocalLoss")
    plain = model(**batch()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch())
    found.loss.backward()
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, plain, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", ["Detr", "RTDetr"])
def test_copies_pickles_files_and_the_way_back(name: str, tmp_path: Path) -> None:
    model, data = build(name).eval(), batch()
    before = model(**data)
    with_criterion(model, loss_cls=VARIFOCAL, loss_box="SmoothL1Loss")
    want = model(**data)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        found = other(**data)
        assert torch.equal(found.loss, want.loss) and torch.equal(found.logits, want.logits)
        assert other.loss_function.criterion is not model.loss_function.criterion
    model.save_pretrained(tmp_path)
    loaded = with_criterion(type(model).from_pretrained(tmp_path).eval(), loss_cls=VARIFOCAL, loss_box="SmoothL1Loss")
    torch.testing.assert_close(loaded(**data).loss, want.loss)
    after = without_criterion(model)(**data)
    assert torch.equal(after.loss, before.loss) and torch.equal(after.logits, before.logits)
    assert without_criterion(model) is model


def test_the_log_has_every_part() -> None:
    """``Trainer.log`` is called with the mean loss of some steps, or with the results of an evaluation."""
    lines: list[dict[str, float]] = []
    model, data = with_criterion(build("Yolos").train()), batch()
    trainer = SimpleNamespace(model=model, log=lambda logs, start_time=None: lines.append(logs))
    assert log_parts(trainer) is trainer
    steps = [model(**batch(counts)) for counts in ((3, 1), (2, 2))]
    with torch.no_grad():
        evaluated = model(**data)
    trainer.log({"loss": 1.0, "learning_rate": 0.1})
    trainer.log({"eval_loss": 2.0}, 0.0)
    trainer.log({"train_runtime": 3.0})
    train, evaluation, last = lines
    mean = sum(float(step.loss_dict["loss_box"].detach()) for step in steps) / 2
    assert train["loss_box"] == pytest.approx(mean, rel=1e-5) and train["learning_rate"] == 0.1
    assert set(train) == {
        "loss", "learning_rate", "total_loss", "loss_cls", "loss_box", "loss_iou", "num_pos", "num_gt", "num_gt_without_pos",
        "mean_iou",
    }  # fmt: skip
    assert evaluation["eval_loss_cls"] == pytest.approx(float(evaluated.loss_dict["loss_cls"]), rel=1e-5)
    assert last == {"train_runtime": 3.0}
    trainer.log({"loss": 1.0})
    assert lines[-1] == {"loss": 1.0}  # nothing was trained since
    with pytest.raises(TypeError, match="log_parts: expected a Trainer whose model has a criterion"):
        log_parts(SimpleNamespace(model=without_criterion(model)))


def test_their_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    transformers = pytest.importorskip("transformers")
    data = batch((3, 1, 2, 0))
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(data["pixel_values"], data["labels"], strict=True)]

    def collate(some: list[dict[str, Any]]) -> dict[str, Any]:
        return {"pixel_values": torch.stack([row["pixel_values"] for row in some]), "labels": [row["labels"] for row in some]}

    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, num_train_epochs=1, logging_steps=1, report_to=[], use_cpu=True,
        remove_unused_columns=False, eval_strategy="epoch", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    model = with_criterion(build("Yolos"), loss_cls="MatchedVarifocalLoss")
    trainer = transformers.Trainer(model, arguments, data_collator=collate, train_dataset=rows, eval_dataset=rows)
    log_parts(trainer).train()
    train = [line for line in trainer.state.log_history if "loss" in line]
    assert len(train) == 2
    for line in train:
        assert line["total_loss"] == pytest.approx(line["loss"], rel=1e-3)
        assert line["loss_cls"] + line["loss_box"] + line["loss_iou"] == pytest.approx(line["loss"], rel=1e-3)
    assert any("eval_loss_box" in line for line in trainer.state.log_history)


@pytest.mark.parametrize(
    ("name", "criterion", "options", "error", "words"),
    [
        (None, "DETRLoss", {}, TypeError, "expected one of DetrForObjectDetection.*got Linear"),
        ("Detr", "FCOSLoss", {}, ValueError, "fit DETRLoss; got 'FCOSLoss'"),
        ("Detr", detloss.DETRLoss(91), {}, ValueError, f"num_classes={CLASSES}; got 91"),
        ("RTDetr", detloss.DETRLoss(CLASSES), {}, ValueError, "background_column=False; got True"),
        ("Detr", "DETRLoss", {"loss_class": "focal"}, TypeError, "unknown option 'loss_class'"),
    ],
)
def test_what_does_not_fit_is_an_error(name: Any, criterion: Any, options: Any, error: Any, words: str) -> None:
    model = nn.Linear(1, 1) if name is None else build(name)
    with pytest.raises(error, match=words):
        with_criterion(model, criterion, **options)
    assert not hasattr(model, "_loss_function")
