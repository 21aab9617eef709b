"""Rows of the two-stage criteria: region proposals, box heads, mask heads and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from criteria_cases import EXTENT, NUM_CLASSES, Case, Tree, pixel_targets
from fcos_cases import SIZES, STRIDES, Target
from torch import Tensor

from detloss.assigners.samplers import PseudoSampler
from detloss.criteria.mask_head import MaskHeadLoss
from detloss.criteria.mask_rcnn import MaskRCNNLoss
from detloss.criteria.roi_head import RoIHeadLoss
from detloss.criteria.rpn import RPNLoss
from detloss.types import Assignment

RATIOS = (0.5, 1.0)
SHAPES = ((14, 14), (30, 30), (14, 30), (30, 14))
GRID = [(x, y, x + w, y + h) for x in range(0, 48, 8) for y in range(0, 48, 8) for w, h in SHAPES]
ROIS = torch.tensor(GRID, dtype=torch.float32) + torch.tensor([0.5, -1.0, 2.0, 1.5])
MASK_SIZE = 7


def random_tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def rpn_maps(images: int, dtype: torch.dtype = torch.float32, per_cell: int = len(RATIOS)) -> Tree:
    """Objectness and deltas of every level."""
    return [[random_tensor(images, n * per_cell, h, w, dtype=dtype) for h, w in SIZES] for n in (1, 4)]


def roi_outputs(columns: int, deltas: int) -> Callable[[int, torch.dtype], Tree]:
    """Logits and deltas of the proposals ``ROIS`` of every image."""
    return lambda images, dtype: [random_tensor(images, len(ROIS), n, dtype=dtype) for n in (columns, deltas)]


def mask_outputs(channels: int) -> Callable[[int, torch.dtype], Tree]:
    """Mask logits of the proposals ``ROIS`` of every image."""
    return lambda images, dtype: [random_tensor(images, len(ROIS), channels, MASK_SIZE, MASK_SIZE, dtype=dtype)]


def mask_targets(counts: Sequence[int]) -> list[Target]:
    """Boxes as elsewhere, each with the mask of the ellipse that it encloses."""
    targets = pixel_targets(counts)
    at = torch.arange(EXTENT) + 0.5
    for target in targets:
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        across, down = (
            ((at - (low + high)[:, None] / 2) / (high - low).clamp(min=1)[:, None] * 2) ** 2 for low, high in ((x1, x2), (y1, y2))
        )
        target["masks"] = down[:, :, None] + across[:, None] <= 1
    return targets


def proposals_of(images: int, targets: Sequence[Target]) -> list[Tensor]:
    """The same proposals for all images, but for the last ones: as many are left out as an image has objects."""
    objects = [0] * images
    if isinstance(targets, list):
        objects[: len(targets)] = [len(t["labels"]) - (int(t["iscrowd"].sum()) if "iscrowd" in t else 0) for t in targets]
    return [ROIS[: len(ROIS) - count] for count in objects]


def rows_of(values: Tensor, proposals: Sequence[Tensor]) -> Tensor:
    """Predictions ``[B, R, …]`` of the proposals, one after the other."""
    kept = [own[: len(boxes)] for own, boxes in zip(values, proposals, strict=True)]
    return torch.cat([values[:0].flatten(0, 1), *kept])


def flat_call(run: Any, predictions: Tree, targets: Sequence[Target]) -> Any:
    """One row of predictions per proposal."""
    proposals = proposals_of(len(predictions[0]), targets)
    return run(*(rows_of(x, proposals) for x in predictions), proposals, targets)


def mask_rcnn_call(run: Any, predictions: Tree, targets: Sequence[Target]) -> Any:
    """Every proposal has mask logits, of which the criterion gets those of the positives."""
    maps, boxes, *masks = predictions
    proposals, own = proposals_of(len(boxes[0]), targets), []
    if masks:
        positive = MaskRCNNLoss(NUM_CLASSES).roi.assigned(proposals, targets).gt_index >= 0
        own = [rows_of(*masks[0], proposals)[positive]]
    return run(*maps, *(rows_of(x, proposals) for x in boxes), proposals, targets, *own)


class RecordedSampler:
    """A sampler of torchvision, called by torchvision, that remembers what it chose and chooses the same when we call it."""

    def __init__(self, num: int, draw: Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]) -> None:
        self.num, self.draw = num, draw
        self.taken = torch.zeros(0)

    def of_torchvision(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = self.draw(labels)
        self.taken = (torch.stack(positive) + torch.stack(negative)) > 0
        return positive, negative

    def __call__(self, assignment: Assignment) -> Assignment:
        return Assignment(torch.where(self.taken, assignment.gt_index, -1), ~self.taken)


def case(name: str, criterion: Any, options: dict[str, Any], predict: Any, call: Any = flat_call, **more: Any) -> Case:
    return Case(name, lambda **own: criterion(**options, **own), predict, call, **more)


# Nothing is left to chance, nor to the order of objects that claim the same anchor.
RPN_OPTIONS: dict[str, Any] = {
    "strides": STRIDES, "anchor_ratios": RATIOS, "anchor_scales": (2,), "sampler": PseudoSampler(), "num_classes": NUM_CLASSES,
    "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "low_quality": "anchor"},
}  # fmt: skip
RPN = [
    case(name, RPNLoss, {**RPN_OPTIONS, **options}, rpn_maps, lambda run, maps, targets: run(*maps, targets), box_terms=())
    for name, options in {
        "rpn": {},
        "rpn-qfl-giou": {"loss_rpn_cls": "QualityFocalLoss", "loss_rpn_box": "giou", "normalize_by": "floored"},
    }.items()
]
ROI = [
    case(name, RoIHeadLoss, {"num_classes": NUM_CLASSES, **options}, roi_outputs(columns, deltas), box_terms=())
    for name, options, columns, deltas in (
        ("roi", {}, NUM_CLASSES + 1, 4 * NUM_CLASSES),
        ("roi-first-smooth", {"background": "first", "loss_box": "SmoothL1Loss"}, NUM_CLASSES + 1, 4 * NUM_CLASSES + 4),
        ("roi-focal-ciou", {"loss_cls": "FocalLoss", "loss_box": "ciou", "class_agnostic": True}, NUM_CLASSES, 4),
    )
]
MASK = [
    case(
        name, MaskHeadLoss, {"num_classes": NUM_CLASSES, **options}, mask_outputs(channels),
        targets=mask_targets, box_terms=("loss_mask",),
    )
    for name, options, channels in (
        ("mask", {}, NUM_CLASSES),
        ("mask-dice-agnostic", {"loss_mask": "DiceLoss", "class_agnostic": True, "aligned": True, "threshold": 0.5}, 1),
    )
]  # fmt: skip
MASK_RCNN = [
    case(
        name, MaskRCNNLoss, {"num_classes": NUM_CLASSES, "rpn": RPN_OPTIONS},
        lambda images, dtype, masks=masks: [
            rpn_maps(images, dtype), roi_outputs(NUM_CLASSES + 1, 4 * NUM_CLASSES)(images, dtype),
            *([mask_outputs(NUM_CLASSES)(images, dtype)] if masks else []),
        ],
        mask_rcnn_call, targets=mask_targets, box_terms=("loss_mask",) if masks else (), compiles=not masks,
        note="the number of masks depends on the assignment" if masks else "",
    )
    for name, masks in (("faster-rcnn", False), ("mask-rcnn", True))
]  # fmt: skip
CASES = [*RPN, *ROI, *MASK, *MASK_RCNN]
