"""The losses of classification: 80 classes, 1 % positives, rows of a batch or whole maps of logits."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as torch_f
from loss_case import CLASSES, Forward, Makers, count, labels, leaf, loss_case, one_hot
from measure import Case, Entry
from torch import Tensor

from detloss import functional as F

__all__ = ["entries"]

CONSTANT_WEIGHT = "its weight of negatives is held constant in the gradient"
SIZES = {
    "tiny": (200, (2, CLASSES, 5, 5)),
    "quick": (20000, (2, CLASSES, 100, 100)),
    "full": (162136, (32, CLASSES, 100, 100)),
}


def _from(module: str) -> ModuleType:
    return __import__(module, fromlist=["x"])


def focal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Case:
    """Sigmoid focal loss of class indices; the peers get the dense targets they need."""
    pred, index = leaf((torch.randn(shape) - 3).to(dtype)), labels((shape[0], *shape[2:]))
    hot = one_hot(index).to(pred.dtype)
    classes = shape[1]

    def call(module: str, name: str, scale: float = 1.0, **options: object) -> Forward:
        function = getattr(_from(module), name)
        return lambda: function(pred, hot, **options).sum() * scale

    makers: Makers = {
        "torchvision": lambda: call("torchvision.ops", "sigmoid_focal_loss", reduction="sum"),
        "fvcore": lambda: call("fvcore.nn", "sigmoid_focal_loss", alpha=0.25, reduction="sum"),
        "kornia": lambda: call("kornia.losses", "binary_focal_loss_with_logits", alpha=0.25, reduction="sum"),
        "autotimm": lambda: partial(_from("autotimm.losses.detection").FocalLoss(reduction="sum"), pred, hot),
        "effdet": lambda: call(
            "effdet.loss", "new_focal_loss", alpha=0.25, gamma=2.0, normalizer=1.0, label_smoothing=0.0
        ),
        "transformers": lambda: call(
            "transformers.loss.loss_for_object_detection", "sigmoid_focal_loss", classes, num_boxes=1
        ),
    }  # fmt: skip

    def of_ultralytics() -> Forward:
        loss = _from("ultralytics.utils.loss").FocalLoss(2.0, 0.25)
        return lambda: loss(pred, hot) * classes

    makers["ultralytics"] = of_ultralytics
    moved = 2 * pred.nbytes + index.nbytes
    ours = partial(F.sigmoid_focal_loss, pred, index, reduction="sum")
    return loss_case(pred, ours, makers, bytes=moved, kernel="sigmoid_focal_loss")


def softmax_focal(shape: tuple[int, ...]) -> Case:
    """Softmax focal loss of maps."""
    classes = shape[1] + 1
    pred = leaf(torch.randn(shape[0], classes, *shape[2:]))
    index = torch.randint(0, classes, (shape[0], *shape[2:]))

    def of_kornia() -> Forward:
        function = _from("kornia.losses").focal_loss
        return lambda: function(pred, index, alpha=None, reduction="sum")

    def of_autotimm() -> Forward:
        loss = _from("autotimm.losses.segmentation").FocalLossPixelwise(alpha=1.0)
        return lambda: loss(pred, index) * index.numel()

    ours = partial(F.softmax_focal_loss, pred, index, alpha=None, reduction="sum")
    makers: Makers = {"kornia": of_kornia, "autotimm": of_autotimm}
    return loss_case(pred, ours, makers, bytes=2 * pred.nbytes + index.nbytes, kernel="softmax_focal")


def quality_focal(rows: int) -> Case:
    """Quality focal loss of (class, score); ``plain`` is the formula in the fewest operations of PyTorch."""
    pred, index, score = leaf(torch.randn(rows, CLASSES) - 3), labels((rows,)), torch.rand(rows)
    dense = one_hot(index) * score.unsqueeze(1)

    def plain() -> Tensor:
        entropy = torch_f.binary_cross_entropy_with_logits(pred, dense, reduction="none")
        return (entropy * (dense - pred.sigmoid()).abs().pow(2)).sum()

    ours = partial(F.quality_focal_loss, pred, (index, score), reduction="sum")
    moved = 2 * pred.nbytes + index.nbytes + score.nbytes
    return loss_case(pred, ours, {"plain": lambda: plain}, bytes=moved, kernel="quality_focal_loss")


def _matched(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, predicted boxes (cx, cy, w, h), rows that are matched, and the boxes they are matched with."""
    index = labels((rows,))
    index[0] = 1
    boxes = torch.cat((torch.rand(rows, 2), torch.rand(rows, 2) * 0.2 + 0.1), 1)
    found = (index < CLASSES).nonzero().squeeze(1)
    return index, boxes, found, boxes[found] + torch.rand(len(found), 4) * 0.02


