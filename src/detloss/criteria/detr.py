"""The criterion of DETR and its relatives: one query per object, by Hungarian matching, for every decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.hungarian import HungarianAssigner
from detloss.assigners.targets import PaddedTargets, pad_targets
from detloss.checks import check_non_negative, check_option
from detloss.criteria.base import (
    AssignerConfig,
    Criterion,
    LossConfig,
    Matched,
    Term,
    assignment_metrics,
    check_classes,
    class_target,
)
from detloss.criteria.detr_matching import MatchedOutput, Pairs, match_outputs, pairs_of
from detloss.criteria.detr_outputs import MAX_OUTPUTS, ImageSizes, Layer, corners_of, image_units, read_outputs, rescale
from detloss.criteria.detr_varifocal import matched_varifocal
from detloss.criteria.levels import check_images
from detloss.geometry.anchors import Anchors
from detloss.geometry.boxes import to_xyxy
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Target

__all__ = ["DETRLoss"]

TARGET_FORMATS = ("xyxy_pixel", "cxcywh_normalized")
BOX_COUNTS = ("objects", "pairs")
SMALLEST_WEIGHT = 1e-6  # of all rows together; no rows cost 0
FOCAL: dict[str, Any] = {"type": "HungarianAssigner", "cls_cost": "focal", "cls_weight": 2.0}


@dataclass(frozen=True, kw_only=True)
class DETRMatched(Matched):
    """All ``outputs``, the last decoder layer first, and ``unit_truth``, the objects in units of their image."""

    outputs: tuple[MatchedOutput, ...]
    unit_truth: PaddedTargets


@CRITERIA.register_module(
    family="set",
    formula="per decoder layer: CE / weights of its rows + 5 · |cxcywh| / objects + 2 · GIoU / objects, over all ranks",
    paper="Carion et al. 2020, arXiv:2005.12872",
)
class DETRLoss(Criterion):
    """DETR criterion: ``losses = criterion(pred_logits, pred_boxes, targets, aux_outputs, image_sizes)``.

    Every decoder layer is matched with the objects, one query each, all layers in one call of the assigner. Per layer,
    ``loss_cls`` runs over all queries, ``loss_box`` and ``loss_iou`` over the matched ones. Boxes are compared as (cx, cy, w,
    h) in units of the image, by losses of the IoU family as corners in the same units. Terms of the last layer have plain
    names, those of auxiliary layers end in ``_0``, ``_1`` … as in DETR, those of the encoder in ``_enc``, those of
    denoising layers in ``_dn_0`` …; they share loss and weight of the plain name, and add up to the total.

    Softmax losses have "no object" as column C; queries without an object weigh ``no_object_weight`` there, and
    ``loss_cls`` is Σ w l / Σ w over the queries of all ranks (w includes the ``class_weight`` of the loss). Losses of single
    columns (focal, varifocal …) are divided by the number of objects on all ranks, at least 1, as ``loss_box`` and
    ``loss_iou`` are; quality losses get the IoU of the pair as score. Denoising terms are divided by the number of
    denoising pairs. A query without an object counts neither way where an ignore box covers more than half of it.

    Args:
        num_classes: number of classes C; labels are 0…C−1.
        loss_cls: object, configuration or name; softmax CrossEntropyLoss.
        loss_box: likewise; L1Loss.
        loss_iou: likewise; GIoULoss.
        no_object_weight: weight of queries without an object, for softmax.
        background_column: whether logits have a column C for "no object"; ``None``: unless ``loss_cls`` is a loss of single
            columns (its ``use_sigmoid`` is true or missing).
        aux_weight: further factor of the terms of auxiliary layers.
        enc_weight: further factor of the terms of the encoder.
        dn_weight: further factor of the terms of denoising layers.
        encoder_class_agnostic: the encoder tells objects from background only: all labels count as class 0 there.
        target_format: boxes of targets, ``"xyxy_pixel"`` corners in pixels, which need ``image_sizes`` in the call, or
            ``"cxcywh_normalized"`` as in DETR's data sets.
        box_count: divide by all ``"objects"``, or by the matched ``"pairs"`` of the last layer; they differ when there are
            more objects than queries.
        assigner: object, configuration or name; HungarianAssigner with the cost that fits ``loss_cls``. It is given
            predictions and targets in units of the image.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: weights by name of the term; 1, 5 and 2 unless given.
        memory_budget: bytes for the temporaries of the matching.

    Presets: ``"detr"`` (also transformers), ``"deformable_detr"`` (official and mmdet; transformers has weight and cost 1 of
    the class), ``"dino"``, ``"rtdetr"`` (official and transformers) and ``"ultralytics"`` (its RT-DETR, but for batches
    without any object, which it charges three times as much).

    >>> criterion = DETRLoss(num_classes=2)
    >>> logits, boxes = torch.zeros(1, 2, 3), torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    >>> targets = [{"boxes": torch.tensor([[16, 16, 48, 48]]), "labels": torch.tensor([1])}]
    >>> losses = criterion(logits, boxes, targets, image_sizes=(64, 64))
    >>> losses["loss_cls"], losses["loss_box"]  # ln 3, and an exact match
    (tensor(1.0986), tensor(0.))
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_cls", "all queries of a layer that are not ignored", "softmax: their weights; else objects; on all ranks"),
        Term("loss_box", "matched queries of a layer", "objects on all ranks, at least 1 (denoising: pairs)"),
        Term("loss_iou", "matched queries of a layer", "objects on all ranks, at least 1 (denoising: pairs)"),
    )
    BACKGROUND: ClassVar[str] = "classes 0…C−1; no object is column C with softmax, else no column; ignored queries do not count"
    COUNTS: ClassVar[int] = 2 + MAX_OUTPUTS
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "detr": {},
        "deformable_detr": {"loss_cls": "FocalLoss", "assigner": FOCAL, "weights": {"loss_cls": 2.0}},
        "dino": {"loss_cls": "FocalLoss", "assigner": FOCAL},
        "rtdetr": {"loss_cls": {"type": "MatchedVarifocalLoss"}, "assigner": FOCAL},
        "ultralytics": {
            "loss_cls": {"type": "MatchedVarifocalLoss", "alpha": 0.25, "gamma": 1.5, "constant_factor": False},
            "assigner": FOCAL, "box_count": "pairs", "normalizer": "local",
        },
    }  # fmt: skip

    def __init__(
        self,
        num_classes: int,
        *,
        loss_cls: LossConfig | None = None,
        loss_box: LossConfig | None = None,
        loss_iou: LossConfig | None = None,
        no_object_weight: float = 0.1,
        background_column: bool | None = None,
        aux_weight: float = 1.0,
        enc_weight: float = 1.0,
        dn_weight: float = 1.0,
        encoder_class_agnostic: bool = False,
        target_format: Literal["xyxy_pixel", "cxcywh_normalized"] = "xyxy_pixel",
        box_count: Literal["objects", "pairs"] = "objects",
        assigner: AssignerConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__({"loss_box": 5.0, "loss_iou": 2.0}, normalizer)
        self.set_weights(weights or {})
        check_non_negative(
            "DETRLoss", no_object_weight=no_object_weight, aux_weight=aux_weight, enc_weight=enc_weight, dn_weight=dn_weight
        )
        check_option("DETRLoss", "target_format", target_format, TARGET_FORMATS)
        check_option("DETRLoss", "box_count", box_count, BOX_COUNTS)
        self.num_classes = check_classes("DETRLoss", num_classes)
        self.loss_cls = self.build_term("loss_cls", matched_varifocal(loss_cls), "CrossEntropyLoss")
        self.loss_box = self.build_term("loss_box", loss_box, "L1Loss")
        self.loss_iou = self.build_term("loss_iou", loss_iou, "GIoULoss")
        for name, loss in (("loss_box", self.loss_box), ("loss_iou", self.loss_iou)):
            box_format = getattr(loss, "box_format", "xyxy")
            if box_format != "xyxy":
                raise ValueError(f"DETRLoss: {name} is fed corners, so its box_format must be 'xyxy'; got {box_format!r}")
        softmax = not getattr(self.loss_cls, "use_sigmoid", True) if background_column is None else background_column
        self.background_column, self.no_object_weight = softmax, no_object_weight
        self.stage_weights = {"decoder": 1.0, "aux": aux_weight, "enc": enc_weight, "dn": dn_weight}
        self.encoder_class_agnostic = encoder_class_agnostic
        self.target_format, self.box_count = target_format, box_count
        cost = {} if softmax else {k: v for k, v in FOCAL.items() if k != "type"}
        self.assigner = self.build_assigner(assigner, HungarianAssigner(**cost, memory_budget=memory_budget))

    def forward(
        self,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        targets: Sequence[Target],
        aux_outputs: Sequence[Layer] | None = None,
        image_sizes: ImageSizes | None = None,
        *,
        enc_outputs: Layer | None = None,
        dn_outputs: Sequence[Layer] | None = None,
        dn_gt_index: Tensor | None = None,
    ) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            pred_logits: ``[B, Q, C + 1]`` for softmax, else ``[B, Q, C]``, of the last decoder layer.
            pred_boxes: ``[B, Q, 4]`` (cx, cy, w, h) in units of the image.
            targets: per image ``boxes [G, 4]`` (see ``target_format``), ``labels [G]``, optional ``iscrowd [G]`` and
                ``ignore_boxes [K, 4]``.
            aux_outputs: the other decoder layers, first to last: pairs (logits, boxes) or dicts of ``pred_logits`` and
                ``pred_boxes``.
            image_sizes: (height, width) in pixels, one pair for all images or ``[B, 2]``.
            enc_outputs: likewise one layer, the encoder's own proposals.
            dn_outputs: likewise the layers of the denoising queries, N of them.
            dn_gt_index: ``[B, N]`` index of the object that each denoising query reconstructs; −1 for queries that should
                find nothing; −2 for padding, which is left out.

        Returns:
            LossDict with ``loss_cls``, ``loss_box``, ``loss_iou`` of every layer and, of the last one, the metrics
            ``num_pos``, ``num_gt``, ``num_gt_without_pos`` and ``mean_iou``.
        """
        return self.finish(
            self.match(
                pred_logits, pred_boxes, targets, aux_outputs, image_sizes,
                enc_outputs=enc_outputs, dn_outputs=dn_outputs, dn_gt_index=dn_gt_index,
            )
        )  # fmt: skip

    def match(
        self,
        pred_logits: Tensor,
        pred_boxes: Tensor,
        targets: Sequence[Target],
        aux_outputs: Sequence[Layer] | None = None,
        image_sizes: ImageSizes | None = None,
        *,
        enc_outputs: Layer | None = None,
        dn_outputs: Sequence[Layer] | None = None,
        dn_gt_index: Tensor | None = None,
    ) -> DETRMatched:
        """Match every layer and count. Arguments as in the call."""
        channels = self.num_classes + self.background_column
        outputs = read_outputs((pred_logits, pred_boxes), aux_outputs, enc_outputs, dn_outputs, channels)
        last = outputs[0]
        truth, unit_truth, units = self._objects(targets, image_sizes, last.boxes)
        matched = match_outputs(
            self.assigner,
            outputs,
            unit_truth,
            dn_gt_index,
            self.num_classes,
            self.no_object_weight if self.background_column else None,
            self.encoder_class_agnostic,
        )
        corners = to_xyxy(last.boxes.detach(), "cxcywh") * units[:, None]
        counts = self._counts(matched, truth)
        return DETRMatched(
            counts=counts,
            minimum=(1.0, 1.0, *[SMALLEST_WEIGHT] * (len(counts) - 2)),
            truth=truth,
            assignment=matched[0].assignment,
            priors=Anchors.of(corners),
            scores=last.logits.detach(),
            boxes=corners,
            outputs=tuple(matched),
            unit_truth=unit_truth,
        )

    def compute(self, matched: DETRMatched, normalizers: Tensor) -> LossDict:
        """The terms of all outputs, divided by (objects, denoising pairs, weights of the rows of each output for softmax)."""
        terms: dict[str, Tensor] = {}
        unweighted: dict[str, Tensor] = {}
        pairs = [pairs_of(one, matched.unit_truth) for one in matched.outputs]
        for k, (one, own) in enumerate(zip(matched.outputs, pairs, strict=True)):
            count = normalizers[1 if one.output.stage == "dn" else 0]
            rows = normalizers[2 + k] if self.background_column else count
            part, factor = self._terms(one, own, count, rows), self.stage_weights[one.output.stage]
            for name, value in part.items():
                terms[name + one.output.suffix] = value if factor == 1 else value * factor
                unweighted[name + one.output.suffix] = part.unweighted[name]
        return LossDict(terms, unweighted, assignment_metrics(matched.truth, matched.assignment, pairs[0].iou))

    def describe(self) -> str:
        """As :meth:`Criterion.describe`, and the factors of the other layers."""
        factors = ", ".join(f"{stage} {factor:g}" for stage, factor in self.stage_weights.items())
        return f"{super().describe()}\nevery layer has these terms; factor of the layers: {factors}"

    def _terms(self, one: MatchedOutput, pairs: Pairs, count: Tensor, rows: Tensor) -> LossDict:
        """The three terms of an output: ``rows`` divides the classes, ``count`` the boxes."""
        logits = one.output.logits.flatten(0, 1)
        target = class_target(self.loss_cls, one.labels, pairs.iou)
        terms = {"loss_cls": self.loss_cls(logits, target, weight=one.weight, avg_factor=rows)}
        for name in ("loss_box", "loss_iou"):
            loss = getattr(self, name)
            single = getattr(loss, "box_space", "corners") == "distances"
            pred, true = (x if single else to_xyxy(x, "cxcywh") for x in (pairs.boxes, pairs.true))
            terms[name] = loss(pred, true, weight=pairs.weight, avg_factor=count)
        return self.collect(terms)

    def _objects(
        self, targets: Sequence[Target], image_sizes: ImageSizes | None, like: Tensor
    ) -> tuple[PaddedTargets, PaddedTargets, Tensor]:
        """The objects in pixels and in units of their image, and ``[B, 4]`` pixels per unit (1 where they are not known)."""
        normalized = self.target_format == "cxcywh_normalized"
        given = pad_targets(corners_of(targets) if normalized else targets, like, self.num_classes)
        check_images("DETRLoss", given, len(like))
        if normalized and image_sizes is None:
            return given, given, like.new_ones(len(like), 4)
        units = image_units(image_sizes, like)
        return (rescale(given, 1 / units), given, units) if normalized else (given, rescale(given, units), units)

    def _counts(self, matched: Sequence[MatchedOutput], truth: PaddedTargets) -> Tensor:
        """Objects, denoising pairs and, for softmax, the weights of the rows of every output."""
        first, dtype = matched[0].assignment, matched[0].output.boxes.dtype
        denoising = next((one.assignment.num_pos for one in matched if one.output.stage == "dn"), torch.zeros_like(first.num_pos))
        counts = [truth.num_gt if self.box_count == "objects" else first.num_pos, denoising]
        if self.background_column:
            counts += [one.total_weight(self.loss_cls) for one in matched]
        if self.normalizer.mode == "ema":  # which keeps averages of a fixed number of counts
            counts += [torch.zeros_like(first.num_pos)] * (self.COUNTS - len(counts))
        return torch.stack([count.to(dtype) for count in counts])
