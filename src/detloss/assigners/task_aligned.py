"""The task-aligned assigner: every object takes the priors whose predictions score its class and overlap its box best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from detloss.assigners.aligned import OVERLAPS, AlignedRule, OverlapKind, Problem, match_aligned
from detloss.assigners.base import MEMORY_BUDGET, Assigner, Priors, centre_in_regions
from detloss.assigners.predictions import check_predictions
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import check_at_least, check_non_negative, check_option, check_positive, upcast
from detloss.registry import ASSIGNERS
from detloss.types import Assignment, Target

__all__ = ["TaskAlignedAssigner"]


@ASSIGNERS.register_module(
    family="prediction",
    formula="topk of sigmoid(score)^alpha * overlap^beta, quality = metric * max overlap / (max metric + eps) of the object",
    paper="Feng et al. 2021, arXiv:2108.07755",
)
class TaskAlignedAssigner(Assigner):
    """Assign every prior to at most one object, by what it predicts.

    The metric of an object and a prior strictly inside its box is σ(logit of the object's class)^alpha · overlap^beta. An
    object chooses the ``topk`` priors of the highest metric above 0, the first ones among equals. A prior that several
    objects choose goes to the one whose overlap with its prediction is the highest of all objects that contain it, whether
    they chose it or not, the first one among equals. Of the priors that an object has then got, the quality is
    metric · (largest overlap) / (largest metric + eps), so that the best one has the quality of the best overlap.

    The defaults are those of YOLOv8; TOOD has ``topk=13, alpha=1, iou="iou", enlarge_small=False``. A prediction whose box,
    or logit of the object's class, is not finite matches nothing. Priors whose centres lie in an ignore box and that belong to
    no object count neither way. Only pairs of an object and a prior inside it are ever looked at. Their number depends on the
    values, so the host waits for it, but not where a kernel of the ``triton`` back-end matches; with ``torch.compile`` the
    assignment is one opaque operator, without a graph break.

    Args:
        topk: priors that an object may choose.
        alpha: exponent of the score.
        beta: exponent of the overlap.
        iou: ``"ciou"``, not below 0, or ``"iou"``.
        enlarge_small: sides shorter than the stride of the second level (of the only one) are enlarged to it about the
            centre of the box when it is asked which priors are inside.
        eps: added to the largest metric.
        memory_budget: bytes that the temporaries of one chunk may take.
    """

    needs_predictions: ClassVar[bool] = True

    def __init__(
        self,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        iou: OverlapKind = "ciou",
        enlarge_small: bool = True,
        eps: float = 1e-9,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(memory_budget)
        check_at_least("TaskAlignedAssigner", 1, topk=topk)
        check_non_negative("TaskAlignedAssigner", alpha=alpha, beta=beta)
        check_option("TaskAlignedAssigner", "iou", iou, OVERLAPS)
        check_positive("TaskAlignedAssigner", eps=eps)
        self.topk = int(topk)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.iou: OverlapKind = iou
        self.enlarge_small = bool(enlarge_small)
        self.eps = float(eps)

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Assignment:
        """Assign the priors to the objects of ``targets`` by class logits ``scores [B, P, C]`` and ``boxes [B, P, 4]``."""
        scores, boxes = check_predictions("TaskAlignedAssigner", scores, boxes, priors.xy.shape[-2])
        padded = targets if isinstance(targets, PaddedTargets) else pad_targets(targets, priors.xy, scores.shape[2])
        if len(padded.boxes) != len(scores):
            raise ValueError(f"TaskAlignedAssigner: expected targets for each of {len(scores)} images; got {len(padded.boxes)}")
        problem = self._problem(priors, padded, scores, boxes)
        match = match_operator if torch.compiler.is_compiling() else _match
        gt_index, quality = match(*problem, *self._rule())
        ignore = centre_in_regions(priors.xy, padded, self.memory_budget)
        return Assignment(gt_index, ignore & (gt_index < 0), quality)

    def conditions(
        self,
        priors: Priors,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``[G, P]`` per condition: centre inside the box, a prediction that overlaps it, among the topk of the object."""
        scores, boxes = check_predictions("TaskAlignedAssigner", scores, boxes, priors.xy.shape[-2])
        problem = self._problem(priors, targets, scores, boxes).of_image(image)
        inside, aligned, chosen = torch.zeros(3, *targets.valid.shape[1:], boxes.shape[1], dtype=torch.bool, device=boxes.device)
        for pairs in problem.pairs(self._rule()):
            at = pairs.row, pairs.prior
            inside[at], aligned[at], chosen[at] = True, pairs.metric > 0, pairs.chosen
        return {
            "location inside the box": inside,
            "location whose finite prediction overlaps the box": aligned,
            f"location among the {self.topk} best of the object": chosen,
        }

    def _rule(self) -> AlignedRule:
        return AlignedRule(self.topk, self.alpha, self.beta, self.iou, self.eps, self.memory_budget)

    def _problem(self, priors: Priors, targets: PaddedTargets, scores: Tensor, boxes: Tensor) -> Problem:
        """The batch with its objects numbered through; padding and crowds contain nothing."""
        valid = getattr(priors, "valid", None)
        if valid is None:
            valid = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
        region = torch.where(targets.valid[..., None], self._region(priors, targets.boxes), torch.nan)
        region, objects, labels = (x.flatten(0, 1) for x in (region, targets.boxes, targets.labels))
        return Problem(priors.xy, valid.expand(boxes.shape[:2]).contiguous(), region, objects, labels, scores, boxes)

    def _region(self, priors: Priors, boxes: Tensor) -> Tensor:
        """Corners ``[B, G, 4]`` of what a prior has to lie in: the box, short sides enlarged if so asked."""
        if not (self.enlarge_small and priors.strides):
            return boxes
        side = float(priors.strides[min(1, len(priors.strides) - 1)])
        low, high = boxes[..., :2], boxes[..., 2:]
        centre, small = (low + high) / 2, high - low < side
        enlarged = torch.where(small, centre - side / 2, low), torch.where(small, centre + side / 2, high)
        return torch.cat(enlarged, dim=-1)


def _match(
    xy: Tensor,
    valid: Tensor,
    region: Tensor,
    objects: Tensor,
    labels: Tensor,
    scores: Tensor,
    boxes: Tensor,
    topk: int,
    alpha: float,
    beta: float,
    iou: str,
    eps: float,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """:func:`detloss.assigners.aligned.match_aligned` with the fields of its arguments one by one, as operators take them."""
    problem = Problem(xy, valid, region, objects, labels, scores, boxes)
    return match_aligned(problem, AlignedRule(topk, alpha, beta, iou, eps, memory_budget))


match_operator = torch.library.custom_op("detloss::match_aligned", _match, mutates_args=())


@match_operator.register_fake
def _match_shapes(
    xy: Tensor, valid: Tensor, region: Tensor, objects: Tensor, labels: Tensor, scores: Tensor, boxes: Tensor, *rule: object
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of what :func:`_match` returns."""
    return torch.empty_like(valid, dtype=torch.long), torch.empty_like(valid, dtype=upcast(boxes).dtype)
