"""The IoU rule of anchor-based detectors and of proposals: two thresholds, and the best anchors of every object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detloss.assigners.base import MEMORY_BUDGET, Assigner, chunks, covered_by_regions
from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_non_negative, check_option, check_positive, shape_of, upcast
from detloss.geometry.anchors import Anchors
from detloss.kernels.matches import MaxIoUMatch
from detloss.kernels.selection import match_backend
from detloss.registry import ASSIGNERS
from detloss.types import Assignment, Target

__all__ = ["MaxIoUAssigner"]

LowQuality = Literal["gt", "anchor"]
LOW_QUALITY = ("gt", "anchor")
# Areas stay finite in float32 up to here.
COORDINATE_LIMIT = 1e15
# Tiles of this many bytes stay in the cache of a CPU core between operations.
CACHE_BYTES = 8 * 2**20


@ASSIGNERS.register_module(
    family="anchor",
    formula="positive where max IoU >= pos_iou_thr or IoU = best of the object; negative where max IoU < neg_iou_thr",
    paper="Ren et al. 2015, arXiv:1506.01497",
)
class MaxIoUAssigner(Assigner):
    """Assign every anchor or proposal to the object that it overlaps most, where it overlaps enough.

    With m = the largest IoU of an anchor with the objects of its image:

    1. m >= ``pos_iou_thr``: the anchor belongs to the object of that IoU, the first one among equals.
    2. m < ``neg_iou_thr``: negative. With ``(lo, hi)`` only lo <= m < hi is negative; in an image without objects
       everything is.
    3. The rest, and negatives of which an ignore box covers more than ``ignore_iof_thr``, count neither way.
    4. ``match_low_quality``: an object whose best IoU is above 0 and at least ``min_pos_iou`` claims all anchors that
       tie at that IoU, whatever 1 to 3 say. ``low_quality="gt"`` gives such an anchor to the object that claims it, the
       last one of several (mmdet); ``"anchor"`` gives it to the anchor's own best object of rule 1 (torchvision,
       detectron2).

    Boxes without area overlap nothing. An object that no anchor touches gets none: torchvision, which has no ``> 0`` in
    rule 4, turns every anchor of such an image into a positive. Padding among proposals (``valid``) and boxes that are
    not finite never match and are ignored. ``quality`` is m.

    All images and objects go through together, in chunks of anchors. The best anchors of an object are known after a
    first pass over the chunks; a second one computes the same IoUs again, to the bit, and finds the ties.

    Args:
        pos_iou_thr: smallest IoU of a positive, in (0, 1].
        neg_iou_thr: IoU below which an anchor is negative, or (lo, hi); at most ``pos_iou_thr``.
        min_pos_iou: smallest best IoU of an object that claims its best anchors.
        match_low_quality: whether objects claim their best anchors at all.
        low_quality: who gets a claimed anchor.
        ignore_iof_thr: share of an anchor that an ignore box must exceed; ``None``: ignore boxes have no effect.
        memory_budget: bytes that the temporaries of one chunk may take.
    """

    def __init__(
        self,
        pos_iou_thr: float = 0.5,
        neg_iou_thr: float | tuple[float, float] = 0.4,
        min_pos_iou: float = 0.0,
        match_low_quality: bool = True,
        low_quality: LowQuality = "gt",
        ignore_iof_thr: float | None = 0.5,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__(memory_budget)
        check_positive("MaxIoUAssigner", pos_iou_thr=pos_iou_thr)
        check_non_negative("MaxIoUAssigner", min_pos_iou=min_pos_iou)
        check_option("MaxIoUAssigner", "low_quality", low_quality, LOW_QUALITY)
        if ignore_iof_thr is not None:
            check_non_negative("MaxIoUAssigner", ignore_iof_thr=ignore_iof_thr)
        self.negative_range = _negative_range(neg_iou_thr)
        if not self.negative_range[1] <= pos_iou_thr <= 1:
            raise ValueError(
                "MaxIoUAssigner: expected neg_iou_thr <= pos_iou_thr <= 1; "
                f"got neg_iou_thr={neg_iou_thr!r} and pos_iou_thr={pos_iou_thr!r}"
            )
        self.pos_iou_thr = pos_iou_thr
        self.neg_iou_thr = neg_iou_thr
        self.min_pos_iou = min_pos_iou
        self.match_low_quality = match_low_quality
        self.low_quality: LowQuality = low_quality
        self.ignore_iof_thr = ignore_iof_thr

    @torch.no_grad()
    def __call__(
        self,
        priors: Anchors,
        targets: Sequence[Target] | PaddedTargets,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Assignment:
        """Assign the anchors or proposals of B images to their objects; ``scores`` and ``boxes`` are not used."""
        truth = self.padded(targets, upcast(priors.boxes))
        match = self._match(priors, truth)
        backend = match_backend(match)
        if backend is None:
            return self._by_chunks(priors, truth)
        gt_index, quality, ignore = backend.match(match)
        if self.ignore_iof_thr is not None and truth.ignore_boxes.shape[1]:
            corners, _ = _usable_corners(priors, len(truth.valid))
            covered = covered_by_regions(corners, truth, self.ignore_iof_thr, self.memory_budget)
            ignore |= covered & (gt_index < 0)
        return Assignment(gt_index, ignore, quality)

    def _match(self, priors: Anchors, truth: PaddedTargets) -> MaxIoUMatch:
        """The rule for a kernel."""
        _check_shapes(priors, len(truth.valid))
        boxes = upcast(priors.boxes)
        return MaxIoUMatch(
            boxes, priors.valid, truth.boxes.to(boxes.dtype), truth.valid, self.pos_iou_thr, self.negative_range,
            self.min_pos_iou, self.match_low_quality, self.low_quality == "gt",
        )  # fmt: skip

    def _by_chunks(self, priors: Anchors, truth: PaddedTargets) -> Assignment:
        """The assignment by operations of torch: what every kernel has to find."""
        corners, usable = _usable_corners(priors, len(truth.valid))
        pairs = _Pairs(corners, truth)
        parts = self._parts(pairs)
        quality, own_best, best = pairs.best(parts)
        gt_index = torch.where(quality >= self.pos_iou_thr, own_best, -1)
        if self.match_low_quality:
            last = pairs.last_claim(parts, self._claimed(best))
            gt_index = torch.where(last >= 0, last if self.low_quality == "gt" else own_best, gt_index)
        low, high = self.negative_range
        negative = quality < high
        if low > 0:
            negative &= (quality >= low) | ~truth.valid.any(1, keepdim=True)
        ignore = ~(negative & usable)
        if self.ignore_iof_thr is not None:
            ignore |= covered_by_regions(corners, truth, self.ignore_iof_thr, self.memory_budget)
        return Assignment(gt_index, ignore & (gt_index < 0), quality)

    def conditions(
        self,
        priors: Anchors,
        targets: PaddedTargets,
        image: int,
        scores: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``[G, P]`` per condition: the anchor overlaps the object at all, and enough."""
        corners, _ = _usable_corners(priors, len(targets.valid))
        pairs = _Pairs(corners[image : image + 1] if len(corners) > 1 else corners, targets, slice(image, image + 1))
        iou = pairs.iou(slice(None))[0]
        enough, sentence = iou >= self.pos_iou_thr, f"anchor with an IoU of at least pos_iou_thr {self.pos_iou_thr:g}"
        if self.match_low_quality:
            best = iou.new_zeros(len(iou)) if iou.numel() == 0 else iou.amax(1)
            enough = enough | (iou == self._claimed(best)[:, None])
            sentence += f", or with the best IoU of the object where that is at least min_pos_iou {self.min_pos_iou:g}"
        return {"anchor that overlaps the object": iou > 0, sentence: enough}

    def _claimed(self, best: Tensor) -> Tensor:
        """The IoU at which each object claims anchors: its ``best``, or 2, which nothing has, where it must not."""
        return torch.where((best > 0) & (best >= self.min_pos_iou), best, 2.0)

    def _parts(self, pairs: _Pairs) -> list[slice]:
        """Chunks of anchors. Four tiles of IoUs and their ranks are alive at once."""
        budget = min(self.memory_budget, CACHE_BYTES) if pairs.area.device.type == "cpu" else self.memory_budget
        images, objects = pairs.object_area.shape[:2]
        return chunks(pairs.count, images * objects * (4 * pairs.area.element_size() + 8), budget)


