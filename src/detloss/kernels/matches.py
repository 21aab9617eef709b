"""What a back-end is given to match priors with objects, and what it returns: whole assignments, for assigners.

A match is to a back-end what a :class:`detloss.kernels.contract.Call` is: its metadata is checked, no value was read. All
floating tensors but logits are fp32. Losses may differ from their formula by rounding, but matches are decisions: a back-end
finds exactly the objects that the operations of torch in :mod:`detloss.assigners` find, ties included.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

from torch import Tensor

__all__ = ["MATCH_OPS", "ATSSMatch", "AlignedMatch", "Match", "MaxIoUMatch", "PairCostMatch"]


class _Match:
    """What all matches answer, as a ``Call`` does."""

    op: ClassVar[str]

    @property
    def pred(self) -> Tensor:
        """The boxes that are matched; their device is where it happens."""
        boxes: Tensor = self.boxes  # type: ignore[attr-defined]
        return boxes

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors but ``pred``."""
        values = (getattr(self, field.name) for field in fields(self) if field.name != "boxes")  # type: ignore[arg-type]
        return tuple(value for value in values if isinstance(value, Tensor))


@dataclass
class MaxIoUMatch(_Match):
    """The rule of :class:`detloss.assigners.MaxIoUAssigner` → index ``[B, P]``, quality ``[B, P]``, ignore ``[B, P]``.

    Attributes:
        boxes: corners ``[P, 4]`` or ``[B, P, 4]``.
        valid: ``[1 or B, P]`` bool, or ``None``.
        objects: corners ``[B, G, 4]``.
        present: ``[B, G]`` bool.
        positive: smallest IoU of a positive.
        negative: (lo, hi) of the IoU of negatives.
        least: smallest best IoU of an object that claims anchors.
        claims: whether objects claim their best anchors.
        last_claims: the last object that claims an anchor gets it; else the anchor's own best one.
    """

    op = "max_iou"
    boxes: Tensor
    valid: Tensor | None
    objects: Tensor
    present: Tensor
    positive: float
    negative: tuple[float, float]
    least: float
    claims: bool
    last_claims: bool


@dataclass
class ATSSMatch(_Match):
    """The rule of :class:`detloss.assigners.ATSSAssigner` → index ``[B, P]``, quality ``[B, P]``.

    Attributes:
        boxes: corners ``[P, 4]`` or ``[B, P, 4]``, level after level.
        valid: ``[B, P]`` bool, or ``None``.
        objects: corners ``[B, G, 4]``.
        present: ``[B, G]`` bool.
        counts: anchors per level.
        topk: candidates per level.
        margin: how far inside the box the centre of a positive must be.
        memory: bytes that the candidates of all objects dealt with together may take.
    """

    op = "atss"
    boxes: Tensor
    valid: Tensor | None
    objects: Tensor
    present: Tensor
    counts: tuple[int, ...]
    topk: int
    margin: float
    memory: int


@dataclass
class AlignedMatch(_Match):
    """The rule of :class:`detloss.assigners.TaskAlignedAssigner` → index ``[B, P]``, quality ``[B, P]``.

    Attributes:
        boxes: predicted corners ``[B, P, 4]``.
        scores: logits ``[B, P, C]``, fp32, bf16 or fp16, any strides.
        xy: centres of priors ``[P, 2]`` or ``[B, P, 2]``.
        valid: ``[B, P]`` bool: the prior counts; where its box is not finite it matches nothing all the same.
        region: ``[B · G, 4]`` corners of what a prior of the object has to lie in; NaN for padding.
        objects: ``[B · G, 4]`` corners.
        labels: ``[B · G]`` int64 classes.
        topk: priors that an object may choose.
        alpha: exponent of the score.
        beta: exponent of the overlap.
        iou: ``"iou"`` or ``"ciou"``.
        eps: added to the largest metric.
        memory: bytes that the pairs dealt with together may take.
    """

    op = "task_aligned"
    boxes: Tensor
    scores: Tensor
    xy: Tensor
    valid: Tensor
    region: Tensor
    objects: Tensor
    labels: Tensor
    topk: int
    alpha: float
    beta: float
    iou: str
    eps: float
    memory: int


@dataclass
class PairCostMatch(_Match):
    """The costs of :class:`detloss.assigners.HungarianAssigner` → ``[B, G, Q]``; infinite where a pair is not allowed.

    Attributes:
        boxes: predicted corners ``[B, Q, 4]``.
        objects: corners ``[B, G, 4]``.
        units: (height, width) ``[B, 2]`` that distances are measured in.
        usable: ``[B, Q]`` bool: the prediction is finite.
        valid: ``[B, G]`` bool: the object is there and finite.
        cost: what the classes cost, ``[B, G, Q]``; the result takes its memory.
        l1_weight: weight of the distance of (cx, cy, w, h).
        iou_weight: weight of the overlap.
        iou: ``"iou"``, ``"giou"``, ``"diou"`` or ``"ciou"``.
        limit: largest and, negative, smallest cost of a pair that is allowed.
    """

    op = "pair_cost"
    boxes: Tensor
    objects: Tensor
    units: Tensor
    usable: Tensor
    valid: Tensor
    cost: Tensor
    l1_weight: float
    iou_weight: float
    iou: str
    limit: float


Match: TypeAlias = MaxIoUMatch | ATSSMatch | AlignedMatch | PairCostMatch
MATCH_OPS = frozenset({MaxIoUMatch.op, ATSSMatch.op, AlignedMatch.op, PairCostMatch.op})
