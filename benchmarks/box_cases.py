"""The losses of boxes: the IoU family, distances, distributions, rotated boxes."""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as torch_f
from loss_case import Forward, Makers, boxes_near, count, leaf, loss_case
from measure import Case, Entry
from torch import Tensor

from detloss import functional as F

__all__ = ["entries"]

BINS = 16
KINDS = ("iou", "giou", "diou", "ciou", "eiou", "siou")
QUADRATIC = 2000  # boxes: transformers compares every prediction with every target
SIZES = {
    "tiny": (40, {"1e3": 50, "1e5": 60, "1e6": 70}),
    "quick": (10000, {"1e3": 1000, "1e5": 100000}),
    "full": (100000, {"1e3": 1000, "1e5": 100000, "1e6": 1000000}),
}
ULTRALYTICS = {"iou": {}, "giou": {"GIoU": True}, "diou": {"DIoU": True}, "ciou": {"CIoU": True}}
TORCHVISION = {"giou": "generalized_box_iou_loss", "diou": "distance_box_iou_loss", "ciou": "complete_box_iou_loss"}


def _from(module: str) -> ModuleType:
    return __import__(module, fromlist=["x"])


def _targets(boxes: int) -> Tensor:
    centre, size = torch.rand(boxes, 2) * 500, torch.rand(boxes, 2) * 100 + 40
    return torch.cat((centre - size / 2, centre + size / 2), 1)


def iou_family(kind: str, boxes: int) -> Case:
    """One member, corners in pixels, predictions a few pixels off."""
    target = _targets(boxes)
    pred = leaf(boxes_near(target))
    target = target.to(pred.dtype)
    options = {"mode": "linear"} if kind == "iou" else {}
    ours = partial(getattr(F, f"{kind}_loss"), pred, target, reduction="sum", **options)
    makers: Makers = {}
    left_out = {}

    def of_ultralytics() -> Forward:
        function = _from("ultralytics.utils.metrics").bbox_iou
        return lambda: (1 - function(pred, target, xywh=False, **ULTRALYTICS[kind])).sum()

    if kind in TORCHVISION:
        makers["torchvision"] = lambda: partial(
            getattr(_from("torchvision.ops"), TORCHVISION[kind]), pred, target, reduction="sum"
        )
    if kind in ULTRALYTICS:
        makers["ultralytics"] = of_ultralytics
    if kind == "giou":
        makers["fvcore"] = lambda: partial(_from("fvcore.nn").giou_loss, pred, target, reduction="sum")
        makers["autotimm"] = lambda: partial(_from("autotimm.losses.detection").GIoULoss(reduction="sum"), pred, target)

        def of_transformers() -> Forward:
            function = _from("transformers.loss.loss_for_object_detection").generalized_box_iou
            return lambda: (1 - function(pred, target).diag()).sum()

        makers["transformers"] = of_transformers
        if boxes > QUADRATIC:
            left_out["transformers"] = f"an N × N matrix, {4 * boxes**2 / 1e9:.0f} GB"
    return loss_case(pred, ours, makers, bytes=3 * pred.nbytes, kernel=f"{kind}_loss", left_out=left_out)


def log_iou_of_distances(boxes: int) -> Case:
    """−ln IoU of distances (l, t, r, b), which are the corners (−l, −t, r, b) about the location."""
    target = torch.rand(boxes, 4) * 50 + 10
    pred, sign = leaf(target * (0.9 + 0.2 * torch.rand(boxes, 4))), torch.tensor([-1.0, -1.0, 1.0, 1.0])
    makers: Makers = {"autotimm": lambda: partial(_from("autotimm.losses.detection").FCOSLoss(4)._compute_reg_loss, pred, target)}
    corners = target * sign

    def ours() -> Tensor:
        return F.iou_loss(pred * sign, corners, reduction="sum")

    return loss_case(pred, ours, makers, bytes=3 * pred.nbytes, kernel="iou_loss")


