"""The criterion of CenterNet: objects as points, by a heat map of their centres, their size and the offset in the cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import check_option, upcast
from detloss.criteria.base import Criterion, LossConfig, Matched, Term, assignment_metrics, check_classes, kept_rows
from detloss.criteria.centernet_cells import CellOwner, CenterAssigner, Centres, SizeRanges, default_size_ranges
from detloss.criteria.levels import check_images, check_maps, check_strides, map_sizes, rows
from detloss.geometry.boxes import to_xyxy
from detloss.geometry.gaussian import gaussian_heatmap, gaussian_radius
from detloss.geometry.iou import overlap
from detloss.geometry.points import Points, grid_points
from detloss.losses.base import Loss
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import Assignment, LossDict, Target

__all__ = ["CenterNetLoss"]

SIZE_UNITS = ("stride", "pixel")
RADIUS_RULES = ("exact", "official")
BOX_COUNTS = ("objects", "peaks")
Maps = Tensor | Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class CenterNetMatched(Matched):
    """``logits`` and ``heat [B, P, C]``; per object ``sizes``, ``offsets`` and their targets ``[B, G, 2]``, sizes in strides;
    ``counted [B, G]`` bool, the objects that pay for size and offset."""

    logits: Tensor
    heat: Tensor
    centres: Centres
    counted: Tensor
    sizes: Tensor
    true_sizes: Tensor
    offsets: Tensor


@CRITERIA.register_module(
    family="dense",
    formula="Gaussian focal (all cells) / peaks + 0.1 · |size| / 2n + |offset| / 2n, n objects over all ranks",
    paper="Zhou et al. 2019, arXiv:1904.07850",
)
class CenterNetLoss(Criterion):
    """CenterNet criterion: ``losses = criterion(heatmaps, sizes, offsets, targets)``.

    The target of the heat map has a Gaussian around the cell under the centre of each object, in the channel of its class
    (the largest where several meet), as wide as the box may move and still overlap itself by ``min_overlap``. ``loss_cls``
    runs over all cells and classes and is divided by the number of peaks (cells and classes with the value 1);
    ``loss_size`` and ``loss_offset`` compare (width, height) and (x, y) at the cell of each object, and are divided by twice
    the number of objects that pay, all counted over all ranks, at least 1.

    An object whose centre is off the map gets nothing. Of several objects with one centre cell all are drawn; the smallest
    one (the first among equals) pays for size and offset, see ``cell_owner``. Cells whose centre lies in an ignore box and
    that are no centre of an object are left out of ``loss_cls``.

    Args:
        num_classes: number of classes C; labels are 0…C−1.
        strides: pixels per cell of every level; one level of stride 4 in the paper.
        size_ranges: (lo, hi) per level in pixels of the longer side; ``None``: one level takes all objects, several split
            them at 16 strides.
        loss_cls: object, configuration or name of a loss of logits and dense targets; GaussianFocalLoss.
        loss_size: likewise of coordinates; L1Loss.
        loss_offset: likewise; L1Loss.
        min_overlap: IoU in (0, 1) that sets the width of the Gaussians.
        radius: ``"exact"``, or ``"official"`` for the wider Gaussians of the official code, from sides rounded up to cells.
        cell_owner: who pays for size and offset in a cell that is the centre of several objects: the ``"smallest"``, the
            ``"last"`` of the image, or ``"all"`` of them.
        size_unit: unit of ``sizes``, ``"stride"`` (cells of the level) or ``"pixel"``; the loss compares them in that unit.
        box_count: divide ``loss_size`` and ``loss_offset`` by twice the ``"objects"`` that pay or twice the ``"peaks"``.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: weights by name of the term; ``loss_size`` has 0.1 unless given, the others 1.
        memory_budget: bytes for the temporaries of the assignment and the drawing.

    Presets: ``"centernet"`` (the official code, without its 1e-4 in the denominators and its clamp of probabilities to
    [1e-4, 1 − 1e-4]), ``"mmdet"`` and ``"visdet"``.

    >>> criterion = CenterNetLoss(num_classes=3)
    >>> maps = torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    >>> losses = criterion(*maps, [{"boxes": torch.tensor([[4, 4, 12, 8]]), "labels": torch.tensor([2])}])
    >>> losses.unweighted["loss_size"], losses.unweighted["loss_offset"]  # |1 − 2| + |1 − 1| and |0 − 0| + |0 − 0.5|, over 2
    (tensor(0.5000), tensor(0.2500))
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all cells that are not ignored, all classes", "peaks of the heat maps on all ranks, at least 1"),
        Term("loss_size", "objects with a cell", "2 × objects that pay on all ranks, at least 1 (box_count: peaks)"),
        Term("loss_offset", "objects with a cell", "2 × objects that pay on all ranks, at least 1 (box_count: peaks)"),
    )
    BACKGROUND: ClassVar[str] = (
        "classes 0…C−1, a cell without a peak is background, less so near one; ignore boxes count neither way"
    )
    COUNTS: ClassVar[int] = 2
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "centernet": {"radius": "official", "cell_owner": "all", "normalizer": "local"},
        "mmdet": {"min_overlap": 0.3, "cell_owner": "last", "box_count": "peaks", "normalizer": "local"},
        "visdet": {"min_overlap": 0.3, "cell_owner": "last", "box_count": "peaks", "normalizer": "local"},
    }

    def __init__(
        self,
        num_classes: int,
        strides: Sequence[int] = (4,),
        size_ranges: SizeRanges | None = None,
        *,
        loss_cls: LossConfig | None = None,
        loss_size: LossConfig | None = None,
        loss_offset: LossConfig | None = None,
        min_overlap: float = 0.7,
        radius: Literal["exact", "official"] = "exact",
        cell_owner: CellOwner | Literal["all"] = "smallest",
        size_unit: Literal["stride", "pixel"] = "stride",
        box_count: Literal["objects", "peaks"] = "objects",
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__({"loss_size": 0.1}, normalizer)
        self.set_weights(weights or {})
        for name, value, valid in (
            ("radius", radius, RADIUS_RULES),
            ("cell_owner", cell_owner, ("smallest", "last", "all")),
            ("size_unit", size_unit, SIZE_UNITS),
            ("box_count", box_count, BOX_COUNTS),
        ):
            check_option("CenterNetLoss", name, value, valid)
        self.num_classes = check_classes("CenterNetLoss", num_classes)
        self.strides = check_strides("CenterNetLoss", strides)
        self.loss_cls = self.build_term("loss_cls", loss_cls, "GaussianFocalLoss")
        self.loss_size = _of_coordinates("loss_size", self.build_term("loss_size", loss_size, "L1Loss"))
        self.loss_offset = _of_coordinates("loss_offset", self.build_term("loss_offset", loss_offset, "L1Loss"))
        gaussian_radius(torch.ones(1), torch.ones(1), min_overlap)  # says what is wrong with it
        self.min_overlap, self.radius = min_overlap, radius
        self.cell_owner, self.size_unit, self.box_count = cell_owner, size_unit, box_count
        ranges = default_size_ranges(self.strides) if size_ranges is None else size_ranges
        if len(ranges) != len(self.strides):
            raise ValueError(
                f"CenterNetLoss: expected one size range per stride; got {len(ranges)} ranges and {len(self.strides)} strides"
            )
        self.assigner = CenterAssigner(ranges, "smallest" if cell_owner == "all" else cell_owner, memory_budget)

    def forward(self, heatmaps: Maps, sizes: Maps, offsets: Maps, targets: Sequence[Target]) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            heatmaps: logits ``[B, C, H, W]``, a list with one map per level, or the map itself where there is one level.
            sizes: likewise (width, height) ``[B, 2, H, W]``, in units of ``size_unit``.
            offsets: likewise (x, y) ``[B, 2, H, W]`` of the centre in its cell, in cells.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, optional ``iscrowd [G]`` and
                ``ignore_boxes [K, 4]``.

        Returns:
            LossDict with ``loss_cls``, ``loss_size``, ``loss_offset`` and the metrics ``num_pos`` (cells that an object
            owns), ``num_gt``, ``num_gt_without_pos`` and ``mean_iou`` of the boxes predicted there.
        """
        return self.finish(self.match(heatmaps, sizes, offsets, targets))

    def match(self, heatmaps: Maps, sizes: Maps, offsets: Maps, targets: Sequence[Target]) -> CenterNetMatched:
        """Find the cell of every object, draw the heat maps and count. Arguments as in the call."""
        given = {"heatmaps": heatmaps, "sizes": sizes, "offsets": offsets}
        maps = {name: [x] if isinstance(x, Tensor) else x for name, x in given.items()}
        check_maps("CenterNetLoss", maps, {"heatmaps": self.num_classes, "sizes": 2, "offsets": 2}, self.strides)
        logits, sides, places = (rows(levels) for levels in maps.values())
        levels = map_sizes(maps["heatmaps"])
        dtype = upcast(sides[:0]).dtype
        points = grid_points(levels, self.strides[: len(levels)], device=sides.device, dtype=dtype)
        truth = pad_targets(targets, points.xy, self.num_classes)
        check_images("CenterNetLoss", truth, len(logits))
        assignment = self.assigner(points, truth)
        centres = self.assigner.centres(points, truth)
        heat = self._draw(points, truth, centres)
        counted = centres.found if self.cell_owner == "all" else _owns(centres, assignment)
        peaks = (heat == 1).sum()
        counts = torch.stack((peaks, counted.sum() if self.box_count == "objects" else peaks)).to(dtype)
        return CenterNetMatched(
            counts=counts,
            minimum=(1.0, 1.0),
            truth=truth,
            assignment=assignment,
            priors=points,
            logits=logits,
            heat=heat,
            centres=centres,
            counted=counted,
            sizes=upcast(_at(sides, centres.cell)),
            true_sizes=self._true_sizes(truth, centres),
            offsets=upcast(_at(places, centres.cell)),
        )

    def compute(self, matched: CenterNetMatched, normalizers: Tensor) -> LossDict:
        """The terms of a matched batch, divided by (peaks, objects)."""
        peaks, objects = normalizers.unbind()
        truth, assignment, counted = matched.truth, matched.assignment, matched.counted
        weight = counted.reshape(-1).to(matched.sizes.dtype)
        terms = {
            "loss_cls": self.loss_cls(
                matched.logits.reshape(-1, self.num_classes),
                matched.heat.reshape(-1, self.num_classes),
                weight=kept_rows(truth, assignment, matched.heat.dtype),
                avg_factor=peaks,
            ),
            "loss_size": self.loss_size(
                matched.sizes.reshape(-1, 2), matched.true_sizes.reshape(-1, 2), weight=weight, avg_factor=2 * objects
            ),
            "loss_offset": self.loss_offset(
                matched.offsets.reshape(-1, 2), matched.centres.offset.reshape(-1, 2), weight=weight, avg_factor=2 * objects
            ),
        }
        return self.collect(terms, assignment_metrics(truth, assignment, self._iou_of_owners(matched)))

    @torch.no_grad()
    def _true_sizes(self, truth: PaddedTargets, centres: Centres) -> Tensor:
        """``[B, G, 2]`` (width, height) in the unit of the predictions."""
        pixels = truth.boxes[..., 2:] - truth.boxes[..., :2]
        return pixels / centres.stride.unsqueeze(-1) if self.size_unit == "stride" else pixels

    @torch.no_grad()
    def _iou_of_owners(self, matched: CenterNetMatched) -> Tensor:
        """``[B, G]`` IoU of the predicted box with each object that owns its cell; 0 for the others and for NaN."""
        centres, truth, stride = matched.centres, matched.truth, matched.centres.stride.unsqueeze(-1)
        size = matched.sizes * stride if self.size_unit == "stride" else matched.sizes
        middle = (centres.column_row + matched.offsets) * stride
        iou = overlap(to_xyxy(torch.cat((middle, size), dim=-1), "cxcywh"), truth.boxes).iou
        return torch.where(_owns(centres, matched.assignment), torch.nan_to_num(iou), 0.0)

    @torch.no_grad()
    def _draw(self, points: Points, truth: PaddedTargets, centres: Centres) -> Tensor:
        """``[B, P, C]`` target of the heat maps of all levels."""
        sides = (truth.boxes[..., 2:] - truth.boxes[..., :2]) / centres.stride.unsqueeze(-1)
        official = self.radius == "official"
        width, height = (sides.ceil() if official else sides).unbind(-1)
        reach = gaussian_radius(height, width, self.min_overlap, official=official).floor()
        maps = [
            gaussian_heatmap(
                centres.column_row,
                reach,
                truth.labels,
                centres.found & (centres.level == level),
                size,
                self.num_classes,
                self.assigner.memory_budget,
            )
            for level, size in enumerate(points.sizes)
        ]
        return rows(maps)


def _of_coordinates(name: str, loss: nn.Module) -> nn.Module:
    """The loss itself; ``ValueError`` for one that compares boxes."""
    if isinstance(loss, Loss) and loss.box_space == "corners":
        raise ValueError(
            f"CenterNetLoss: {name} compares numbers one by one, such as L1Loss or SmoothL1Loss; got {type(loss).__name__}"
        )
    return loss


def _owns(centres: Centres, assignment: Assignment) -> Tensor:
    """``[B, G]`` bool: the object has a cell and no other one owns it."""
    if not assignment.gt_index.shape[1]:
        return centres.found
    objects = torch.arange(centres.cell.shape[1], device=centres.cell.device)
    return centres.found & (assignment.gt_index.gather(1, centres.cell) == objects)


def _at(values: Tensor, cell: Tensor) -> Tensor:
    """Rows ``[B, G, D]`` of ``values [B, P, D]`` at the cell ``[B, G]`` of every object."""
    if not values.shape[1]:
        return values.sum(1, keepdim=True).expand(-1, cell.shape[1], -1)  # maps without cells: connected zeros
    return values.gather(1, cell.unsqueeze(-1).expand(-1, -1, values.shape[2]))
