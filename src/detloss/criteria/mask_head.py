"""The criterion of a mask head: which pixels of a proposal belong to its object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET
from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.checks import check_at_least, check_float, check_option, check_tensor, shape_of, upcast
from detloss.criteria.base import AssignerConfig, Criterion, LossConfig, Matched, Term, assignment_metrics, check_classes
from detloss.criteria.levels import check_images
from detloss.criteria.roi_head import BACKGROUNDS, own_class_rows
from detloss.criteria.roi_samples import RoISamples, assign_proposals
from detloss.geometry.mask_crop import crop_masks
from detloss.reduction import NormalizerConfig
from detloss.registry import CRITERIA
from detloss.types import LossDict, Target

__all__ = ["MaskHeadLoss"]


@dataclass(frozen=True, kw_only=True)
class MaskMatched(Matched):
    """``samples`` with the mask ``logits [N, M, M]`` of each one's own class and the cropped masks ``true [N, M, M]``."""

    samples: RoISamples
    logits: Tensor
    true: Tensor


@CRITERIA.register_module(
    family="two-stage",
    formula="binary cross entropy per pixel of the positives, / their pixels over all ranks",
    paper="He et al. 2017, arXiv:1703.06870",
)
class MaskHeadLoss(Criterion):
    """Criterion of a mask head: ``losses = criterion(mask_logits, samples, targets)``.

    The head works on the proposals that are responsible for an object::

        positives = samples.positives  # of RoIHeadLoss.sample(proposals, targets)
        features = roi_align(feature_map, positives.proposals, 14)
        losses = criterion(mask_head(features), positives, targets)

    The target of a proposal is the mask of its object, cropped to the proposal and resized to the size of the logits
    (:func:`detloss.geometry.crop_masks`). ``loss_mask`` is the mean over the pixels of all positives on all ranks, of the
    mask of the object's class; a connected 0 without positives.

    Args:
        num_classes: number of classes C, without the background; labels are 0…C−1.
        class_agnostic: one mask per proposal instead of one per class.
        background: ``"last"``: the logits have C channels; ``"first"``: C + 1, the background is channel 0 (torchvision).
        loss_mask: object, configuration or name; MaskBCELoss. Losses of whole masks (Dice) are averaged over the masks.
        aligned: pixels of the masks have their middle at half coordinates (detectron2, mmdet), not at whole ones.
        threshold: cropped masks become 1 where they reach it, else 0; ``None`` leaves them in [0, 1].
        assigner: object, configuration or name; which object a proposal is responsible for, when proposals are given
            without samples: MaxIoUAssigner(0.5, 0.5) without low-quality matches.
        normalizer: ``"sync"`` over all ranks, ``"local"``, or ``"ema"``, see :class:`detloss.reduction.Normalizer`.
        weights: weights by name of the term.
        memory_budget: bytes for the temporaries of the assignment and of the crops.

    Presets: ``"torchvision"``, ``"detectron2"`` and ``"mmdet"``.

    >>> criterion = MaskHeadLoss(num_classes=2)
    >>> box, mask = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.ones(1, 8, 8, dtype=torch.bool)
    >>> targets = [{"boxes": box, "labels": torch.tensor([1]), "masks": mask}]
    >>> criterion(torch.zeros(1, 2, 4, 4), [box], targets)["loss_mask"]  # ln 2
    tensor(0.6931)
    """

    TERMS: ClassVar[tuple[Term, ...]] = (
        Term("loss_mask", "pixels of positives", "their number on all ranks (the number of masks for losses of whole masks)"),
    )
    BACKGROUND: ClassVar[str] = "proposals without an object have no mask"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "torchvision": {"background": "first", "normalizer": "local"},
        "detectron2": {"aligned": True, "threshold": 0.5, "normalizer": "local"},
        "mmdet": {"aligned": True, "threshold": 0.5, "normalizer": "local"},
    }

    def __init__(
        self,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        background: Literal["last", "first"] = "last",
        loss_mask: LossConfig | None = None,
        aligned: bool = False,
        threshold: float | None = None,
        assigner: AssignerConfig | None = None,
        normalizer: NormalizerConfig = "sync",
        weights: Mapping[str, float] | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(weights, normalizer)
        check_option("MaskHeadLoss", "background", background, BACKGROUNDS)
        if threshold is not None:
            check_at_least("MaskHeadLoss", 0, threshold=threshold)
        self.num_classes = check_classes("MaskHeadLoss", num_classes)
        self.class_agnostic = class_agnostic
        self.background = background
        self.loss_mask = self.build_term("loss_mask", loss_mask, "MaskBCELoss")
        self.aligned = aligned
        self.threshold = threshold
        half = MaxIoUAssigner(0.5, 0.5, match_low_quality=False, memory_budget=memory_budget)
        self.assigner = self.build_assigner(assigner, half)
        self.memory_budget = memory_budget

    @property
    def channels(self) -> int:
        """Masks per proposal."""
        return 1 if self.class_agnostic else self.num_classes + (self.background == "first")

    def forward(self, mask_logits: Tensor, samples: RoISamples | Sequence[Tensor], targets: Sequence[Target]) -> LossDict:
        """Compute the loss of a batch, in train and eval mode alike.

        Args:
            mask_logits: ``[N, C, M, M]`` (``[N, 1, M, M]`` if class-agnostic), the positives of all images one after the
                other.
            samples: what ``RoIHeadLoss.sample`` returned, or its ``positives``: N of them; or per image the N proposals
                ``[Q_i, 4]``, of which those without an object do not count.
            targets: per image ``boxes``, ``labels`` and ``masks [G, H, W]`` in the pixels of the boxes, one per box.

        Returns:
            LossDict with ``loss_mask`` and the metrics ``num_pos``, ``num_gt`` and ``num_gt_without_pos``.
        """
        return self.finish(self.match(mask_logits, samples, targets))

    def match(self, mask_logits: Tensor, samples: RoISamples | Sequence[Tensor], targets: Sequence[Target]) -> MaskMatched:
        """Crop the masks and count. Arguments as in the call."""
        if isinstance(samples, RoISamples):
            found = samples.positives
            check_images("MaskHeadLoss", found.truth, len(targets))
        else:
            found = assign_proposals("MaskHeadLoss", samples, targets, self.assigner, self.num_classes)
        self._check(mask_logits, sum(found.counts))
        logits = upcast(mask_logits)
        own = logits.squeeze(1) if self.class_agnostic else own_class_rows(logits, found.labels, self.background)
        return MaskMatched(
            counts=(found.gt_index >= 0).sum().to(logits.dtype)[None],
            minimum=(1.0,),
            truth=found.truth,
            assignment=found.assignment,
            priors=found.priors,
            samples=found,
            logits=own,
            true=self._crops(found, targets, own),
        )

    def _check(self, mask_logits: Tensor, count: int) -> None:
        check_float("MaskHeadLoss", "mask_logits", mask_logits)
        expected = (count, self.channels)
        if mask_logits.ndim != 4 or mask_logits.shape[:2] != expected:
            raise ValueError(
                f"MaskHeadLoss: mask_logits must have shape [{count}, {self.channels}, M, M], one row per positive sample; "
                f"got {shape_of(mask_logits)}"
            )

    @torch.no_grad()
    def _crops(self, samples: RoISamples, targets: Sequence[Target], like: Tensor) -> Tensor:
        """The masks of the samples' objects, cropped to the samples and as large as ``like [N, M, M]``."""
        objects = samples.gt_index.clamp(min=0).split(samples.counts)
        crops = [like.new_zeros(0, *like.shape[1:])]
        for image, (target, boxes, index) in enumerate(zip(targets, samples.proposals, objects, strict=True)):
            masks = _masks(image, target, len(boxes)).to(like.device)
            size, budget = (like.shape[1], like.shape[2]), self.memory_budget
            crops.append(crop_masks(masks, boxes.to(like.dtype), index, size, aligned=self.aligned, memory_budget=budget))
        # Weights of pixels add up to 1, or to a rounding error more.
        crop = torch.cat(crops).clamp(0, 1)
        return crop if self.threshold is None else (crop >= self.threshold).to(crop.dtype)

    def compute(self, matched: MaskMatched, normalizers: Tensor) -> LossDict:
        """The term of a matched batch, divided by ``normalizers [1]`` times the elements per mask."""
        logits, true = matched.logits, matched.true
        # Elements per mask as this loss counts them (M² for BCE, 1 for Dice), read off its own result for no masks.
        elements = self.loss_mask(logits[:0], true[:0], reduction_override="none").shape[1:].numel()
        weight = (matched.samples.gt_index >= 0).to(logits.dtype)
        terms = {"loss_mask": self.loss_mask(logits, true, weight=weight, avg_factor=normalizers[0] * elements)}
        return self.collect(terms, assignment_metrics(matched.truth, matched.assignment))


def _masks(image: int, target: Target, needed: int) -> Tensor:
    """The masks ``[G, H, W]`` of a target, one per box; none are needed where no proposal has an object."""
    where = f"MaskHeadLoss: targets[{image}]"
    objects = len(target["boxes"])
    if "masks" not in target:
        if objects and needed:
            raise ValueError(f"{where} has no 'masks'; got keys {sorted(target)}")
        return target["boxes"].new_zeros(0, 0, 0)
    masks = target["masks"]
    check_tensor(where, "'masks'", masks)
    if masks.ndim != 3 or len(masks) != objects:
        raise ValueError(f"{where}['masks'] must have shape [{objects}, H, W], one mask per box; got {shape_of(masks)}")
    return masks
