"""torchvision's detectors with our criteria: losses, gradients, detection, and what stays as it was."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision.models.detection")

from compat.test_patch_torchvision import fcos, rcnn, retinanet, ssd
from integrations.tiny_torchvision import CLASSES, MODELS, SIDE, STRIDES, Batch, light_retinanet, objects, train

import detloss
from detloss import LossDict
from detloss.integrations.torchvision import with_criterion, without_criterion
from detloss.integrations.torchvision_gfl import squared_score
from detloss.integrations.torchvision_inputs import prepared

names = pytest.mark.parametrize("name", MODELS)
THEIR_WORDS = {
    "loss_cls": "classification", "loss_box": "bbox_regression", "loss_centerness": "bbox_ctrness",
}  # fmt: skip
TWO_STAGE_WORDS = {
    "loss_cls": "loss_classifier", "loss_box": "loss_box_reg", "loss_rpn_cls": "loss_objectness",
    "loss_rpn_box": "loss_rpn_box_reg", "loss_mask": "loss_mask",
}  # fmt: skip


def made(name: str) -> tuple[Any, Batch]:
    """A model of :data:`MODELS` with its criterion, and a batch."""
    build, first, criterion = MODELS[name]
    return with_criterion(build(), criterion()).train(), objects(0, first)


def agree(losses: LossDict, theirs: dict[str, Tensor], words: dict[str, str]) -> None:
    assert {words[name] for name in losses} == set(theirs)
    for name, value in losses.items():
        torch.testing.assert_close(value, theirs[words[name]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", [fcos, retinanet, light_retinanet])
@pytest.mark.parametrize(("side", "divisible"), [(100, 32), (47, 1)])
def test_a_name_alone_gives_the_losses_of_torchvision(build: Any, side: int, divisible: int) -> None:
    """Also where images are resized, and where maps end before their image: 47 px in 5 cells are strides of 9, not 8."""
    model: Any = build().train()
    model.transform.size_divisible = divisible
    model.transform.min_size, model.transform.max_size = (side,), side
    images, targets = objects(2)
    with torch.no_grad():
        theirs = model(images, targets)
        kind = "FCOSLoss" if build is fcos else "RetinaNetLoss"
        losses = with_criterion(model, kind)(images, targets)
    agree(losses, theirs, THEIR_WORDS)


@pytest.mark.parametrize("kind", ["faster", "mask"])
def test_a_name_alone_gives_the_losses_of_torchvision_in_two_stages(kind: str) -> None:
    model: Any = rcnn(kind).train()
    for part in (model.rpn, model.roi_heads):  # all anchors and proposals, so that no sample is drawn
        part.fg_bg_sampler.batch_size_per_image, part.fg_bg_sampler.positive_fraction = 4000, 0.5
    data = objects(2, 1)
    with torch.no_grad():
        theirs = model(*data)
        losses = with_criterion(model, "MaskRCNNLoss")(*data)
    agree(losses, theirs, TWO_STAGE_WORDS)


@pytest.mark.parametrize("unit", ["pixel", "stride"])
def test_losses_are_those_of_the_criterion_on_the_outputs_of_the_head(unit: Any) -> None:
    criterion = detloss.FCOSLoss(
        CLASSES, strides=STRIDES, loss_box="CIoULoss", point_offset=0.0, distance_unit=unit, center_sampling_radius=1.5
    )
    model: Any = with_criterion(fcos(), criterion).train()
    images, targets = objects()
    losses = model(images, targets)
    features = list(model.backbone((torch.stack(images) - 0.5) / 0.3).values())
    scores = [model.head.classification_head.cls_logits(x) for x in features]
    sides = [model.head.regression_head.bbox_reg(x).relu() for x in features]
    if unit == "pixel":
        sides = [x * stride for x, stride in zip(sides, STRIDES, strict=True)]
    centers = [model.head.regression_head.bbox_ctrness(x) for x in features]
    expected = criterion(scores, sides, centers, targets)
    assert set(losses) == set(expected) == {"loss_cls", "loss_box", "loss_centerness"}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
    assert isinstance(losses, LossDict) and float(losses.metrics["num_pos"]) > 0


def test_losses_of_gfl_are_those_of_the_criterion_on_the_outputs_of_the_head() -> None:
    criterion = detloss.GFLLoss(CLASSES, STRIDES, reg_max=7)
    model: Any = with_criterion(fcos(), criterion).train()
    images, targets = objects()
    losses = model(images, targets)
    features = list(model.backbone((torch.stack(images) - 0.5) / 0.3).values())
    scores = [model.head.classification_head.cls_logits(x) for x in features]
    bins = [model.head.regression_head.bbox_reg(x) for x in features]
    assert bins[0].shape[1] == 4 * 8
    expected = criterion(scores, bins, targets)
    for name in ("loss_cls", "loss_box", "loss_dfl"):
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-6)


@names
@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_of_the_model_has_a_gradient(name: str, empty: bool) -> None:
    model, (images, targets) = made(name)
    if empty:
        targets = [{key: value[:0] for key, value in target.items()} for target in targets]
    losses = model(images, targets)
    sum(losses.values()).backward()  # as torchvision's users do
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    heads = [p for key, p in model.named_parameters() if ("cls" in key or "bbox" in key) and "ctrness" not in key]
    assert heads and (empty or all(p.grad.abs().sum() > 0 for p in heads))
    torch.testing.assert_close(model.last_losses.total_loss, losses.total_loss.detach())
    assert not any(value.requires_grad for value in model.last_losses.values())


@pytest.mark.parametrize("name", ["fcos-ciou", "retinanet-giou", "mask"])
def test_training_lowers_the_loss(name: str) -> None:
    model, data = made(name)
    history = train(model, data, 10)
    assert history[-1] < 0.9 * history[0]


@names
def test_losses_in_eval_mode(name: str) -> None:
    model, (images, targets) = made(name)
    model.eval()
    with torch.no_grad():
        losses = model.compute_losses(images, targets)
        assert isinstance(losses, LossDict) and torch.isfinite(losses.total_loss)
        assert isinstance(model(images, targets), list)
        model.losses_in_eval = True
        assert isinstance(model(images, targets), LossDict)
        assert [set(found) >= {"boxes", "scores", "labels"} for found in model(images)] == [True] * len(images)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "fcos-gfl"])
def test_detection_stays_as_it_was(name: str) -> None:
    build, _, criterion = MODELS[name]
    model: Any = build().eval()
    model.score_thresh = 0.0
    images, _ = objects()
    with torch.no_grad():
        before = model(images)
        after = with_criterion(model, criterion())(images)
    for one, other in zip(before, after, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_detection_with_distances_as_distributions() -> None:
    """Bins and scores set by hand: at every location l, t, r, b = 1, 2, 3, 1 strides, class 2 with probability σ(2)."""
    model: Any = with_criterion(fcos(), "GFLLoss", reg_max=4).eval()
    tower, classes = model.head.regression_head, model.head.classification_head.cls_logits
    bias = torch.full((4, 5), -100.0)
    bias[torch.arange(4), torch.tensor([1, 2, 3, 1])] = 100.0
    with torch.no_grad():
        tower.bbox_reg.weight.zero_()
        tower.bbox_reg.bias.copy_(bias.flatten())
        classes.weight.zero_()
        classes.bias.copy_(torch.tensor([-20.0, -20.0, 2.0, -20.0]))
    model.nms_thresh, model.detections_per_img = 1.0, 1000
    found = model([torch.rand(3, SIDE, SIDE)])[0]
    expected = []
    for stride in STRIDES:
        at = torch.arange(0, SIDE, stride, dtype=torch.float32)
        y, x = torch.meshgrid(at, at, indexing="ij")
        expected.append(torch.stack((x - stride, y - 2 * stride, x + 3 * stride, y + stride), -1).reshape(-1, 4))
    boxes = torch.cat(expected).clamp(0, SIDE)
    assert len(found["boxes"]) == len(boxes) and bool((found["labels"] == 2).all())
    distance = torch.cdist(found["boxes"], boxes, p=1)
    assert distance.min(0).values.max() < 1e-3 and distance.min(1).values.max() < 1e-3
    torch.testing.assert_close(found["scores"], torch.full_like(found["scores"], 2.0).sigmoid(), rtol=1e-5, atol=0)


def test_the_score_of_a_squared_logit_is_its_root() -> None:
    x = torch.tensor([-30.0, -4.0, 0.0, 3.0, 12.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(squared_score(x).sigmoid().sqrt(), x.sigmoid().float(), rtol=2e-5, atol=0)


def test_a_trained_gfl_head_finds_what_it_learnt() -> None:
    from torchvision.ops import box_iou

    model: Any = with_criterion(fcos(), "GFLLoss", reg_max=7).train()
    images, targets = objects(3)
    history = train(model, (images[:1], targets[:1]), 80, 0.02)
    assert history[-1] < 0.5 * max(history)  # boxes weigh as much as their scores, which start at 0.01: it rises first
    model.eval()
    with torch.no_grad():
        found = model(images[:1])[0]
    assert int(found["labels"][0]) == int(targets[0]["labels"][0])
    assert float(box_iou(found["boxes"][:1], targets[0]["boxes"])) > 0.7


@names
def test_taking_the_criterion_off_restores_the_model(name: str) -> None:
    build, first, criterion = MODELS[name]
    model: Any = build().train()
    before, keys = {key: value.clone() for key, value in model.state_dict().items()}, type(model)
    data = objects(0, first)
    torch.manual_seed(0)
    theirs = model(*data)
    with_criterion(model, criterion())
    kept = {key: value.shape for key, value in before.items() if "bbox_reg" not in key and "bbox_ctrness" not in key}
    assert {key: value.shape for key, value in model.state_dict().items() if key in kept} == kept
    assert isinstance(model, keys) and set(model.state_dict()) <= set(before)
    if name != "fcos-gfl":
        assert list(model.state_dict()) == list(before)
    assert without_criterion(model) is model and type(model) is keys
    torch.manual_seed(0)
    again = model(*data)
    assert set(again) == set(theirs) and all(torch.equal(again[key], theirs[key]) for key in again)
    assert set(model.state_dict()) == set(before) and not hasattr(model, "criterion")
    assert without_criterion(model) is model


@pytest.mark.parametrize("name", ["fcos-gfl", "retinanet-giou", "faster"])
def test_copies_and_pickles_keep_the_criterion(name: str) -> None:
    model, data = made(name)
    model(*data)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert type(other) is type(model) and other.criterion is not model.criterion
        torch.manual_seed(0)
        first = model(*data)
        torch.manual_seed(0)
        assert torch.equal(other(*data).total_loss, first.total_loss)
        with torch.no_grad():
            next(iter(other.parameters())).zero_()
        assert next(iter(model.parameters())).abs().sum() > 0  # nothing is shared
        assert other.eval()(data[0]) is not None


@pytest.mark.parametrize("name", ["fcos-gfl", "retinanet-giou", "mask"])
def test_autocast(name: str) -> None:
    model, (images, targets) = made(name)
    torch.manual_seed(0)
    plain = model(images, targets)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, targets)
    losses.total_loss.backward()
    assert losses.total_loss.dtype == torch.float32
    torch.testing.assert_close(losses.total_loss, plain.total_loss, rtol=0.1, atol=0)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_only_this_instance_changes() -> None:
    one, other = fcos().train(), fcos().train()
    with_criterion(one, "FCOSLoss")
    assert set(other(*objects())) == set(THEIR_WORDS.values())


def test_another_criterion_keeps_the_weights_that_a_head_has_learnt() -> None:
    model: Any = with_criterion(fcos(), "GFLLoss", reg_max=7)
    layer = model.head.regression_head.bbox_reg
    with_criterion(model, "GFLLoss", reg_max=7, loss_box="CIoULoss")
    assert model.head.regression_head.bbox_reg is layer and type(model.criterion.loss_box).__name__ == "CIoULoss"
    with_criterion(model, "FCOSLoss")
    assert model.head.regression_head.bbox_reg.out_channels == 4 and hasattr(model.head.regression_head, "bbox_ctrness")


def test_ddp() -> None:
    dist = torch.distributed
    if dist.is_initialized():
        pytest.skip("a process group exists already")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, (images, targets) = made("fcos-gfl")
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # the second step fails when a parameter took no part in the first
            sum(wrapped(images, targets).values()).backward()
        assert model.last_losses is not None
    finally:
        dist.destroy_process_group()


def test_ignored_regions_are_resized_with_the_image() -> None:
    model: Any = fcos()
    region = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    target = {"boxes": torch.tensor([[2.0, 2.0, 8.0, 16.0]]), "labels": torch.tensor([1]), "ignore_boxes": region}
    found = prepared(model, [torch.rand(3, SIDE // 2, SIDE // 2)], [target])
    torch.testing.assert_close(found.targets[0]["ignore_boxes"], 2 * region)
    torch.testing.assert_close(found.targets[0]["boxes"], 2 * target["boxes"])
    assert torch.equal(target["ignore_boxes"], region)


def test_buffers_of_the_criterion_follow_the_model() -> None:
    criterion = detloss.FCOSLoss(CLASSES, strides=STRIDES, normalizer="ema")
    model: Any = with_criterion(fcos(), criterion).train()
    assert not any("normalizer" in key for key in model.state_dict())
    first = [value.clone() for value in criterion.buffers()]
    model(*objects())
    assert first and any(not torch.equal(a, b) for a, b in zip(first, criterion.buffers(), strict=True))


@pytest.mark.parametrize(
    ("build", "criterion", "options", "error", "words"),
    [
        (ssd, "FCOSLoss", {}, ValueError, "SSD's outputs: softmax columns"),
        (lambda: rcnn("keypoint"), "MaskRCNNLoss", {}, ValueError, "keypoints"),
        (lambda: nn.Linear(1, 1), "FCOSLoss", {}, TypeError, "expected one of torchvision's FCOS, RetinaNet.*got Linear"),
        (lambda: nn.DataParallel(fcos()), "FCOSLoss", {}, TypeError, "detector inside the wrapper"),
        (fcos, "RetinaNetLoss", {}, ValueError, "fit FCOSLoss, ATSSLoss, GFLLoss; got 'RetinaNetLoss'"),
        (fcos, "FCOSLos", {}, ValueError, "Did you mean 'FCOSLoss'"),
        (fcos, detloss.RetinaNetLoss(CLASSES), {}, ValueError, "got RetinaNetLoss"),
        (fcos, nn.MSELoss(), {}, TypeError, "got MSELoss"),
        (fcos, "FCOSLoss", {"loss_bbox": "giou"}, TypeError, "unknown option 'loss_bbox'.*loss_box"),
        (fcos, detloss.FCOSLoss(CLASSES, strides=STRIDES), {"loss_box": "giou"}, TypeError, "for a ready FCOSLoss"),
        (fcos, detloss.FCOSLoss(91, strides=STRIDES), {}, ValueError, f"num_classes={CLASSES}; got 91"),
        (fcos, detloss.FCOSLoss(CLASSES, strides=(4, 8, 16)), {}, ValueError, r"strides \(8, 16, 32\); got .*\(4, 8, 16\)"),
        (fcos, detloss.ATSSLoss(CLASSES, STRIDES), {}, ValueError, "box_coding='distance'; got 'delta'"),
        (light_retinanet, detloss.RetinaNetLoss(CLASSES), {}, ValueError, "grid.per_cell=1; got 9"),
        (lambda: rcnn("mask"), detloss.MaskRCNNLoss(CLASSES - 1), {}, ValueError, "background='first'; got 'last'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(build: Any, criterion: Any, options: Any, error: Any, words: str) -> None:
    model = build()
    kind = type(model)
    with pytest.raises(error, match=words):
        with_criterion(model, criterion, **options)
    assert type(model) is kind


def test_wrong_targets_are_errors() -> None:
    model, (images, targets) = made("fcos-ciou")
    with pytest.raises(ValueError, match="expected targets, a list with one dict for each of the 2 images; got NoneType"):
        model(images)
    with pytest.raises(ValueError, match=r"targets\[1\] must be a dict with 'boxes' and 'labels'"):
        model(images, [targets[0], {"boxes": targets[1]["boxes"]}])
    with pytest.raises(ValueError, match=r"must be in 0…3"):
        model(images, [{**targets[0], "labels": targets[0]["labels"] + CLASSES}, targets[1]])
    model, (images, targets) = made("faster")
    with pytest.raises(ValueError, match="start at 1, 0 is the background; got 0"):
        model(images, [{**t, "labels": t["labels"] * 0} for t in targets])
