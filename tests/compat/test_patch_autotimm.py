"""Patched detectors of autotimm train with the losses of the unpatched ones, step by step; its loss modules give the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compat.patched_training import Losses, compare
from compat.sides import assert_same, boxes, peer, random
from torch import Tensor, nn

import detloss
from detloss.compat.patches.registry import PatchMismatchError

peer("autotimm")
autotimm = pytest.importorskip("autotimm")
tasks = pytest.importorskip("autotimm.tasks")
fcos_targets = pytest.importorskip("autotimm.tasks._fcos_targets")

SIDE, CLASSES, RATE = 64, 4, 1e-3
COUNTS = ((3, 1), (2, 0), (4, 6), (1, 2))
OPTIONS: dict[str, Any] = {"compile_model": False, "deterministic": False}


def batch(index: int) -> dict[str, Any]:
    """What its data module gives: images, and lists of boxes, labels and masks, images without objects among them."""
    g = random(100 + index)
    found: dict[str, Any] = {"image": torch.rand(2, 3, SIDE, SIDE, generator=g), "boxes": [], "labels": [], "masks": []}
    for count in COUNTS[index % len(COUNTS)]:
        size = 12 + torch.rand(count, 2, generator=g) * 45
        corner = torch.rand(count, 2, generator=g) * (SIDE - size)
        own = torch.cat((corner, corner + size), 1)
        inside = [(torch.arange(SIDE) >= own[:, k, None]) & (torch.arange(SIDE) < own[:, k + 2, None]) for k in (0, 1)]
        found["boxes"].append(own)
        found["labels"].append(torch.randint(CLASSES, (count,), generator=g))
        found["masks"].append((inside[1][:, :, None] & inside[0][:, None, :]).float())
    return found


def step(model: Any, index: int) -> Losses:
    """The total that is differentiated, and the parts that it logs."""
    logged: Losses = {}
    model.log = lambda name, value, **_: logged.update({name: torch.as_tensor(value).detach()})
    total = model.training_step(batch(index), index)
    parts = {
        name: value for name, value in logged.items() if name.endswith(("cls_loss", "reg_loss", "centerness_loss", "num_pos"))
    }
    return {"total": total, **parts}


def build(kind: str, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "YOLOXDetector":
            return autotimm.YOLOXDetector("yolox-nano", CLASSES, **OPTIONS, **options)
        backbone = autotimm.FeatureBackboneConfig(model_name="resnet10t", pretrained=False)
        return getattr(autotimm, kind)(backbone, CLASSES, fpn_channels=32, head_num_convs=1, **OPTIONS, **options)


class Maps(nn.Module):
    """Three maps of strides 8, 16 and 32 in the place of a network that computes them, which takes most of the time."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = (nn.Conv2d(3, n, side, side) for n, side in zip(channels, (8, 16, 32), strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.fine(x), self.middle(x), self.coarse(x)]