class _Pairs:
    """IoU of all objects of B images with chunks of P anchors, and the largest over objects and over anchors."""

    def __init__(self, corners: Tensor, truth: PaddedTargets, images: slice = slice(None)) -> None:
        valid = (truth.valid & torch.isfinite(truth.boxes).all(-1))[images]
        objects = _limited(truth.boxes[images].to(corners.dtype), valid)
        self.count = corners.shape[1]
        self.objects = [side.unsqueeze(-1) for side in objects.unbind(-1)]
        self.anchors = [side.unsqueeze(1) for side in corners.permute(2, 0, 1).contiguous()]
        self.object_area, self.area = _area(self.objects), _area(self.anchors)

    def iou(self, part: slice) -> Tensor:
        """``[B, G, n]`` IoU with the anchors of ``part``; 0 for boxes without area. In place, for speed."""
        (x1, y1, x2, y2), area = (side[..., part] for side in self.anchors), self.area[..., part]
        left, top, right, bottom = self.objects
        common = torch.minimum(right, x2).sub_(torch.maximum(left, x1)).clamp_(min=0)
        common.mul_(torch.minimum(bottom, y2).sub_(torch.maximum(top, y1)).clamp_(min=0))
        union = (self.object_area + area).sub_(common)
        return common.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))

    def best(self, parts: Sequence[slice]) -> tuple[Tensor, Tensor, Tensor]:
        """Largest IoU per anchor and its object, the first among equals, ``[B, P]`` each; largest per object, ``[B, G]``."""
        images, objects = self.object_area.shape[:2]
        quality = self.area.new_zeros(images, self.count)
        index = torch.zeros_like(quality, dtype=torch.long)
        best = self.area.new_zeros(images, objects)
        rank = self._rank().flip(0)
        for part in parts if objects else ():
            iou = self.iou(part)
            top = iou.amax(1)
            quality[:, part] = top
            index[:, part] = objects - ((iou == top[:, None]) * rank).amax(1).long()
            best = torch.maximum(best, iou.amax(2))
        return quality, index, best

    def last_claim(self, parts: Sequence[slice], wanted: Tensor) -> Tensor:
        """``[B, P]`` last object whose IoU with the anchor is exactly ``wanted [B, G]``; −1 without any."""
        images, objects = self.object_area.shape[:2]
        last = torch.full((images, self.count), -1, dtype=torch.long, device=wanted.device)
        rank = self._rank()
        for part in parts if objects else ():
            last[:, part] = ((self.iou(part) == wanted[..., None]) * rank).amax(1).long() - 1
        return last

    def _rank(self) -> Tensor:
        """``[G, 1]`` 1…G in the smallest dtype that holds them: the largest rank among hits tells which object it is."""
        count = self.object_area.shape[1]
        dtype = torch.uint8 if count < 2**8 else torch.int16 if count < 2**15 else torch.int32
        return torch.arange(1, count + 1, device=self.area.device).to(dtype)[:, None]


