"""The losses of masks, of distillation, and the classifier with its loss in one."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as torch_f
from loss_case import Forward, Makers, count, labels, leaf, loss_case
from measure import Case, Entry
from torch import Tensor

from detloss import functional as F

__all__ = ["entries"]

CLASSES = 21
VOCABULARY = 13204  # classes of V3Det
SIZES = {
    "tiny": (3, 8, (2, CLASSES, 8, 8), 200, (64, 500, 16)),
    "quick": (64, 28, (2, CLASSES, 128, 128), 5000, (1000, VOCABULARY, 64)),
    "full": (512, 28, (8, CLASSES, 256, 256), 50000, (20000, VOCABULARY, 256)),
}
DENSE = 200 * 2**20  # bytes of logits from which the plain form with dense targets takes gigabytes


def _from(module: str) -> ModuleType:
    return __import__(module, fromlist=["x"])


def _masks(number: int, side: int) -> tuple[Tensor, Tensor]:
    return leaf(torch.randn(number, side, side)), (torch.rand(number, side, side) > 0.5).float()


def mask_bce(number: int, side: int) -> Case:
    """Cross entropy of masks, one per object."""
    pred, target = _masks(number, side)
    makers: Makers = {
        "torch": lambda: partial(torch_f.binary_cross_entropy_with_logits, pred, target),
        "autotimm": lambda: partial(_from("autotimm.losses.segmentation").MaskLoss(), pred, target),
    }
    return loss_case(pred, partial(F.mask_bce_loss, pred, target), makers, bytes=3 * pred.nbytes, kernel="mask_bce_loss")


def mask_focal(number: int, side: int) -> Case:
    """Focal loss of masks, as DETR has it for segmentation."""
    pred, target = _masks(number, side)
    pixels = side * side

    def of_transformers() -> Forward:
        function = _from("transformers.loss.loss_for_object_detection").sigmoid_focal_loss
        return lambda: function(pred.flatten(1), target.flatten(1), num_boxes=number)

    def ours() -> Tensor:
        return F.mask_focal_loss(pred.flatten(1), target.flatten(1), avg_factor=pixels * number)

    return loss_case(pred, ours, {"transformers": of_transformers}, bytes=3 * pred.nbytes, kernel="sigmoid_focal_loss")


def mask_dice(number: int, side: int) -> Case:
    """Dice loss of masks from logits, one per object."""
    pred, target = _masks(number, side)

    def of_transformers() -> Forward:
        function = _from("transformers.loss.loss_for_object_detection").dice_loss
        return lambda: function(pred, target.flatten(1), num_boxes=number)

    ours = partial(F.dice_loss, pred, target, avg_factor=number)
    return loss_case(pred, ours, {"transformers": of_transformers}, bytes=3 * pred.nbytes)


def lovasz(number: int, side: int) -> Case:
    """Lovász hinge loss of masks."""
    pred, target = _masks(number, side)
    makers: Makers = {"kornia": lambda: lambda: _from("kornia.losses").lovasz_hinge_loss(pred[:, None], target)}
    return loss_case(pred, partial(F.lovasz_hinge_loss, pred, target), makers, bytes=3 * pred.nbytes)


def _pixels(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax logits, class indices in which every image has every class, and their dense form with one mask per class."""
    index = torch.randint(shape[1], (shape[0], *shape[2:]))
    index.flatten(1)[:, : shape[1]] = torch.arange(shape[1])
    hot = torch_f.one_hot(index, shape[1]).movedim(-1, 1).float().contiguous().flatten(0, 1)
    return leaf(torch.randn(shape)), index, hot


def dice_of_classes(shape: tuple[int, ...]) -> Case:
    """Dice loss of a segmentation: softmax, one mask per image and class. No smoothing: each peer has another by default."""
    pred, index, hot = _pixels(shape)

    def ours() -> Tensor:
        return F.dice_loss(pred.softmax(1).flatten(0, 1), hot, activated=True, smooth=0.0)

    makers: Makers = {
        "autotimm": lambda: partial(_from("autotimm.losses.segmentation").DiceLoss(shape[1], smooth=0.0), pred, index),
        "kornia": lambda: lambda: _from("kornia.losses").dice_loss(pred, index, average="macro"),
    }
    return loss_case(pred, ours, makers, bytes=2 * pred.nbytes + index.nbytes, tolerance=1e-4)