def differences(name: str, boxes: int) -> Case:
    """A loss of coordinates; differences on both sides of the bend."""
    target = torch.randn(boxes, 4)
    pred = leaf(boxes_near(target, 0.3))
    bend = 0.1
    options = {"smooth_l1": {"beta": bend}, "huber": {"delta": bend}}.get(name, {})
    ours = partial(getattr(F, f"{name}_loss"), pred, target, reduction="sum", **options)
    makers: Makers = {
        "torch": lambda: partial(getattr(torch_f, f"{name}_loss"), pred, target, reduction="sum", **options)
    }  # fmt: skip
    if name == "smooth_l1":
        makers["fvcore"] = lambda: partial(_from("fvcore.nn").smooth_l1_loss, pred, target, reduction="sum", **options)
    if name in ("smooth_l1", "huber"):
        makers["effdet"] = lambda: partial(
            getattr(_from("effdet.loss"), f"{name}_loss"), pred, target, size_average=False, **options
        )
    return loss_case(pred, ours, makers, bytes=3 * pred.nbytes, kernel=f"{name}_loss")


def charbonnier(boxes: int) -> Case:
    """GHM-R with one bin, which harmonises nothing: the loss that kornia calls Charbonnier."""
    target = torch.randn(boxes, 4)
    pred = leaf(boxes_near(target, 1.0))
    makers: Makers = {"kornia": lambda: partial(_from("kornia.losses").charbonnier_loss, pred, target, reduction="mean")}
    return loss_case(pred, partial(F.ghm_regression_loss, pred, target, mu=1.0, bins=1), makers, bytes=3 * pred.nbytes)


def distribution_focal(boxes: int) -> Case:
    """Distribution focal loss of four sides a box."""
    pred, target = leaf(torch.randn(4 * boxes, BINS)), torch.rand(4 * boxes) * (BINS - 1.1)

    def of_ultralytics() -> Forward:
        loss, sides = _from("ultralytics.utils.loss").DFLoss(BINS), target.view(-1, 4)
        return lambda: loss(pred, sides).sum() * 4

    def of_transformers() -> Forward:
        function = _from("transformers.loss.loss_d_fine").DFineLoss.unimodal_distribution_focal_loss
        right, left = target - target.floor(), 1 + target.floor() - target
        return lambda: function(None, pred, target, weight_right=right, weight_left=left)

    makers: Makers = {"ultralytics": of_ultralytics, "transformers": of_transformers}
    ours = partial(F.distribution_focal_loss, pred, target, reduction="sum")
    moved = 2 * pred.nbytes + target.nbytes
    return loss_case(pred, ours, makers, bytes=moved, kernel="distribution_focal_loss")


def probiou(boxes: int) -> Case:
    """ProbIoU of rotated boxes: cx, cy, w, h, radians."""
    target = torch.cat((torch.rand(boxes, 2) * 400, torch.rand(boxes, 2) * 60 + 40, torch.rand(boxes, 1) * 3), 1)
    pred = leaf(target + torch.rand(boxes, 5) * torch.tensor([15.0, 15.0, 20.0, 20.0, 0.3]) + 0.1)

    def of_ultralytics() -> Forward:
        function = _from("ultralytics.utils.metrics").probiou
        return lambda: (1 - function(target, pred)).sum()

    ours = partial(F.probiou_loss, pred, target, reduction="sum")
    return loss_case(pred, ours, {"ultralytics": of_ultralytics}, bytes=3 * pred.nbytes, tolerance=1e-3)


def entries(size: str) -> list[Entry]:
    """The cases at a size, ``"tiny"``, ``"quick"`` or ``"full"``."""
    sides, numbers = SIZES[size]
    found = [
        Entry(f"{kind} {name}", f"{kind}_loss", f"{count(number)} boxes", partial(iou_family, kind, number))
        for kind in KINDS
        for name, number in numbers.items()
    ]
    middle, most = numbers["1e5"], max(numbers.values())
    few, many = f"{count(middle)} boxes", f"{count(most)} boxes"
    found += [
        Entry("log iou of distances", "iou_loss", few, partial(log_iou_of_distances, middle)),
        *(Entry(f"{n.replace('_', ' ')}", f"{n}_loss", many, partial(differences, n, most)) for n in ("l1", "smooth_l1", "mse")),
        Entry("huber", "huber_loss", many, partial(differences, "huber", most)),
        Entry("charbonnier", "ghm_regression_loss", few, partial(charbonnier, middle)),
        Entry("dfl", "distribution_focal_loss", f"{count(sides)} boxes", partial(distribution_focal, sides)),
        Entry("probiou", "probiou_loss", few, partial(probiou, middle)),
    ]
    return found
