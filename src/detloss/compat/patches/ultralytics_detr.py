"""The loss of ultralytics' RT-DETR, on this engine: same arguments, same results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.hungarian import HungarianAssigner
from detloss.criteria.detr import DETRLoss
from detloss.types import LossDict, Target

__all__ = ["detr_loss", "in_their_words", "rtdetr_losses", "rtdetr_targets"]

Function = Callable[..., Any]
TERMS = {"class": "loss_cls", "bbox": "loss_box", "giou": "loss_iou"}


def detr_loss(original: Function) -> Function:
    """``RTDETRDetectionLoss.forward``: all layers matched in one call, no table of all queries with the objects of all images."""

    def forward(
        self: Any,
        preds: tuple[Tensor, Tensor],
        batch: Mapping[str, Any],
        dn_bboxes: Tensor | None = None,
        dn_scores: Tensor | None = None,
        dn_meta: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        criterion = _criterion(self)
        # Without any object they charge another loss of the classes.
        if criterion is None or not sum(batch["gt_groups"]):
            found: dict[str, Tensor] = original(self, preds, batch, dn_bboxes, dn_scores, dn_meta)
            return found
        losses = rtdetr_losses(criterion, preds, batch, dn_bboxes, dn_scores, dn_meta)
        return in_their_words(losses, dn_meta is not None)

    return forward


def rtdetr_losses(
    criterion: DETRLoss,
    preds: tuple[Tensor, Tensor],
    batch: Mapping[str, Any],
    dn_bboxes: Tensor | None = None,
    dn_scores: Tensor | None = None,
    dn_meta: Mapping[str, Any] | None = None,
) -> LossDict:
    """The criterion of all decoder layers ``preds`` (boxes ``[L, B, Q, 4]``, scores ``[L, B, Q, C]``) and denoising layers."""
    boxes, scores = preds
    layers = list(zip(scores, boxes, strict=True))
    denoising: dict[str, Any] = {}
    if dn_meta is not None and dn_scores is not None and dn_bboxes is not None:
        index = _objects_of_queries(dn_meta, batch["gt_groups"], dn_scores)
        denoising = {"dn_outputs": list(zip(dn_scores, dn_bboxes, strict=True)), "dn_gt_index": index}
    losses: LossDict = criterion(*layers[-1], rtdetr_targets(batch), layers[:-1], **denoising)
    return losses


def rtdetr_targets(batch: Mapping[str, Any]) -> list[Target]:
    """The objects of a batch by image, (cx, cy, w, h) in units of the image."""
    groups: Sequence[int] = batch["gt_groups"]
    parts = zip(batch["bboxes"].split(groups), batch["cls"].reshape(-1).long().split(groups), strict=True)
    return [{"boxes": boxes, "labels": labels} for boxes, labels in parts]


def _criterion(loss: Any) -> DETRLoss | None:
    """The criterion with the settings of theirs; ``None`` for settings without a counterpart."""
    matcher = loss.matcher
    if not (loss.fl and loss.vfl and loss.aux_loss) or loss.use_uni_match or type(matcher).__name__ != "HungarianMatcher":
        return None
    if not matcher.use_fl:
        return None
    costs, gains = matcher.cost_gain, loss.loss_gain
    return DETRLoss.preset(
        "ultralytics",
        num_classes=loss.nc,
        target_format="cxcywh_normalized",
        loss_cls={"type": "MatchedVarifocalLoss", "alpha": loss.vfl.alpha, "gamma": loss.vfl.gamma, "constant_factor": False},
        assigner=HungarianAssigner(
            "focal", costs["class"], costs["bbox"], costs["giou"], alpha=matcher.alpha, gamma=matcher.gamma
        ),
        weights={name: gains[theirs] for theirs, name in TERMS.items()},
    )


def _objects_of_queries(meta: Mapping[str, Any], groups: Sequence[int], scores: Tensor) -> Tensor:
    """``[B, N]`` object of its image that each denoising query reconstructs; −1 for those that should find nothing."""
    index = torch.full(scores.shape[1:3], -1, dtype=torch.long, device=scores.device)
    start = 0
    for image, (place, objects) in enumerate(zip(meta["dn_pos_idx"], meta["dn_gt_idx"], strict=True)):
        index[image, place.to(index.device)] = (objects.to(index.device) - start).repeat(meta["dn_num_group"])
        start += groups[image]
    return index


def in_their_words(losses: LossDict, denoising: bool) -> dict[str, Tensor]:
    """Terms by their names: last layer, sum of the others, and the same of the denoising layers."""
    found: dict[str, Tensor] = {}
    nothing = next(iter(losses.values())).detach() * 0
    last = str(sum(key.startswith("loss_cls_dn_") for key in losses) - 1)
    for kind in ("", "_dn"):
        for layer in ("", "_aux"):
            for theirs, name in TERMS.items():
                keys = [key for key in losses if key.startswith(name) and ("_dn_" in key) == bool(kind)]
                plain = name if not kind else f"{name}_dn_{last}"
                own = [key for key in keys if (key == plain) == (not layer)]
                terms = [losses[key] for key in own] if denoising or not kind else []
                found[f"loss_{theirs}{layer}{kind}"] = torch.stack(terms).sum() if terms else nothing
    return found