def _negative_range(threshold: float | tuple[float, float]) -> tuple[float, float]:
    """(lo, hi) of the IoUs of negatives."""
    bounds = tuple(threshold) if isinstance(threshold, Sequence) and not isinstance(threshold, str) else (0.0, threshold)
    if len(bounds) != 2:
        raise ValueError(f"MaxIoUAssigner: neg_iou_thr must be a number or (lo, hi); got {threshold!r}")
    low, high = bounds
    check_non_negative("MaxIoUAssigner", neg_iou_thr=low)
    check_non_negative("MaxIoUAssigner", neg_iou_thr=high)
    if low > high:
        raise ValueError(f"MaxIoUAssigner: neg_iou_thr must be (lo, hi) with lo <= hi; got {threshold!r}")
    return float(low), float(high)


def _usable_corners(priors: Anchors, images: int) -> tuple[Tensor, Tensor]:
    """Corners ``[B or 1, P, 4]``, 0 for what must not match, and ``[B or 1, P]`` bool: a valid and finite box."""
    _check_shapes(priors, images)
    boxes = upcast(priors.boxes)
    boxes = boxes if boxes.ndim == 3 else boxes.unsqueeze(0)
    usable = torch.isfinite(boxes).all(-1)
    if priors.valid is not None:
        usable = usable & priors.valid
    return _limited(boxes, usable), usable


def _check_shapes(priors: Anchors, images: int) -> None:
    """``ValueError`` unless anchors, and which of them are valid, are shared by all images or given for each."""
    boxes, valid = priors.boxes, priors.valid
    right = boxes.ndim == 2 or len(boxes) in (1, images)
    if valid is not None:
        right &= valid.ndim <= 2 and valid.shape[-1] == boxes.shape[-2] and (valid.ndim == 1 or len(valid) in (1, images))
    if not right:
        raise ValueError(
            f"MaxIoUAssigner: anchors must be shared or given for each of the {images} images of the targets; "
            f"got boxes {shape_of(boxes)}" + (f" and valid {shape_of(valid)}" if valid is not None else "")
        )


def _limited(boxes: Tensor, usable: Tensor) -> Tensor:
    """Boxes within ±1e15 pixels, without area where they are not ``usable``."""
    return torch.where(usable.unsqueeze(-1), boxes.clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT), 0.0)


def _area(sides: Sequence[Tensor]) -> Tensor:
    left, top, right, bottom = sides
    return (right - left) * (bottom - top)
