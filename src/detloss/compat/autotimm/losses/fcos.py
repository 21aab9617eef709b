"""``FCOSLoss`` of autotimm in both of its forms: the one of its documentation and the one of its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detloss.assigners.fcos import RegressRanges
from detloss.checks import check_non_negative
from detloss.compat.autotimm.losses.assigned import assigned_parts, check_levels, strict_parts
from detloss.compat.autotimm.losses.elementary import CenternessLoss, FocalLoss
from detloss.criteria import fcos
from detloss.types import Target

__all__ = ["FCOSLoss"]

PARTS = {"cls_loss": "loss_cls", "reg_loss": "loss_box", "centerness_loss": "loss_centerness"}


def weight_of(name: str, value: float, documented: float | None) -> float:
    """The weight of a term, given under the name of the source or under that of the documentation, not both."""
    if documented is None:
        documented = value
    elif value != 1.0:
        raise TypeError(f"FCOSLoss: {name}_weight={value} and {name}_loss_weight={documented} are the same option; give one")
    check_non_negative("FCOSLoss", **{f"{name}_weight": documented})
    return documented


def kind_of(values: object) -> str:
    """The type of ``values`` and, for a list, of what is in it."""
    inside = sorted({type(one).__name__ for one in values}) if isinstance(values, Sequence) else []
    return type(values).__name__ + (f" of {', '.join(inside)}" if inside else "")


class FCOSLoss(nn.Module):
    """FCOS loss with the names of autotimm, which documents one class and ships another; this is both.

    **As documented**: ``loss_fn(cls_scores, bbox_preds, centernesses, targets)`` with ``targets`` a list of dicts with
    ``boxes [G, 4]`` (corners in pixels, integers too) and ``labels [G]``. Locations are assigned and the losses are those of
    :class:`detloss.FCOSLoss`: focal over all locations, GIoU and centerness over positives, each divided by the number of
    positives. ``cls_loss``, ``reg_loss`` and ``centerness_loss`` are those before weighting, as its page says; ``loss`` and
    ``total_loss`` are the weighted sum. There this call is a ``TypeError``.

    **As in its source**: six lists over levels, of predictions and of targets that are assigned already. The parts are those
    after weighting, as in its source, and sum to ``loss`` and ``total_loss``. What differs, each a defect there:

    * Background (−1, also C) counts as negative; there it is dropped, so a false alarm on background costs nothing. A
      target below −1 is ignored.
    * Every part is the sum over batch and levels divided by the number of positives, over all ranks. There the class part is a
      mean per level, summed over levels, and the centerness a mean per level that is divided once more.
    * −ln IoU never goes below 0; there two negative distances have a positive product.
    * Without positives the parts are zeros that are connected to the predictions; there they are Python floats.

    ``strict=True`` gives the numbers of autotimm 0.7 in the form of its source, to continue a run whose weights were tuned with
    them.

    Args:
        num_classes: number of classes C.
        focal_alpha: alpha of the focal loss.
        focal_gamma: gamma of the focal loss.
        cls_weight: weight of the class part.
        reg_weight: weight of the box part.
        centerness_weight: weight of the centerness part.
        cls_loss_weight: ``cls_weight`` under its documented name.
        reg_loss_weight: ``reg_weight`` under its documented name.
        centerness_loss_weight: ``centerness_weight`` under its documented name.
        strides: pixels per cell of every level; fewer maps may be given.
        regress_ranges: (lo, hi) in pixels per level; ``None`` for (−1, 8 s₀), (8 s₀, 8 s₁) … (.., ∞).
        strict: the numbers of autotimm 0.7 for targets that are assigned already.

    >>> import torch
    >>> maps = [torch.zeros(1, 3, 4, 4)], [torch.full((1, 4, 4, 4), 8.0)], [torch.zeros(1, 1, 4, 4)]
    >>> losses = FCOSLoss(num_classes=3)(*maps, [{"boxes": torch.tensor([[4, 4, 20, 20]]), "labels": torch.tensor([2])}])
    >>> sorted(losses), losses["reg_loss"]
    (['centerness_loss', 'cls_loss', 'loss', 'reg_loss', 'total_loss'], tensor(0.))
    """

    def __init__(
        self,
        num_classes: int,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        cls_weight: float = 1.0,
        reg_weight: float = 1.0,
        centerness_weight: float = 1.0,
        *,
        cls_loss_weight: float | None = None,
        reg_loss_weight: float | None = None,
        centerness_loss_weight: float | None = None,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        regress_ranges: RegressRanges | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_weight = weight_of("cls", cls_weight, cls_loss_weight)
        self.reg_weight = weight_of("reg", reg_weight, reg_loss_weight)
        self.centerness_weight = weight_of("centerness", centerness_weight, centerness_loss_weight)
        self.strict = strict
        self.focal_loss = FocalLoss(focal_alpha, focal_gamma)
        self.centerness_loss = CenternessLoss()
        self.criterion = fcos.FCOSLoss(num_classes, focal_alpha, focal_gamma, strides=strides, regress_ranges=regress_ranges)

    def forward(
        self,
        cls_preds: Sequence[Tensor],
        reg_preds: Sequence[Tensor],
        centerness_preds: Sequence[Tensor],
        cls_targets: Sequence[Target] | Sequence[Tensor] | None = None,
        reg_targets: Sequence[Tensor] | None = None,
        centerness_targets: Sequence[Tensor] | None = None,
        *,
        targets: Sequence[Target] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            cls_preds: per level logits ``[B, C, H, W]``.
            reg_preds: per level distances ``[B, 4, H, W]`` (left, top, right, bottom) in pixels.
            centerness_preds: per level logits ``[B, 1, H, W]``.
            cls_targets: the objects of each image (see the class); or per level class indices ``[B, H, W]``, −1 for background.
            reg_targets: per level distances ``[B, 4, H, W]``; only those of positives count.
            centerness_targets: per level centerness ``[B, H, W]`` in [0, 1]; likewise.
            targets: the objects of each image, by keyword.

        Returns:
            ``loss`` and ``total_loss``, the same number, with ``cls_loss``, ``reg_loss`` and ``centerness_loss``.
        """
        objects: Any = cls_targets if targets is None else targets
        if reg_targets is None and centerness_targets is None:
            return self._of_objects(cls_preds, reg_preds, centerness_preds, objects)
        if targets is not None or cls_targets is None or reg_targets is None or centerness_targets is None:
            raise TypeError(
                "FCOSLoss: expected (cls_preds, reg_preds, centerness_preds, targets) with one dict of boxes and labels per "
                "image, or the six lists (…, cls_targets, reg_targets, centerness_targets); got a mixture"
            )
        predictions, truth = (cls_preds, reg_preds, centerness_preds), (objects, reg_targets, centerness_targets)
        levels = check_levels("FCOSLoss", predictions, truth, self.num_classes)
        compute = strict_parts if self.strict else assigned_parts
        parts = compute(levels, self.num_classes, self.focal_loss.alpha, self.focal_loss.gamma)
        weighted = {name: self._weights[name] * part for name, part in parts.items()}
        return self._with_total(weighted, weighted)

    @property
    def _weights(self) -> dict[str, float]:
        return dict(zip(PARTS, (self.cls_weight, self.reg_weight, self.centerness_weight), strict=True))

    @staticmethod
    def _with_total(parts: Mapping[str, Tensor], weighted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        total = weighted["cls_loss"] + weighted["reg_loss"] + weighted["centerness_loss"]
        return {"loss": total, **parts, "total_loss": total}

    def _of_objects(
        self, cls: Sequence[Tensor], reg: Sequence[Tensor], centerness: Sequence[Tensor], objects: Sequence[Target]
    ) -> dict[str, Tensor]:
        """The documented form."""
        if not isinstance(objects, Sequence) or not all(isinstance(one, Mapping) for one in objects):
            raise TypeError(f"FCOSLoss: targets must be a list of dicts of boxes and labels; got {kind_of(objects)}")
        losses = self.criterion(cls, reg, centerness, objects)
        parts = {name: losses[term] for name, term in PARTS.items()}
        return self._with_total(parts, {name: self._weights[name] * part for name, part in parts.items()})
