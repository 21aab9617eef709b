"""``ultralytics.models.utils.loss``: the criteria of DETR and RT-DETR.

What differs: all layers are matched in one call and compared pair by pair (no table of all queries with all classes for the
target); see also :class:`detloss.compat.ultralytics.models.utils.ops.HungarianMatcher`. As there, counts are those of this rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloss.checks import upcast
from detloss.compat.patches.detr_layers import Truth, class_labels, matched_iou, pair_terms
from detloss.compat.ultralytics.models.utils.ops import HungarianMatcher, Matches, truth_of
from detloss.compat.ultralytics.utils.elementary import FocalLoss, VarifocalLoss
from detloss.criteria.detr_varifocal import MatchedVarifocalLoss
from detloss.functional.focal import sigmoid_focal_loss
from detloss.functional.quality import quality_focal_loss

__all__ = ["DETRLoss", "RTDETRDetectionLoss"]

GAINS = ("class", "bbox", "giou")


class DETRLoss(nn.Module):
    """Classes, L1 distance and GIoU of the matched queries, of the last decoder layer and of the auxiliary ones together.

    A layer's losses are divided by its number of pairs. The class loss is a varifocal one where there are objects, a focal one
    where there are none, and without ``use_fl`` a cross entropy against the IoU, divided by the number of queries; as there.

    Args:
        nc: number of classes.
        loss_gain: weights of ``class``, ``bbox`` and ``giou``; ``None``: 1, 5 and 2.
        aux_loss: whether the auxiliary layers count.
        use_fl: focal class loss.
        use_vfl: varifocal class loss where there are objects; only with ``use_fl``.
        use_uni_match: all auxiliary layers take the pairs of one of them.
        uni_match_ind: which.
        gamma: γ of the class losses.
        alpha: α of the class losses.
    """

    def __init__(
        self,
        nc: int = 80,
        loss_gain: Mapping[str, float] | None = None,
        aux_loss: bool = True,
        use_fl: bool = True,
        use_vfl: bool = False,
        use_uni_match: bool = False,
        uni_match_ind: int = 0,
        gamma: float = 1.5,
        alpha: float = 0.25,
    ) -> None:
        super().__init__()
        self.nc = nc
        self.matcher: Any = HungarianMatcher(cost_gain={"class": 2, "bbox": 5, "giou": 2})
        self.loss_gain = {"class": 1, "bbox": 5, "giou": 2} if loss_gain is None else loss_gain
        self.aux_loss = aux_loss
        self.fl = FocalLoss(gamma, alpha) if use_fl else None
        self.vfl = VarifocalLoss(gamma, alpha) if use_vfl else None
        self.use_uni_match = use_uni_match
        self.uni_match_ind = uni_match_ind

    def forward(
        self,
        pred_bboxes: Tensor,
        pred_scores: Tensor,
        batch: Mapping[str, Any],
        postfix: str = "",
        match_indices: Matches | None = None,
    ) -> dict[str, Tensor]:
        """Compute ``loss_class``, ``loss_bbox``, ``loss_giou``, and the same with ``_aux`` for the auxiliary layers together.

        Args:
            pred_bboxes: ``[L, B, Q, 4]`` (cx, cy, w, h) in units of the image, the last layer last.
            pred_scores: ``[L, B, Q, C]`` logits.
            batch: ``cls [N]``, ``bboxes [N, 4]`` and ``gt_groups``, the number of objects of each image.
            postfix: what the keys end in.
            match_indices: pairs that are known already, per image (queries, objects counted over the batch).
        """
        if not self.aux_loss:
            pred_bboxes, pred_scores = pred_bboxes[-1:], pred_scores[-1:]
        truth = truth_of(batch, pred_bboxes)
        if match_indices is None:
            index = self._matches(pred_bboxes, pred_scores, batch, truth)
        else:
            index = _index_of(match_indices, batch["gt_groups"], pred_scores[0]).expand(len(pred_scores), -1, -1)
        some = bool(sum(batch["gt_groups"]))
        last = self._terms(pred_bboxes[-1:], pred_scores[-1:], index[-1:], truth, some)
        losses = {f"loss_{name}{postfix}": term for name, term in zip(GAINS, last, strict=True)}
        if self.aux_loss:
            others = self._terms(pred_bboxes[:-1], pred_scores[:-1], index[:-1], truth, some)
            losses |= {f"loss_{name}_aux{postfix}": term for name, term in zip(GAINS, others, strict=True)}
        return losses

    def _matches(self, boxes: Tensor, scores: Tensor, batch: Mapping[str, Any], truth: Truth) -> Tensor:
        """``[L, B, Q]`` object of every query."""
        if isinstance(self.matcher, HungarianMatcher):
            index = self.matcher.match(boxes, scores, truth)
        else:
            given = batch["bboxes"], batch["cls"], batch["gt_groups"]
            found = [self.matcher(own, score, *given) for own, score in zip(boxes, scores, strict=True)]
            index = torch.stack([_index_of(matches, batch["gt_groups"], scores[0]) for matches in found])
        if self.use_uni_match and len(index) > 1:
            index = torch.cat((index[self.uni_match_ind].expand(len(index) - 1, -1, -1), index[-1:]))
        return index

    def _terms(
        self, boxes: Tensor, scores: Tensor, index: Tensor, truth: Truth, some: bool
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """The three losses of some layers together, times their gains."""
        share = 1 / (index >= 0).sum((1, 2)).clamp(min=1).to(upcast(scores[:0]).dtype)
        distance, overlap = pair_terms(boxes, index, truth)
        gain = self.loss_gain
        return (
            self._class_term(boxes, scores, index, truth, share, some) * gain["class"],
            (distance * share).sum() * gain["bbox"],
            (overlap * share).sum() * gain["giou"],
        )

    def _class_term(self, boxes: Tensor, scores: Tensor, index: Tensor, truth: Truth, share: Tensor, some: bool) -> Tensor:
        logits = scores.flatten(0, 2)
        label = class_labels(index, truth, self.nc).flatten()
        weight = share[:, None, None].expand(index.shape).flatten()
        if self.fl and not (some and self.vfl):
            alpha = self.fl.alpha if self.fl.alpha > 0 else None
            return sigmoid_focal_loss(logits, label, gamma=self.fl.gamma, alpha=alpha, weight=weight, reduction="sum")
        target = label, matched_iou(boxes.detach(), index, truth).flatten()
        if self.fl and self.vfl:
            loss = MatchedVarifocalLoss(self.vfl.alpha, self.vfl.gamma, constant_factor=False, reduction="sum")
            term: Tensor = loss(logits, target, weight=weight)
            return term
        # With beta = 0 it is the cross entropy with soft labels.
        return quality_focal_loss(logits, target, beta=0.0, avg_factor=index.shape[2])


class RTDETRDetectionLoss(DETRLoss):
    """:class:`DETRLoss`, and the same of the denoising queries of RT-DETR, whose pairs are known."""

    def forward(  # type: ignore[override]  # their signature
        self,
        preds: tuple[Tensor, Tensor],
        batch: Mapping[str, Any],
        dn_bboxes: Tensor | None = None,
        dn_scores: Tensor | None = None,
        dn_meta: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of :class:`DETRLoss`, and each again with ``_dn``: 0 without denoising queries.

        Args:
            preds: boxes and scores of all layers.
            batch: see :class:`DETRLoss`.
            dn_bboxes: boxes of the denoising queries, all layers.
            dn_scores: their scores.
            dn_meta: ``dn_pos_idx``, per image the queries that should find an object, ``dn_gt_idx``, which ones, counted over the
                batch, for one group, and ``dn_num_group``.
        """
        losses = super().forward(*preds, batch)
        if dn_meta is None:
            return losses | {f"{name}_dn": value.new_zeros(()) for name, value in losses.items()}
        if dn_bboxes is None or dn_scores is None:
            raise ValueError("RTDETRDetectionLoss: dn_meta needs dn_bboxes and dn_scores; got None")
        matches = self.get_dn_match_indices(dn_meta["dn_pos_idx"], dn_meta["dn_num_group"], dn_meta["dn_gt_idx"])
        return losses | super().forward(dn_bboxes, dn_scores, batch, postfix="_dn", match_indices=matches)

    @staticmethod
    def get_dn_match_indices(dn_pos_idx: Sequence[Tensor], dn_num_group: int, dn_gt_idx: Sequence[Tensor]) -> Matches:
        """Per image the denoising queries and their objects, counted over the batch."""
        matches = [(query, objects.repeat(dn_num_group)) for query, objects in zip(dn_pos_idx, dn_gt_idx, strict=True)]
        for query, objects in matches:
            if len(query) != len(objects):
                raise ValueError(f"get_dn_match_indices: expected one object per query; got {len(query)} and {len(objects)}")
        return matches


def _index_of(matches: Matches, groups: Sequence[int], like: Tensor) -> Tensor:
    """``[B, Q]`` object of its image for every query; −1 for none."""
    index = torch.full(like.shape[:2], -1, dtype=torch.long, device=like.device)
    start = 0
    for own, (query, objects), count in zip(index, matches, groups, strict=True):
        own[query.to(own.device)] = objects.to(own.device) - start
        start += count
    return index
