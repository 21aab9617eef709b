"""What the assignment did with every object of a batch, in numbers, words and a picture. For people, not for a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.targets import PaddedTargets
from detloss.types import Assignment, Number

__all__ = ["Explanation", "ObjectReport", "explain"]

TAKEN = "every candidate went to another object"
UNKNOWN = "the assigner gives no reason"
PALETTE = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f")


@dataclass(frozen=True)
class ObjectReport:
    """What one object got.

    Attributes:
        image: index of the image in the batch.
        index: index of the object in its image.
        label: its class.
        box: corners in pixels.
        positives: number of priors responsible for it.
        per_level: the same per level.
        quality: mean quality of its positives where the assigner has one.
        reason: why it got none; ``None`` when it got some.
    """

    image: int
    index: int
    label: int
    box: tuple[float, float, float, float]
    positives: int
    per_level: tuple[int, ...]
    quality: float | None
    reason: str | None


@dataclass(frozen=True)
class Explanation:
    """The assignment of a batch: ``str(explanation)`` is a table, :meth:`plot` a picture of one image.

    Attributes:
        objects: one report per object, crowds left out.
        strides: stride of every level.
        locations: per image the centres ``[P, 2]`` of the priors.
        gt_index: ``[B, P]`` index of the object each prior is responsible for, −1 for none.
        ignore: ``[B, P]`` bool.
        ignore_boxes: per image the regions that count neither way.
    """

    objects: tuple[ObjectReport, ...]
    strides: tuple[Number, ...]
    locations: tuple[Tensor, ...]
    gt_index: Tensor
    ignore: Tensor
    ignore_boxes: tuple[Tensor, ...]

    @property
    def unassigned(self) -> tuple[ObjectReport, ...]:
        """Objects without a positive, each with its reason."""
        return tuple(report for report in self.objects if not report.positives)

    @property
    def level_histogram(self) -> tuple[int, ...]:
        """Positives per level over the whole batch."""
        return tuple(sum(report.per_level[level] for report in self.objects) for level in range(len(self.strides)))

    @property
    def reasons(self) -> dict[str, int]:
        """How many objects got nothing, by reason."""
        found: dict[str, int] = {}
        for report in self.unassigned:
            found[report.reason or UNKNOWN] = found.get(report.reason or UNKNOWN, 0) + 1
        return found

    def __str__(self) -> str:
        total = sum(report.positives for report in self.objects)
        lines = [
            f"{len(self.objects)} objects, {total} positives, {len(self.unassigned)} objects without any",
            "positives per level: " + ", ".join(f"{s:g}: {n}" for s, n in zip(self.strides, self.level_histogram, strict=True)),
            "image object class             box (x1, y1, x2, y2) positives quality  reason",
        ]
        for r in self.objects:
            box = ", ".join(f"{x:.1f}" for x in r.box)
            quality = "      -" if r.quality is None else f"{r.quality:7.3f}"
            lines.append(
                f"{r.image:5d} {r.index:6d} {r.label:5d} {box:>32s} {r.positives:9d} {quality}  {r.reason or ''}".rstrip()
            )
        return "\n".join(lines)

    def plot(self, image: int = 0, picture: Tensor | None = None, axes: Any = None) -> Any:
        """Boxes, the priors responsible for them and ignored priors over one image; needs matplotlib.

        Args:
            image: which image of the batch.
            picture: ``[3, H, W]`` or ``[H, W]`` pixels in [0, 1] or 0…255 to draw on.
            axes: matplotlib axes to draw into; a new figure when omitted.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed (``pip install matplotlib``).
        """
        axes = _axes(axes)
        if picture is not None:
            pixels = picture.detach().float().cpu()
            pixels = pixels / 255 if pixels.max() > 1 else pixels
            shown = pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels
            axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1)
        else:
            axes.invert_yaxis()
        xy, own = self.locations[image].cpu().numpy(), self.gt_index[image].cpu().numpy()
        for report in (r for r in self.objects if r.image == image):
            color = PALETTE[report.index % len(PALETTE)]
            _draw_box(axes, report.box, color, "-" if report.positives else ":")
            note = "" if report.reason is None else f": {report.reason}"
            axes.text(report.box[0], report.box[1], f"{report.index} ({report.positives}){note}", color=color, fontsize=7)
            points = xy[own == report.index]
            axes.scatter(points[:, 0], points[:, 1], s=8, color=color)
        skipped = xy[self.ignore[image].cpu().numpy()]
        axes.scatter(skipped[:, 0], skipped[:, 1], s=8, color="0.5", marker="x")
        for box in self.ignore_boxes[image].tolist():
            _draw_box(axes, box, "0.5", "--")
        axes.set_aspect("equal")
        axes.set_title(f"image {image}: object (positives)")
        return axes.figure


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Explanation.plot needs matplotlib: pip install matplotlib") from error
    return Figure(figsize=(8, 8)).add_subplot()


def _draw_box(axes: Any, box: Sequence[float], color: str, style: str) -> None:
    x1, y1, x2, y2 = box
    axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], style, color=color, linewidth=1.2)


def _reason(conditions: dict[str, Tensor], obj: int) -> str:
    """The first condition after which no prior is left for the object."""
    left: Tensor | None = None
    for sentence, passes in conditions.items():
        left = passes[obj] if left is None else left & passes[obj]
        if not bool(left.any()):
            return f"no {sentence}"
    return TAKEN if conditions else UNKNOWN


def explain(
    assigner: Any,
    priors: Any,
    truth: PaddedTargets,
    assignment: Assignment,
    scores: Tensor | None = None,
    boxes: Tensor | None = None,
) -> Explanation:
    """Count what every object got, and ask the assigner why some got nothing."""
    images, count = assignment.gt_index.shape
    level = torch.repeat_interleave(torch.arange(len(priors.counts)), torch.tensor(priors.counts)).to(assignment.gt_index.device)
    reports = []
    for image in range(images):
        conditions: dict[str, Tensor] | None = None
        for obj in truth.valid[image].nonzero().flatten().tolist():
            own = assignment.gt_index[image] == obj
            positives = int(own.sum())
            reason = None
            if not positives:
                if conditions is None:
                    conditions = dict(assigner.conditions(priors, truth, image, scores, boxes))
                reason = _reason(conditions, obj)
            quality = None if assignment.quality is None or not positives else float(assignment.quality[image][own].mean())
            x1, y1, x2, y2 = truth.boxes[image, obj].tolist()
            per_level = tuple(torch.bincount(level[own], minlength=len(priors.counts)).tolist())
            label = int(truth.labels[image, obj])
            reports.append(ObjectReport(image, obj, label, (x1, y1, x2, y2), positives, per_level, quality, reason))
    centres = priors.xy.expand(images, count, 2)
    regions = tuple(truth.ignore_boxes[image][truth.ignore_valid[image]] for image in range(images))
    return Explanation(tuple(reports), tuple(priors.strides), tuple(centres), assignment.gt_index, assignment.ignore, regions)
