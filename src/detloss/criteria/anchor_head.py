"""What criteria of anchor-based dense heads share: anchors of the maps, rows of their predictions, what a box loss is fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detloss.checks import check_float, check_option, check_positive, shape_of
from detloss.criteria.levels import check_strides
from detloss.geometry.anchors import ORDERS, Anchors, grid_anchors
from detloss.geometry.deltas import box_to_delta, delta_to_box
from detloss.geometry.iou import overlap
from detloss.types import Number

__all__ = ["AnchorGrid", "GivenAnchors", "box_pair", "check_box_loss", "check_delta_weights", "iou_of_positives"]

GivenAnchors = Anchors | Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class AnchorGrid:
    """Where the anchors of a head lie: the options of a criterion, and the anchors of maps of a given size.

    Attributes:
        where: name of the criterion, for messages.
        strides: pixels per cell of every level.
        sizes: sizes of the anchors of every level in pixels (square roots of the areas); equally many on all levels.
        ratios: height / width.
        offset: place of the centre in its cell in cells, see :func:`detloss.geometry.grid_anchors`.
        order: which runs slowest within a cell, ``"ratio"`` or ``"size"``.
        rounded: corners rounded to whole pixels.
    """

    where: str
    strides: tuple[Number, ...]
    sizes: tuple[tuple[Number, ...], ...]
    ratios: tuple[float, ...]
    offset: float = 0.0
    order: Literal["ratio", "size"] = "ratio"
    rounded: bool = False

    @classmethod
    def of(
        cls,
        where: str,
        strides: Sequence[Number],
        sizes: Sequence[Sequence[Number]] | None,
        scales: Sequence[Number],
        ratios: Sequence[float],
        offset: float = 0.0,
        order: Literal["ratio", "size"] = "ratio",
        rounded: bool = False,
    ) -> AnchorGrid:
        """Check the options. Without ``sizes`` in pixels, they are ``scales`` times the stride of the level."""
        steps = check_strides(where, strides)
        check_option(where, "anchor_order", order, ORDERS)
        if sizes is None:
            sizes = [[scale * stride for scale in scales] for stride in steps]
        per_level = tuple(tuple(level) for level in sizes)
        if len(per_level) != len(steps) or len({len(level) for level in per_level}) != 1 or not per_level[0]:
            raise ValueError(
                f"{where}: anchor_sizes must hold equally many sizes for each of the {len(steps)} strides {steps}; got {sizes!r}"
            )
        if not len(ratios):
            raise ValueError(f"{where}: anchor_ratios must hold at least one ratio; got none")
        for ratio in ratios:
            check_positive(where, anchor_ratios=ratio)
        for size in (size for level in per_level for size in level):
            check_positive(where, anchor_sizes=size)
        return cls(where, steps, per_level, tuple(float(r) for r in ratios), float(offset), order, rounded)

    @property
    def per_cell(self) -> int:
        """Number of anchors of a cell."""
        return len(self.sizes[0]) * len(self.ratios)

    def anchors(self, maps: Sequence[tuple[int, int]], like: Tensor, given: GivenAnchors | None = None) -> Anchors:
        """The anchors of maps of these (height, width), with the device and dtype of ``like``; or those ``given``, checked.

        Args:
            maps: (height, width) of every level.
            like: tensor whose device and dtype they take.
            given: ``[P, 4]`` corners in the order of the rows (level by level, cell by cell, then the anchors of a cell),
                or a list of them per level.
        """
        levels = len(maps)
        if given is None:
            return grid_anchors(
                maps, self.strides[:levels], self.sizes[:levels], self.ratios,
                offset=self.offset, order=self.order, rounded=self.rounded, device=like.device, dtype=like.dtype,
            )  # fmt: skip
        counts = [height * width * self.per_cell for height, width in maps]
        boxes = self._boxes(given, counts)
        return Anchors.of(boxes.detach().to(device=like.device, dtype=like.dtype), counts, self.strides[:levels])

    def _boxes(self, given: GivenAnchors, counts: Sequence[int]) -> Tensor:
        if isinstance(given, Anchors):
            given = given.boxes
        if not isinstance(given, Tensor):
            found = [len(level) for level in given]
            if found != list(counts):
                raise ValueError(
                    f"{self.where}: anchors must be [P, 4] or a list per level with {list(counts)} boxes; got {found} boxes"
                )
            given = torch.cat(list(given))
        check_float(self.where, "anchors", given)
        if given.shape != (sum(counts), 4):
            raise ValueError(
                f"{self.where}: anchors must have shape [{sum(counts)}, 4], {self.per_cell} per cell of every level; "
                f"got {shape_of(given)}"
            )
        return given


def check_delta_weights(where: str, weights: Sequence[float]) -> tuple[float, ...]:
    """The four positive factors of the deltas, as a tuple."""
    if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != 4:
        raise ValueError(f"{where}: delta_weights must hold four numbers (x, y, w, h); got {weights!r}")
    for weight in weights:
        check_positive(where, delta_weights=weight)
    return tuple(float(weight) for weight in weights)


def check_box_loss(where: str, name: str, loss: nn.Module) -> None:
    """Raise ``ValueError`` when a loss that is fed corners wants another box format."""
    box_format = getattr(loss, "box_format", "xyxy")
    if box_format != "xyxy":
        raise ValueError(f"{where}: {name} is fed corners, so its box_format must be 'xyxy'; got {box_format!r}")


def box_pair(
    loss: nn.Module, references: Tensor, deltas: Tensor, boxes: Tensor, positive: Tensor, weights: Sequence[float]
) -> tuple[Any, Tensor]:
    """Predictions and targets ``[N, 4]`` as ``loss`` compares them: deltas, or corners for the IoU family.

    Args:
        loss: the box loss; its ``box_space`` decides.
        references: ``[N, 4]`` corners of anchors or proposals.
        deltas: ``[N, 4]`` predictions relative to them.
        boxes: ``[N, 4]`` corners of the matched objects.
        positive: ``[N]`` bool; other rows get a prediction of 0, so that nothing of theirs is ever decoded.
        weights: factors of the deltas.
    """
    deltas = torch.where(positive.unsqueeze(-1), deltas, 0.0)
    if getattr(loss, "box_space", "corners") == "corners":
        return delta_to_box(references, deltas, weights), boxes
    return deltas, torch.where(positive.unsqueeze(-1), box_to_delta(references, boxes, weights), 0.0)


@torch.no_grad()
def iou_of_positives(references: Tensor, deltas: Tensor, boxes: Tensor, positive: Tensor, weights: Sequence[float]) -> Tensor:
    """IoU ``[N]`` of predicted and matched boxes; 0 for other rows and for predictions that are not numbers."""
    iou = overlap(delta_to_box(references, deltas, weights), boxes).iou
    return torch.where(positive, torch.nan_to_num(iou), 0.0)