def steady(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """With boxes of some pixels, and without batch norm, which turns a rounding error of a few cells into another training.

    Heads start with boxes of 0.01 px, half of them inside out or empty, which have another loss here, and another gradient.
    """

    def made() -> nn.Module:
        model: Any = make()
        if hasattr(model, "neck"):
            model.backbone, model.neck = Maps((64, 64, 64)), nn.Identity()
        else:
            model.backbone = Maps((128, 256, 512))
        for name, module in model.named_modules():
            if name.endswith("reg_pred"):
                nn.init.constant_(module.bias, 12.0)
            if isinstance(module, nn.BatchNorm2d):
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
                module.training = False
        found: nn.Module = model
        return found

    return made


@pytest.mark.parametrize(
    ("kind", "options", "steps"),
    [
        ("ObjectDetector", {}, 20),
        ("ObjectDetector", {"reg_loss_fn": "giou"}, 5),
        ("ObjectDetector", {"detection_arch": "yolox"}, 3),
        ("YOLOXDetector", {}, 20),
        ("InstanceSegmentor", {}, 20),
    ],
    ids=["fcos", "fcos with GIoU", "yolox head", "yolox", "masks"],
)
def test_trains_alike(kind: str, options: dict[str, Any], steps: int) -> None:
    history = compare("autotimm", steady(lambda: build(kind, **options)), step, steps, RATE)
    assert history[-1]["train/reg_loss"] > 0


MODULES: list[tuple[str, dict[str, Any]]] = [
    ("FocalLoss", {}), ("FocalLoss", {"reduction": "none"}), ("GIoULoss", {"reduction": "sum"}), ("CenternessLoss", {}),
    ("DiceLoss", {"num_classes": CLASSES}), ("FocalLossPixelwise", {}), ("TverskyLoss", {"num_classes": CLASSES}),
    ("MaskLoss", {"pos_weight": 2.0}), ("CombinedSegmentationLoss", {"num_classes": CLASSES}),
]  # fmt: skip


def sample(name: str) -> tuple[Tensor, Tensor]:
    g = random(3)
    if name == "GIoULoss":
        return boxes(4, dtype=torch.float32)
    if name in ("CenternessLoss", "MaskLoss"):
        return torch.randn(3, 6, 7, generator=g), (torch.rand(3, 6, 7, generator=g) > 0.5).float()
    if name == "FocalLoss":
        return torch.randn(20, CLASSES, generator=g), torch.randint(-1, CLASSES, (20,), generator=g)
    label = torch.randint(CLASSES, (2, 6, 7), generator=g)
    return torch.randn(2, CLASSES, 6, 7, generator=g), torch.where(torch.rand(2, 6, 7, generator=g) > 0.8, 255, label)


@pytest.mark.parametrize(("name", "options"), MODULES, ids=[f"{name}-{len(options)}" for name, options in MODULES])
def test_loss_modules_give_the_same(name: str, options: dict[str, Any]) -> None:
    loss = getattr(autotimm.losses, name)(**options)
    pred, target = sample(name)

    def patched(x: Tensor) -> Tensor:
        with detloss.patch("autotimm"):
            found: Tensor = loss(x, target)
        return found

    assert_same(patched, lambda x: loss(x, target), pred, 1e-5)


def test_losses_of_the_user_stay() -> None:
    """A class loss or box loss that is not autotimm's sum is called by the original code."""

    class Own(nn.Module):
        def forward(self, pred: Tensor, target: Tensor) -> Tensor:
            return (pred.sigmoid() - target).square().sum()

    with detloss.patch("autotimm"):
        patched = step(build("ObjectDetector", cls_loss_fn=Own(), reg_loss_fn=nn.L1Loss(reduction="sum"), seed=1), 0)
    plain = step(build("ObjectDetector", cls_loss_fn=Own(), reg_loss_fn=nn.L1Loss(reduction="sum"), seed=1), 0)
    assert patched["total"] == plain["total"] > 0


def test_patch_lists_what_it_replaced_and_puts_it_back() -> None:
    before = tasks.object_detection.compute_fcos_detection_loss
    with detloss.patch("autotimm") as patch:
        assert tasks.object_detection.compute_fcos_detection_loss is not before
        assert detloss.patch("autotimm").replaced == patch.replaced  # twice does no harm
        assert "autotimm.tasks.object_detection.compute_fcos_detection_loss" in patch.replaced
        assert "autotimm.tasks.yolox_detector.YOLOXDetector.training_step" in patch.replaced
        assert any("_compute_mask_loss" in name for name in patch.left)
    assert tasks.object_detection.compute_fcos_detection_loss is before


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute_iou_loss(pred: Tensor, target: Tensor) -> Tensor:
        return (pred - target).abs().sum()

    monkeypatch.setattr(fcos_targets, "compute_iou_loss", compute_iou_loss)
    before = tasks.object_detection.compute_fcos_detection_loss
    with pytest.raises(PatchMismatchError, match=r"compute_iou_loss"):
        detloss.patch("autotimm")
    assert tasks.object_detection.compute_fcos_detection_loss is before


def test_an_image_batch_without_objects_keeps_its_gradient() -> None:
    """There the box and centerness losses are constants."""
    empty = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)]
    maps = [torch.zeros(1, n, 4, 4, requires_grad=True) for n in (CLASSES, 4, 1)]
    with detloss.patch("autotimm"):
        losses = fcos_targets.compute_fcos_detection_loss(
            *([x] for x in maps), *empty, (8,), ((-1, 64),), autotimm.losses.FocalLoss(reduction="sum"), CLASSES
        )
    assert losses["reg_loss"] == losses["centerness_loss"] == 0 and losses["num_pos"] == 1
    slopes = torch.autograd.grad(losses["cls_loss"] + losses["reg_loss"] + losses["centerness_loss"], maps)
    assert slopes[0].abs().sum() > 0 and not slopes[1].any() and not slopes[2].any()
