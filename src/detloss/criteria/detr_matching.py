"""Match the outputs of a set-prediction detector with their objects, all decoder layers in one call of the assigner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from detloss.assigners.hungarian import repeat_targets
from detloss.assigners.targets import PaddedTargets
from detloss.criteria.base import kept_rows
from detloss.criteria.detr_outputs import Output, denoising_assignment
from detloss.criteria.levels import matched_labels
from detloss.criteria.positives import select_positives
from detloss.geometry.boxes import convert_boxes, to_xyxy
from detloss.geometry.iou import overlap
from detloss.types import Assignment

__all__ = ["MatchedOutput", "Pairs", "match_outputs", "pairs_of"]


@dataclass(frozen=True)
class MatchedOutput:
    """An output, its assignment, ``labels [B, Q]`` (C for no object) and ``weight [B·Q]`` of its rows (``None``: all 1)."""

    output: Output
    assignment: Assignment
    labels: Tensor
    weight: Tensor | None

    def total_weight(self, loss: nn.Module) -> Tensor:
        """Σ w over the rows, each times the ``class_weight`` of its label where the loss has one."""
        weight = torch.ones_like(self.labels, dtype=self.output.logits.dtype).reshape(-1) if self.weight is None else self.weight
        per_class = getattr(loss, "class_weight", None)
        if isinstance(per_class, Tensor):
            weight = weight * per_class.to(weight)[self.labels.reshape(-1)]
        return weight.sum()


@dataclass(frozen=True)
class Pairs:
    """Matched queries: ``boxes`` and ``true [B·K, 4]`` (cx, cy, w, h), ``weight [B·K]`` 1 or 0, and ``iou [B, Q]``."""

    boxes: Tensor
    true: Tensor
    weight: Tensor
    iou: Tensor


def match_outputs(
    assigner: Callable[..., Assignment],
    outputs: Sequence[Output],
    truth: PaddedTargets,
    dn_gt_index: Tensor | None,
    num_classes: int,
    no_object_weight: float | None,
    class_agnostic_encoder: bool,
) -> list[MatchedOutput]:
    """Every output with its assignment; those with the same number of queries and columns are matched in one call.

    Args:
        assigner: ``assigner(None, targets, scores, boxes)``.
        outputs: B images each.
        truth: objects in the unit of the boxes.
        dn_gt_index: see :func:`detloss.criteria.detr_outputs.denoising_assignment`.
        num_classes: C.
        no_object_weight: weight of rows without an object; ``None``: 1.
        class_agnostic_encoder: every object is of class 0 for the encoder.
    """
    seen = {stage: truth for stage in ("decoder", "aux", "enc", "dn")}
    if class_agnostic_encoder:
        seen["enc"] = replace(truth, labels=torch.zeros_like(truth.labels))
    found: dict[str, Assignment] = {}
    free = [output for output in outputs if output.stage != "dn"]
    for _, alike in groupby(sorted(free, key=_shape), key=_shape):
        found.update(_assign(assigner, list(alike), seen))
    made = []
    for output in outputs:
        given = output.stage == "dn"
        assignment = denoising_assignment(dn_gt_index, truth, output.logits) if given else found[output.suffix]
        labels = matched_labels(seen[output.stage], assignment, num_classes)
        weight = kept_rows(truth, assignment, output.logits.dtype, always=given or no_object_weight is not None)
        if no_object_weight is not None and weight is not None:
            weight = torch.where(assignment.positive.reshape(-1), weight, weight * no_object_weight)
        made.append(MatchedOutput(output, assignment, labels, weight))
    return made


def _shape(output: Output) -> tuple[int, ...]:
    return tuple(output.logits.shape[1:])


@torch.no_grad()
def _assign(
    assigner: Callable[..., Assignment], outputs: Sequence[Output], seen: dict[str, PaddedTargets]
) -> Iterator[tuple[str, Assignment]]:
    """One call of the assigner for outputs of one shape, by suffix."""
    truth, count = seen["decoder"], len(outputs)
    labels = torch.cat([seen[output.stage].labels for output in outputs])
    scores = torch.cat([output.logits.detach() for output in outputs])
    boxes = to_xyxy(torch.cat([output.boxes.detach() for output in outputs]), "cxcywh")
    joint = assigner(None, replace(repeat_targets(truth, count), labels=labels), scores, boxes)
    shape = (count, len(truth.labels), scores.shape[1])
    gt_index, ignore = joint.gt_index.reshape(shape), joint.ignore.reshape(shape)
    quality: Any = [None] * count if joint.quality is None else joint.quality.reshape(shape)
    for k, output in enumerate(outputs):
        yield output.suffix, Assignment(gt_index[k], ignore[k], quality[k])


def pairs_of(matched: MatchedOutput, truth: PaddedTargets) -> Pairs:
    """The matched queries of an output, with the boxes of their objects in ``truth`` and the IoU, which has no gradient."""
    boxes, assignment = matched.output.boxes, matched.assignment
    most = boxes.shape[1] if matched.output.stage == "dn" else min(truth.labels.shape[1], boxes.shape[1])
    chosen = select_positives(assignment, most if truth.labels.shape[1] else 0)
    own = chosen.take(boxes)
    index = chosen.take(assignment.gt_index).unsqueeze(-1).expand(-1, -1, 4)
    true = convert_boxes(truth.boxes, "xyxy", "cxcywh").gather(1, index)
    with torch.no_grad():
        iou = overlap(own, true, "cxcywh").iou.nan_to_num()
    weight = chosen.filled.to(boxes.dtype).reshape(-1)
    return Pairs(own.reshape(-1, 4), true.reshape(-1, 4), weight, chosen.scatter(iou, boxes.shape[1]))
