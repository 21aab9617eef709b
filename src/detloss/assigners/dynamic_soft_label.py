"""Dynamic soft label assignment, of RTMDet: SimOTA with soft labels and a soft prior for the centre."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, Priors
from detloss.assigners.dynamic_k import DynamicKAssigner, Pairs, Places
from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_non_negative
from detloss.functional.classification import binary_cross_entropy
from detloss.registry import ASSIGNERS
from detloss.types import Assignment, Target

__all__ = ["DynamicSoftLabelAssigner"]

EPS = 1e-7
LARGEST_POWER = 38


@ASSIGNERS.register_module(
    family="dynamic",
    formula="k cheapest per object by (IoU - p)^2 BCE(p, IoU) - 3 ln IoU + 10^(distance/stride - 3)",
    paper="Lyu et al. 2022, arXiv:2212.07784",
)
class DynamicSoftLabelAssigner(DynamicKAssigner):
    """Dynamic k with the cost of a soft label, for locations inside objects.

    cost = Σ_c BCE(σ_c, y_c) (y_c − σ_c)² − iou_weight · ln(IoU + 10⁻⁷) + 10^(d − soft_center_radius), with y the IoU in the
    column of the class and 0 in the others, and d the distance from the centre of the object in strides. The pool holds
    the locations strictly inside an object of the image. Where the power of ten exceeds 10³⁸ the location is out of reach.
    ``quality`` is the IoU. :class:`~detloss.assigners.dynamic_k.DynamicKAssigner` says how the costs decide.

    Args:
        soft_center_radius: distance from the centre, in strides, that costs 1.
        topk: how many of the largest IoUs are summed to k.
        iou_weight: weight of −ln(IoU + 10⁻⁷).
        memory_budget: bytes that the temporaries of one chunk may take.
    """

    def __init__(
        self,
        soft_center_radius: float = 3.0,
        topk: int = 13,
        iou_weight: float = 3.0,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(memory_budget, topk=topk)
        check_non_negative("DynamicSoftLabelAssigner", soft_center_radius=soft_center_radius, iou_weight=iou_weight)
        self.soft_center_radius = soft_center_radius
        self.topk = topk
        self.iou_weight = iou_weight

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Assignment:
        """Assign the locations ``priors`` (P of them) to the objects of ``targets`` (B images).

        Args:
            priors: points of all levels.
            targets: one mapping per image, or padded.
            scores: class logits ``[B, P, C]``.
            boxes: predicted corners in pixels ``[B, P, 4]``.
        """
        return self.assign(priors, targets, scores, boxes)

    def conditions(
        self,
        priors: Priors,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``[G, P]`` per condition: inside the box, with a finite prediction."""
        where = self.places(priors, targets, image)
        finite = self.finite(targets.valid.shape[1], image, scores, boxes)
        return {"location inside the box": where.inside()[0], **finite}

    def pooled(self, places: Places) -> Tensor:
        return places.inside()

    def negative(self, logits: Tensor, objectness: Tensor | None) -> Tensor:
        return _soft_cost(logits, 0.0)

    def cost(self, pairs: Pairs, iou: Tensor) -> Tensor:
        own = pairs.own_class()
        classification = pairs.rest.unsqueeze(1) + (_soft_cost(own, iou) - _soft_cost(own, 0.0))
        dx, dy = pairs.places.offsets()
        power = (dx.square() + dy.square()).sqrt() / pairs.places.stride.unsqueeze(1) - self.soft_center_radius
        distant = torch.where(power <= LARGEST_POWER, (power * math.log(10)).exp(), torch.inf)
        return classification - self.iou_weight * (iou + EPS).log() + distant


def _soft_cost(logits: Tensor, label: Tensor | float) -> Tensor:
    """BCE(σ, y) (y − σ)² of logits and soft labels.

    σ is e^ln σ because ATen rounds its sigmoid otherwise in the last elements of a tensor, which would break ties.
    """
    return (label - torch_f.logsigmoid(logits).exp()).square() * binary_cross_entropy(logits, label)