def varifocal(rows: int) -> Case:
    """Varifocal loss; the scores are the IoU of matched boxes, which is how transformers makes them itself."""
    pred = leaf(torch.randn(rows, CLASSES) - 3)
    index, boxes, found, true = _matched(rows)
    corners = [torch.cat((b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2), 1) for b in (boxes[found], true)]
    score = torch.zeros(rows)
    score[found] = 1 - F.iou_loss(*corners, mode="linear", reduction="none")
    dense = one_hot(index) * score.unsqueeze(1)

    def of_ultralytics() -> Forward:
        loss, hot = _from("ultralytics.utils.loss").VarifocalLoss(), (dense > 0).float()
        return lambda: loss(pred, dense, hot) * CLASSES

    def of_transformers() -> Forward:
        import transformers

        criterion = _from("transformers.loss.loss_rt_detr").RTDetrLoss(transformers.RTDetrConfig(num_labels=CLASSES))
        outputs = {"logits": pred[None], "pred_boxes": boxes[None]}
        targets = [{"class_labels": index[found], "boxes": true}]
        return lambda: criterion.loss_labels_vfl(outputs, targets, [(found, torch.arange(len(found)))], 1)["loss_vfl"]

    makers: Makers = {"ultralytics": of_ultralytics, "transformers": of_transformers}
    moved = 2 * pred.nbytes + index.nbytes + score.nbytes
    ours = partial(F.varifocal_loss, pred, (index, score), reduction="sum")
    reasons = {"transformers": CONSTANT_WEIGHT}
    return loss_case(pred, ours, makers, bytes=moved, kernel="varifocal_loss", values_only=reasons)


def binary_cross_entropy(rows: int) -> Case:
    """Sigmoid cross entropy of dense soft targets."""
    pred = leaf(torch.randn(rows, CLASSES) - 3)
    dense = one_hot(labels((rows,))) * torch.rand(rows, 1)

    def none_then_sum() -> Tensor:
        return torch_f.binary_cross_entropy_with_logits(pred, dense, reduction="none").sum()

    makers: Makers = {
        "torch": lambda: partial(torch_f.binary_cross_entropy_with_logits, pred, dense, reduction="sum"),
        "torch, none + sum": lambda: none_then_sum,
    }
    ours = partial(F.binary_cross_entropy_loss, pred, dense, reduction="sum")
    return loss_case(pred, ours, makers, bytes=2 * pred.nbytes + dense.nbytes, kernel="binary_cross_entropy_loss")


def cross_entropy(rows: int) -> Case:
    """Softmax cross entropy of class indices."""
    pred, index = leaf(torch.randn(rows, CLASSES + 1)), torch.randint(0, CLASSES + 1, (rows,))
    makers: Makers = {"torch": lambda: partial(torch_f.cross_entropy, pred, index, reduction="sum")}
    ours = partial(F.cross_entropy_loss, pred, index, reduction="sum")
    return loss_case(pred, ours, makers, bytes=2 * pred.nbytes + index.nbytes, kernel="cross_entropy_loss")


def centerness(rows: int) -> Case:
    """Centerness loss of FCOS."""
    pred, target = leaf(torch.randn(rows)), torch.rand(rows)
    makers: Makers = {
        "torch": lambda: partial(torch_f.binary_cross_entropy_with_logits, pred, target, reduction="sum"),
        "autotimm": lambda: partial(_from("autotimm.losses.detection").CenternessLoss(reduction="sum"), pred, target),
    }
    ours = partial(F.centerness_loss, pred, target, reduction="sum")
    return loss_case(pred, ours, makers, bytes=3 * pred.nbytes, kernel="centerness")


def entries(size: str) -> list[Entry]:
    """The cases at a size, ``"tiny"``, ``"quick"`` or ``"full"``."""
    rows, planes = SIZES[size]
    fewer = (max(planes[0] // 4, 1), *planes[1:])
    table, maps = f"{count(rows)} × {CLASSES}", " × ".join(map(str, planes))
    half_maps = " × ".join(map(str, fewer))
    eighty_one = " × ".join(map(str, (fewer[0], CLASSES + 1, *planes[2:])))
    bf16 = torch.bfloat16
    found = [
        Entry("focal rows", "sigmoid_focal_loss", table, partial(focal, (rows, CLASSES))),
        Entry("focal maps", "sigmoid_focal_loss", maps, partial(focal, planes)),
        Entry("focal rows bf16", "sigmoid_focal_loss", table, partial(focal, (rows, CLASSES), bf16)),
        Entry("focal maps bf16", "sigmoid_focal_loss", half_maps, partial(focal, fewer, bf16)),
        Entry("softmax focal maps", "softmax_focal_loss", eighty_one, partial(softmax_focal, fewer)),
        Entry("qfl", "quality_focal_loss", table, partial(quality_focal, rows)),
        Entry("vfl", "varifocal_loss", table, partial(varifocal, rows)),
        Entry("bce", "binary_cross_entropy_loss", table, partial(binary_cross_entropy, rows)),
        Entry("ce", "cross_entropy_loss", f"{count(rows)} × {CLASSES + 1}", partial(cross_entropy, rows)),
        Entry("centerness", "centerness_loss", count(rows), partial(centerness, rows)),
    ]
    return [entry for entry in found if size != "quick" or entry.key != "focal maps bf16"]
