"""SimOTA, the assigner of YOLOX: objects take their cheapest locations around the centre, as many as predictions fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, Priors
from detloss.assigners.dynamic_k import DynamicKAssigner, Pairs, Places
from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_non_negative, check_option, check_positive
from detloss.registry import ASSIGNERS
from detloss.types import Assignment, Target

__all__ = ["SimOTAAssigner"]

Candidates = Literal["centre", "box_or_centre"]
Confidence = Literal["root", "product"]
CANDIDATES, CONFIDENCES = ("centre", "box_or_centre"), ("root", "product")
OUTSIDE = 1e6
MOST_NATS = 100.0


@ASSIGNERS.register_module(
    family="dynamic",
    formula="k cheapest per object by BCE(p, one-hot) - 3 ln IoU, k = max(floor(sum of the 10 largest IoUs), 1)",
    paper="Ge et al. 2021, arXiv:2107.08430",
)
class SimOTAAssigner(DynamicKAssigner):
    """Dynamic k with a cost of classification and overlap, for locations around the centres of objects.

    cost = cls_weight · Σ_c BCE(p_c, [c = class]) − iou_weight · ln(IoU + eps), p_c = √(σ(class) σ(objectness)), or σ(class)
    without objectness; every term of the cross entropy is at most 100, as in torch. A location outside the region of an
    object costs more than every location inside: 10⁶ (cost + 1), which keeps their order. ``quality`` is the IoU.
    :class:`~detloss.assigners.dynamic_k.DynamicKAssigner` says how the costs decide.

    The defaults are those of YOLOX; ``center_radius=2.5, candidates="box_or_centre", confidence="product", eps=1e-7`` are
    mmdet's.

    Args:
        center_radius: half the side of the square region around the centre of an object, in strides.
        candidate_topk: how many of the largest IoUs are summed to k.
        cls_weight: weight of the cross entropy.
        iou_weight: weight of −ln(IoU + eps).
        candidates: ``"centre"``: the pool holds the locations within the region of an object. ``"box_or_centre"``: also
            those inside its box, and the region of an object is what lies in both.
        confidence: ``"root"`` takes √(σ(class) σ(objectness)), ``"product"`` leaves out the root.
        eps: offset of the logarithm.
        memory_budget: bytes that the temporaries of one chunk may take.
    """

    def __init__(
        self,
        center_radius: float = 1.5,
        candidate_topk: int = 10,
        cls_weight: float = 1.0,
        iou_weight: float = 3.0,
        candidates: Candidates = "centre",
        confidence: Confidence = "root",
        eps: float = 1e-8,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(memory_budget, candidate_topk=candidate_topk)
        check_positive("SimOTAAssigner", center_radius=center_radius, eps=eps)
        check_non_negative("SimOTAAssigner", cls_weight=cls_weight, iou_weight=iou_weight)
        check_option("SimOTAAssigner", "candidates", candidates, CANDIDATES)
        check_option("SimOTAAssigner", "confidence", confidence, CONFIDENCES)
        self.center_radius = center_radius
        self.candidate_topk = candidate_topk
        self.cls_weight = cls_weight
        self.iou_weight = iou_weight
        self.candidates: Candidates = candidates
        self.confidence: Confidence = confidence
        self.eps = eps

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
        objectness: Tensor | None = None,
    ) -> Assignment:
        """Assign the locations ``priors`` (P of them) to the objects of ``targets`` (B images).

        Args:
            priors: points of all levels.
            targets: one mapping per image, or padded.
            scores: class logits ``[B, P, C]``.
            boxes: predicted corners in pixels ``[B, P, 4]``.
            objectness: logits ``[B, P]``, if the head has them.
        """
        return self.assign(priors, targets, scores, boxes, objectness)

    def conditions(
        self,
        priors: Priors,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``[G, P]`` per condition: in the region that makes a candidate, with a finite prediction."""
        place = f"within {self.center_radius:g} strides of the centre"
        if self.candidates == "box_or_centre":
            place = f"inside the box or {place}"
        where = self.places(priors, targets, image)
        finite = self.finite(targets.valid.shape[1], image, scores, boxes)
        return {f"location {place}": self.pooled(where)[0], **finite}

    def pooled(self, places: Places) -> Tensor:
        near = places.near_centre(self.center_radius)
        return near if self.candidates == "centre" else near | places.inside()

    def negative(self, logits: Tensor, objectness: Tensor | None) -> Tensor:
        return self._entropies(logits, objectness)[1]

    def cost(self, pairs: Pairs, iou: Tensor) -> Tensor:
        objectness = None if pairs.objectness is None else pairs.objectness.unsqueeze(1)
        positive, negative = self._entropies(pairs.own_class(), objectness)
        classification = pairs.rest.unsqueeze(1) + (positive - negative)
        cost = self.cls_weight * classification - self.iou_weight * (iou + self.eps).log()
        region = pairs.places.near_centre(self.center_radius)
        if self.candidates == "box_or_centre":
            region = region & pairs.places.inside()
        return torch.where(region, cost, OUTSIDE * (cost + 1))

    def _entropies(self, logits: Tensor, objectness: Tensor | None) -> tuple[Tensor, Tensor]:
        """−ln p and −ln(1 − p) from logits, exact also as p nears 0 or 1, each at most 100."""
        log_p = torch_f.logsigmoid(logits)
        if objectness is None:
            log_not_p = torch_f.logsigmoid(-logits)
        else:
            log_p = (log_p + torch_f.logsigmoid(objectness)) * (0.5 if self.confidence == "root" else 1.0)
            log_not_p = (-torch.expm1(log_p)).log()
        return -log_p.clamp(min=-MOST_NATS), -log_not_p.clamp(min=-MOST_NATS)
