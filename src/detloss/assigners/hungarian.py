"""Hungarian matching of DETR: the one-to-one assignment of objects to queries of the least total cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, Assigner, chunks, covered_by_regions
from detloss.assigners.predictions import check_predictions, finite_predictions, fold_sum, matched_iou, over_classes, own_class
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import check_non_negative, check_option, shape_of, upcast
from detloss.functional.classification import binary_cross_entropy
from detloss.functional.iou_costs import ciou_cost, diou_cost, giou_cost
from detloss.geometry.iou import Overlap, overlap
from detloss.kernels.matches import PairCostMatch
from detloss.kernels.selection import match_backend, recorded
from detloss.registry import ASSIGNERS
from detloss.types import Assignment, Number, Target

__all__ = ["HungarianAssigner", "least_cost_match", "match_operator", "repeat_targets"]

ClassCost = Literal["softmax", "focal"]
BoxCost = Literal["iou", "giou", "diou", "ciou"]
CLASS_COSTS = ("softmax", "focal")
BOX_COSTS: dict[str, Callable[[Overlap], Tensor]] = {
    "iou": lambda pair: 1 - pair.iou,
    "giou": giou_cost,
    "diou": diou_cost,
    "ciou": lambda pair: ciou_cost(pair, 1e-6),
}
IGNORED_SHARE = 0.5
LARGEST_COST = 1e30
TEMPORARIES = 24  # numbers per pair that are alive at once


def repeat_targets(targets: PaddedTargets, times: int) -> PaddedTargets:
    """The images of ``targets`` once for each of ``times`` decoder layers, layer by layer: image ``i % B`` at row i."""

    def repeat(x: Tensor) -> Tensor:
        return x.repeat(times, *[1] * (x.ndim - 1))

    return PaddedTargets(
        repeat(targets.boxes),
        repeat(targets.labels),
        repeat(targets.valid),
        repeat(targets.ignore_boxes),
        repeat(targets.ignore_valid),
    )


def _solver() -> Callable[[Any], tuple[Any, Any]]:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            "HungarianAssigner needs SciPy, which is not installed: pip install scipy, or pip install 'detloss[detr]'"
        ) from error
    return linear_sum_assignment


def least_cost_match(cost: Tensor) -> Tensor:
    """``[B, Q]`` int64 index of the object of every query, −1 for none: per image as many pairs as can be, at least cost.

    SciPy solves it on the host: one copy there and one back for the whole batch.

    Args:
        cost: ``[B, G, Q]``; infinite for an object that is none, or a query that may not be matched, with all others.
    """
    solve = _solver()
    images, _, queries = cost.shape
    gt_index = torch.full((images, queries), -1, dtype=torch.long)
    for found, matrix in zip(gt_index.numpy(), cost.cpu().numpy(), strict=True):
        finite = matrix < torch.inf
        objects, allowed = (finite.any(axis).nonzero()[0] for axis in (1, 0))
        row, column = solve(matrix[objects[:, None], allowed])
        found[allowed[column]] = objects[row]
    return gt_index.to(cost.device)


match_operator = torch.library.custom_op("detloss::least_cost_match", least_cost_match, mutates_args=())


@match_operator.register_fake
def _(cost: Tensor) -> Tensor:
    return torch.empty(cost.shape[0], cost.shape[2], dtype=torch.long, device=cost.device)


@ASSIGNERS.register_module(
    family="set",
    formula="min over one-to-one matches of sum(cls_weight C_cls + 5 |cxcywh - cxcywh*| + 2 (1 - GIoU))",
    paper="Carion et al. 2020, arXiv:2005.12872",
)
class HungarianAssigner(Assigner):
    """Match every object with one query so that the sum of the costs is least.

    cost = cls_weight · C_cls + l1_weight · |b − b*|₁ + iou_weight · (1 − GIoU), with b = (cx, cy, w, h) in units of the
    image. C_cls is −softmax(x)_y (DETR) or, for logits of a sigmoid, α (1 − p)^γ (−ln p) − (1 − α) p^γ (−ln(1 − p))
    (Deformable DETR, RT-DETR). A box that is turned inside out pays for its depth as in :func:`detloss.functional.giou_loss`.

    Where there are more objects than queries, the pairs of least cost are matched. A query whose prediction is not finite
    never matches and has no part in the optimum of the others. A query without an object counts neither way where an
    ignore box covers more than half of its box. ``quality`` is the IoU. The costs are computed per image, never across
    images, and go to the host in one copy for the whole batch, where SciPy solves them; for all layers of a decoder at once
    flatten ``[L, B, Q, …]`` to ``[L·B, Q, …]`` and use :func:`repeat_targets`.

    Args:
        cls_cost: ``"softmax"`` (logits ``[B, Q, C + 1]``, "no object" last) or ``"focal"`` (``[B, Q, C]``).
        cls_weight: weight of C_cls.
        l1_weight: weight of the L1 distance.
        iou_weight: weight of the overlap.
        iou: measure of overlap: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``.
        alpha: α of the focal cost.
        gamma: γ of the focal cost.
        memory_budget: bytes that the temporaries of one chunk may take; the costs ``[B, G, Q]`` come on top.
    """

    needs_predictions = True

    def __init__(
        self,
        cls_cost: ClassCost = "softmax",
        cls_weight: float = 1.0,
        l1_weight: float = 5.0,
        iou_weight: float = 2.0,
        iou: BoxCost = "giou",
        alpha: float = 0.25,
        gamma: float = 2.0,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(memory_budget)
        check_option("HungarianAssigner", "cls_cost", cls_cost, CLASS_COSTS)
        check_option("HungarianAssigner", "iou", iou, tuple(BOX_COSTS))
        check_non_negative(
            "HungarianAssigner", cls_weight=cls_weight, l1_weight=l1_weight, iou_weight=iou_weight, alpha=alpha, gamma=gamma
        )
        if alpha > 1:
            raise ValueError(f"HungarianAssigner: alpha must lie in [0, 1]; got {alpha}")
        self.cls_cost: ClassCost = cls_cost
        self.cls_weight = cls_weight
        self.l1_weight = l1_weight
        self.iou_weight = iou_weight
        self.iou: BoxCost = iou
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def __call__(
        self,
        priors: Any,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
        image_sizes: Tensor | Sequence[Number] | Sequence[tuple[Number, Number]] | None = None,
    ) -> Assignment:
        """Match the queries (Q of them) with the objects of ``targets`` (B images).

        Args:
            priors: not used, ``None``.
            targets: one mapping per image, or padded.
            scores: class logits ``[B, Q, C + 1]`` or ``[B, Q, C]``; see ``cls_cost``.
            boxes: predicted corners ``[B, Q, 4]`` in the unit of the targets.
            image_sizes: (height, width), one pair for all images or ``[B, 2]``, in that unit; ``None``: targets and boxes
                are in units of the image already.
        """
        scores, boxes = check_predictions("HungarianAssigner", scores, boxes)
        boxes = upcast(boxes)
        classes = scores.shape[-1] - (self.cls_cost == "softmax")
        padded = targets if isinstance(targets, PaddedTargets) else pad_targets(targets, boxes, classes)
        images, objects = padded.valid.shape
        if images != len(scores):
            raise ValueError(f"HungarianAssigner: expected one target per image, {len(scores)}; got {images}")
        if objects and scores.shape[1]:
            match = match_operator if recorded(boxes) else least_cost_match
            gt_index = match(self._costs(padded, scores, boxes, _units(image_sizes, boxes)))
            quality = matched_iou(boxes, padded, gt_index, self.memory_budget)
        else:
            gt_index = torch.full(scores.shape[:2], -1, dtype=torch.long, device=scores.device)
            quality = torch.zeros_like(boxes[..., 0])
        ignore = covered_by_regions(boxes, padded, IGNORED_SHARE, self.memory_budget) & (gt_index < 0)
        return Assignment(gt_index, ignore, quality)

    def conditions(
        self,
        priors: Any,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``[G, Q]``: the only condition is a finite prediction."""
        scores, boxes = check_predictions("HungarianAssigner", scores, boxes)
        usable = finite_predictions(scores[image : image + 1], boxes[image : image + 1], self.memory_budget)
        return {"query with finite predictions": usable.expand(targets.valid.shape[1], -1)}

    def _costs(self, padded: PaddedTargets, scores: Tensor, boxes: Tensor, units: Tensor) -> Tensor:
        """``[B, G, Q]``, infinite where an object is none or a query is not finite."""
        images, objects = padded.valid.shape
        queries = boxes.shape[1]
        usable = finite_predictions(scores, boxes, self.memory_budget)
        valid = padded.valid & padded.boxes.isfinite().all(-1)
        evidence = self._evidence(scores)
        costs = boxes.new_empty(images, objects, queries)
        match = PairCostMatch(
            boxes, padded.boxes, units, usable, valid, costs, self.l1_weight, self.iou_weight, self.iou, LARGEST_COST
        )
        backend = match_backend(match)
        bytes_each = queries * TEMPORARIES * boxes.element_size()
        for some in chunks(images, bytes_each, self.memory_budget):
            for part in chunks(objects, bytes_each * (some.stop - some.start), self.memory_budget):
                logits = own_class(scores[some], padded.labels[some, part])
                cost = self.cls_weight * self._class_cost(logits, evidence[some].unsqueeze(1))
                if backend is None:
                    cost = cost + self._box_cost(boxes[some].unsqueeze(1), padded.boxes[some, part].unsqueeze(2), units[some])
                    allowed = usable[some].unsqueeze(1) & valid[some, part].unsqueeze(-1)
                    cost = torch.where(allowed, cost.clamp(-LARGEST_COST, LARGEST_COST), torch.inf)
                costs[some, part] = cost
        return costs if backend is None else backend.match(match)[0]

    def _box_cost(self, boxes: Tensor, objects: Tensor, units: Tensor) -> Tensor:
        pair = overlap(boxes, objects)
        return self.l1_weight * _l1(pair, units) + self.iou_weight * (BOX_COSTS[self.iou](pair) + pair.inverted)

    def _evidence(self, scores: Tensor) -> Tensor:
        """``[B, Q]`` ln Σ exp of the logits, for softmax."""
        if self.cls_cost != "softmax":
            return scores.new_zeros(scores.shape[:2])

        def log_sum(logits: Tensor, _: slice) -> Tensor:
            largest = logits.amax(-1)
            return largest + fold_sum((logits - largest.unsqueeze(-1)).exp()).log()

        return over_classes(scores, log_sum, self.memory_budget)

    def _class_cost(self, logits: Tensor, evidence: Tensor) -> Tensor:
        if self.cls_cost == "softmax":
            return -(logits - evidence).exp()
        no, yes = binary_cross_entropy(logits, 0.0), binary_cross_entropy(logits, 1.0)  # −ln(1 − p) and −ln p
        return self.alpha * (-self.gamma * no).exp() * yes - (1 - self.alpha) * (-self.gamma * yes).exp() * no


def _units(image_sizes: Tensor | Sequence[Any] | None, boxes: Tensor) -> Tensor:
    """``[B, 2]`` (height, width) of every image."""
    if image_sizes is None:
        return boxes.new_ones(len(boxes), 2)
    sizes = torch.as_tensor(image_sizes, device=boxes.device).to(boxes.dtype)
    if sizes.shape not in ((2,), (len(boxes), 2)):
        raise ValueError(
            f"HungarianAssigner: image_sizes must be (height, width) or have shape [{len(boxes)}, 2]; got {shape_of(sizes)}"
        )
    return sizes.expand(len(boxes), 2)


def _l1(pair: Overlap, units: Tensor) -> Tensor:
    """``[B, G, Q]`` |cx − cx*| + |cy − cy*| + |w − w*| + |h − h*|, each in units of the image."""
    height, width = units[:, 0, None, None], units[:, 1, None, None]
    (dx, dy), (w, h), (target_w, target_h) = pair.centre_offset, pair.pred_size, pair.target_size
    return (dx.abs() + (w - target_w).abs()) / width + (dy.abs() + (h - target_h).abs()) / height