def tversky_of_classes(shape: tuple[int, ...]) -> Case:
    """Tversky loss of a segmentation."""
    pred, index, hot = _pixels(shape)

    def ours() -> Tensor:
        return F.tversky_loss(pred.softmax(1).flatten(0, 1), hot, alpha=0.3, beta=0.7, activated=True, smooth=0.0)

    def of_autotimm() -> Forward:
        loss = _from("autotimm.losses.segmentation").TverskyLoss(shape[1], alpha=0.3, beta=0.7, smooth=0.0)
        return lambda: loss(pred, index)

    makers: Makers = {
        "autotimm": of_autotimm,
        "kornia": lambda: lambda: _from("kornia.losses").tversky_loss(pred, index, alpha=0.3, beta=0.7),
    }
    return loss_case(pred, ours, makers, bytes=2 * pred.nbytes + index.nbytes, tolerance=1e-4)


def distillation(name: str, rows: int, columns: int, temperature: float) -> Case:
    """KL divergence between softmax of student and teacher at a temperature."""
    pred, teacher = leaf(torch.randn(rows, columns)), torch.randn(rows, columns)

    def of_torch() -> Tensor:
        student = (pred / temperature).log_softmax(1)
        divergence = torch_f.kl_div(student, (teacher / temperature).softmax(1), reduction="batchmean")
        return temperature**2 * divergence

    ours = partial(getattr(F, f"{name}_loss"), pred, teacher, temperature=temperature)
    return loss_case(pred, ours, {"torch": lambda: of_torch}, bytes=3 * pred.nbytes)


def linear_focal(rows: int, classes: int, width: int) -> Case:
    """A classifier of thousands of classes and its focal loss; ``plain`` holds the logits and takes detloss's kernel."""
    features, weight = leaf(torch.randn(rows, width)), leaf(torch.randn(classes, width) / width**0.5)
    bias, index = leaf(torch.full((classes,), -4.0)), labels((rows,), classes)

    def plain() -> Tensor:
        return F.sigmoid_focal_loss(torch_f.linear(features, weight, bias), index, reduction="sum")

    def of_torchvision() -> Forward:
        function = _from("torchvision.ops").sigmoid_focal_loss
        hot = torch_f.one_hot(index, classes + 1)[:, :classes].float()
        return lambda: function(torch_f.linear(features, weight, bias), hot, reduction="sum")

    logits = 4 * rows * classes
    left_out = {"torchvision": f"about {10 * logits / 1e9:.0f} GB for targets and temporaries"} if logits > DENSE else {}
    ours = partial(F.fused_linear_sigmoid_loss, features, weight, bias, index, reduction="sum")
    makers: Makers = {"plain": lambda: plain, "torchvision": of_torchvision}
    return loss_case(
        (features, weight, bias), ours, makers, bytes=None, against="plain", left_out=left_out, tolerance=1e-4
    )  # fmt: skip


def entries(size: str) -> list[Entry]:
    """The cases at a size, ``"tiny"``, ``"quick"`` or ``"full"``."""
    number, side, shape, rows, linear = SIZES[size]
    masks, maps = f"{number} × {side} × {side}", " × ".join(map(str, shape))
    words = f"{count(linear[0])} × {linear[2]} → {count(linear[1])}"
    return [
        Entry("mask bce", "mask_bce_loss", masks, partial(mask_bce, number, side)),
        Entry("mask focal", "mask_focal_loss", masks, partial(mask_focal, number, side)),
        Entry("mask dice", "dice_loss", masks, partial(mask_dice, number, side)),
        Entry("lovasz hinge", "lovasz_hinge_loss", masks, partial(lovasz, number, side)),
        Entry("dice of classes", "dice_loss", maps, partial(dice_of_classes, shape)),
        Entry("tversky of classes", "tversky_loss", maps, partial(tversky_of_classes, shape)),
        Entry("kl distillation", "kl_distillation_loss", f"{count(rows)} × 80",
              partial(distillation, "kl_distillation", rows, 80, 4.0)),
        Entry("localization distillation", "localization_distillation_loss", f"{count(rows)} × 16",
              partial(distillation, "localization_distillation", rows, 16, 10.0)),
        Entry("linear focal", "fused_linear_sigmoid_loss", words, partial(linear_focal, *linear)),
    ]  # fmt: skip
