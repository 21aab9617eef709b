"""The criterion of Faster and Mask R-CNN: proposals, boxes and masks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from detloss.checks import check_option
from detloss.criteria.anchor_head import GivenAnchors
from detloss.criteria.base import Criterion, Matched, Term, check_classes
from detloss.criteria.mask_head import MaskHeadLoss, MaskMatched
from detloss.criteria.roi_head import RoIHeadLoss, RoIMatched
from detloss.criteria.roi_samples import RoISamples
from detloss.criteria.rpn import RPNLoss, RPNMatched
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Target

__all__ = ["MaskRCNNLoss"]

PARTS: Mapping[str, type[Criterion]] = {"rpn": RPNLoss, "roi": RoIHeadLoss, "mask": MaskHeadLoss}
OWNER = {term.name: part for part, kind in PARTS.items() for term in kind.TERMS}
LENIENT_ASSIGNER = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5}

PartConfig = Criterion | Mapping[str, Any]


def _preset(name: str, **roi: Any) -> dict[str, Any]:
    """The presets of the parts, with more options of the box head; their normaliser is that of the whole."""
    parts: dict[str, dict[str, Any]] = {part: dict(kind.PRESETS[name]) for part, kind in PARTS.items()}
    (normalizer,) = {settings.pop("normalizer") for settings in parts.values()}
    parts["roi"].update(roi)
    return {**parts, "normalizer": normalizer}


@dataclass(frozen=True, kw_only=True)
class MaskRCNNMatched(Matched):
    """What the parts matched; ``mask`` is ``None`` for Faster R-CNN. Assignment and priors are those of the box head."""

    rpn: RPNMatched
    roi: RoIMatched
    mask: MaskMatched | None


@CRITERIA.register_module(
    family="two-stage",
    formula="loss_rpn_cls + loss_rpn_box + loss_cls + loss_box + loss_mask, each / its own count over all ranks",
    paper="He et al. 2017, arXiv:1703.06870; Ren et al. 2015, arXiv:1506.01497",
)
class MaskRCNNLoss(Criterion):
    """Criterion of Mask R-CNN, and of Faster R-CNN where no mask logits are given::

        samples = criterion.sample(proposals, targets)  # proposals of the RPN, as they come out of NMS
        cls_logits, box_deltas = box_head(roi_align(maps, samples.proposals, 7))
        mask_logits = mask_head(roi_align(maps, samples.positives.proposals, 14))
        losses = criterion(objectness, rpn_deltas, cls_logits, box_deltas, samples, targets, mask_logits)

    It is :class:`RPNLoss` (``criterion.rpn``), :class:`RoIHeadLoss` (``criterion.roi``) and :class:`MaskHeadLoss`
    (``criterion.mask``) with one all-reduce for all of their counts. The objectness of the proposals, elsewhere called
    loss_obj, is ``loss_rpn_cls``. ``explain`` and the metrics without prefix are about the box head;
    ``criterion.rpn.explain(objectness, rpn_deltas, targets)`` is about the anchors.

    Args:
        num_classes: number of classes C, without the background; labels are 0…C−1.
        rpn: options of :class:`RPNLoss`, or such an object.
        roi: options of :class:`RoIHeadLoss`, or such an object.
        mask: options of :class:`MaskHeadLoss`, or such an object.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, of all parts: what they have themselves is not used.
        weights: weights by name of the term; they replace those of the parts.

    Presets: ``"torchvision"``, ``"detectron2"`` and ``"mmdet"``. Options of a part given to :meth:`preset` replace single
    settings of the part.

    >>> criterion = MaskRCNNLoss(num_classes=80, roi={"loss_box": "giou"}, weights={"loss_mask": 2.0})
    >>> criterion.term_names
    ('loss_rpn_cls', 'loss_rpn_box', 'loss_cls', 'loss_box', 'loss_mask')
    """

    TERMS: ClassVar[tuple[Term, ...]] = tuple(term for part in PARTS.values() for term in part.TERMS)
    COUNTS: ClassVar[int] = sum(part.COUNTS for part in PARTS.values())
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "torchvision": _preset("torchvision"),
        "detectron2": _preset("detectron2"),
        "mmdet": _preset("mmdet", assigner=LENIENT_ASSIGNER),
    }

    def __init__(
        self,
        num_classes: int,
        *,
        rpn: PartConfig | None = None,
        roi: PartConfig | None = None,
        mask: PartConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(None, normalizer)
        classes = check_classes("MaskRCNNLoss", num_classes)
        self.num_classes = classes
        self.rpn: RPNLoss = _build("rpn", rpn)
        self.roi: RoIHeadLoss = _build("roi", roi, num_classes=classes)
        self.mask: MaskHeadLoss = _build("mask", mask, num_classes=classes)
        for part in self._parts():
            self.weights.update(part.weights)
        self.set_weights(weights or {})
        self.assigner = self.roi.assigner

    @classmethod
    def preset(cls, name: str, **options: Any) -> MaskRCNNLoss:
        """The criterion with a framework's settings; ``options`` replace settings, those of a part one by one.

        For example ``MaskRCNNLoss.preset("torchvision", num_classes=90, rpn={"strides": (4, 8, 16, 32, 64)})``.
        """
        check_option(f"{cls.__name__}.preset", "name", name, tuple(cls.PRESETS))
        settings = cls.PRESETS[name]
        merged = {key: {**settings[key], **own} for key, own in options.items() if key in PARTS and isinstance(own, Mapping)}
        return super().preset(name, **{**options, **merged})

    def __getattr__(self, name: str) -> Any:
        """The losses of the parts go by the names of their terms here too: ``criterion.loss_mask``."""
        owner = super().__getattr__(OWNER.get(name, name))
        return getattr(owner, name) if name in OWNER else owner

    def _parts(self) -> list[Criterion]:
        """The parts there are: none while the criterion is being built."""
        return [getattr(self, name) for name in PARTS if name in self._modules]

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Set the weights of the terms named, here and in the parts."""
        super().set_weights(weights)
        for part in self._parts():
            part.set_weights({name: self.weights[name] for name in part.term_names})

    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> RoISamples:
        """Choose what box and mask head are to work on; see :meth:`RoIHeadLoss.sample`."""
        return self.roi.sample(proposals, targets)

    def forward(
        self,
        objectness: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        cls_logits: Tensor,
        box_deltas: Tensor,
        samples: RoISamples | Sequence[Tensor],
        targets: Sequence[Target],
        mask_logits: Tensor | None = None,
        anchors: GivenAnchors | None = None,
    ) -> LossDict:
        """Compute the losses of a batch, in train and eval mode alike.

        Args:
            objectness: per level logits ``[B, A, H, W]``, A anchors per cell.
            bbox_preds: per level deltas ``[B, A·4, H, W]``.
            cls_logits: ``[N, C + 1]`` of the samples, see :class:`RoIHeadLoss`.
            box_deltas: ``[N, 4·C]`` of the samples.
            samples: what :meth:`sample` returned, or per image proposals ``[R_i, 4]``, which are then all assigned and count.
            targets: per image ``boxes [G, 4]`` corners in pixels, ``labels [G]``, with mask logits ``masks [G, H, W]``,
                optional ``iscrowd [G]`` and ``ignore_boxes [K, 4]``.
            mask_logits: ``[Q, C, M, M]`` of the positive samples in their order; ``None``: there is no ``loss_mask``.
            anchors: see :class:`RPNLoss`.

        Returns:
            LossDict with ``loss_rpn_cls``, ``loss_rpn_box``, ``loss_cls``, ``loss_box``, with mask logits ``loss_mask``, the
            metrics of :class:`RoIHeadLoss` and, with the prefix ``rpn_``, those of :class:`RPNLoss`.
        """
        return self.finish(self.match(objectness, bbox_preds, cls_logits, box_deltas, samples, targets, mask_logits, anchors))

    def match(
        self,
        objectness: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        cls_logits: Tensor,
        box_deltas: Tensor,
        samples: RoISamples | Sequence[Tensor],
        targets: Sequence[Target],
        mask_logits: Tensor | None = None,
        anchors: GivenAnchors | None = None,
    ) -> MaskRCNNMatched:
        """Match the parts and collect their counts. Arguments as in the call."""
        rpn = self.rpn.match(objectness, bbox_preds, targets, anchors)
        roi = self.roi.match(cls_logits, box_deltas, samples, None if isinstance(samples, RoISamples) else targets)
        mask = None if mask_logits is None else self.mask.match(mask_logits, roi.samples, targets)
        masks = roi.counts.new_zeros(1) if mask is None else mask.counts
        counts = [x.to(rpn.counts.dtype) for x in (rpn.counts, roi.counts, masks)]
        return MaskRCNNMatched(
            counts=torch.cat(counts),
            minimum=(1.0, 1.0, 1.0),
            truth=roi.truth,
            assignment=roi.assignment,
            priors=roi.priors,
            rpn=rpn,
            roi=roi,
            mask=mask,
        )

    def compute(self, matched: MaskRCNNMatched, normalizers: Tensor) -> LossDict:
        """The terms of all parts, each divided by its own one of ``normalizers [3]``."""
        rpn, roi, mask = normalizers.split(1)
        found = [self.rpn.compute(matched.rpn, rpn), self.roi.compute(matched.roi, roi)]
        if matched.mask is not None:
            found.append(self.mask.compute(matched.mask, mask))
        terms = {name: term for part in found for name, term in part.items()}
        unweighted = {name: term for part in found for name, term in part.unweighted.items()}
        metrics = {f"rpn_{name}": value for name, value in found[0].metrics.items()} | found[1].metrics
        return LossDict(terms, unweighted, metrics)


def _build(name: str, config: PartConfig | None, **defaults: Any) -> Any:
    """A part from its options or from an object, whose number of classes must be that of the whole."""
    kind = PARTS[name]
    if config is None or isinstance(config, Mapping):
        return CRITERIA.build({"type": kind.__name__, **(config or {})}, **defaults)
    if not isinstance(config, kind):
        raise TypeError(f"MaskRCNNLoss: {name} must be a {kind.__name__} or a dict of its options; got {type(config).__name__}")
    for option, expected in defaults.items():
        if getattr(config, option) != expected:
            raise ValueError(f"MaskRCNNLoss: {name} must have {option}={expected}; got {getattr(config, option)}")
    return config
