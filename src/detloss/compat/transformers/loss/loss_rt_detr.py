"""``transformers.loss.loss_rt_detr``: the matcher and criterion of RT-DETR and RT-DETRv2.

What differs: as in :mod:`detloss.compat.transformers.loss.loss_for_object_detection`. The objects of all ranks are counted, as in
the code of the paper (those of this rank there, so that ranks with few objects weigh too much).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss.assigners.hungarian import HungarianAssigner
from detloss.compat.transformers.loss.loss_for_object_detection import weighted_cross_entropy
from detloss.compat.transformers.loss.pairs import (
    Layer,
    Pairs,
    SetLoss,
    SetMatcher,
    Targets,
    boxes_of,
    check_costs,
    logits_of,
    matched,
    number_of_objects,
)
from detloss.criteria.detr_varifocal import MatchedVarifocalLoss
from detloss.functional.classification import binary_cross_entropy_loss
from detloss.functional.focal import sigmoid_focal_loss
from detloss.geometry.iou import overlap
from detloss.types import Number

__all__ = ["RTDetrForObjectDetectionLoss", "RTDetrHungarianMatcher", "RTDetrLoss"]

Losses = tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]


class RTDetrHungarianMatcher(SetMatcher):
    """Match with the focal cost of a sigmoid, or −softmax, \\|b − b*\\| and −GIoU; see :class:`SetMatcher`.

    Args:
        config: has ``matcher_class_cost``, ``matcher_bbox_cost``, ``matcher_giou_cost``, ``use_focal_loss``, ``matcher_alpha``
            and ``matcher_gamma``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.class_cost = config.matcher_class_cost
        self.bbox_cost = config.matcher_bbox_cost
        self.giou_cost = config.matcher_giou_cost
        self.use_focal_loss = config.use_focal_loss
        self.alpha = config.matcher_alpha
        self.gamma = config.matcher_gamma
        check_costs(self, (self.class_cost, self.bbox_cost, self.giou_cost))

    def assigner(self) -> HungarianAssigner:
        """The assigner with these costs."""
        return HungarianAssigner(
            "focal" if self.use_focal_loss else "softmax",
            self.class_cost, self.bbox_cost, self.giou_cost, alpha=self.alpha, gamma=self.gamma,
        )  # fmt: skip


class RTDetrLoss(SetLoss):
    """The criterion of RT-DETR: varifocal loss of all queries, L1 distance and GIoU of the matched ones, per decoder layer.

    Equal to :class:`detloss.DETRLoss` with ``preset("rtdetr")``, in their form: terms times the weights of ``config``.

    Args:
        config: what :class:`RTDetrHungarianMatcher` reads, ``num_labels``, ``weight_loss_vfl``, ``weight_loss_bbox``,
            ``weight_loss_giou``, ``eos_coefficient``, ``focal_loss_alpha`` and ``focal_loss_gamma``.
    """

    METHODS: Mapping[str, str] = {
        "labels": "loss_labels", **SetLoss.METHODS, "bce": "loss_labels_bce", "focal": "loss_labels_focal",
        "vfl": "loss_labels_vfl",
    }  # fmt: skip

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.matcher = RTDetrHungarianMatcher(config)
        self.num_classes = config.num_labels
        self.weight_dict = {f"loss_{name}": getattr(config, f"weight_loss_{name}") for name in ("vfl", "bbox", "giou")}
        self.losses = ["vfl", "boxes"]
        self.eos_coef = config.eos_coefficient
        self.register_buffer("empty_weight", torch.tensor([1.0] * config.num_labels + [config.eos_coefficient]))
        self.alpha = config.focal_loss_alpha
        self.gamma = config.focal_loss_gamma

    def loss_labels_vfl(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor, log: bool = True
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_vfl``: varifocal loss over num_boxes; the score of a matched query is the IoU of the pair.

        Its factor σ(x)^γ is a constant, and a pair that does not overlap costs nothing, as there.
        """
        logits = logits_of(outputs)
        score = torch.zeros(logits.shape[:2], dtype=boxes_of(outputs).dtype, device=logits.device)
        score[self._get_source_permutation_idx(indices)] = self.pair_iou(outputs, targets, indices).to(score.dtype)
        labels = self.target_classes(targets, indices, logits)
        loss = MatchedVarifocalLoss(self.alpha, self.gamma)
        return {"loss_vfl": loss(logits.flatten(0, 1), (labels.flatten(), score.flatten()), avg_factor=num_boxes)}

    def loss_labels(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor, log: bool = True
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_ce``: cross entropy over the sum of the weights, for logits with a column C for "no object" (an error there)."""
        logits = logits_of(outputs)
        labels = self.target_classes(targets, indices, logits).flatten()
        return {"loss_ce": weighted_cross_entropy(logits.flatten(0, 1), labels, self.get_buffer("empty_weight"))}

    @torch.no_grad()
    def loss_cardinality(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor
    ) -> dict[str, Tensor]:  # fmt: skip
        """``cardinality_error``: how many queries too many or too few have a class above one half."""
        return self.cardinality_error((logits_of(outputs).amax(-1) > 0).sum(1), targets)

    def loss_labels_bce(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor, log: bool = True
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_bce``: binary cross entropy of all queries and classes over num_boxes."""
        logits = logits_of(outputs)
        labels = self.target_classes(targets, indices, logits).flatten()
        return {"loss_bce": binary_cross_entropy_loss(logits.flatten(0, 1), labels, avg_factor=num_boxes)}

    def loss_labels_focal(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor, log: bool = True
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_focal``: focal loss of all queries and classes over num_boxes (never runs there: mixed up arguments)."""
        logits = logits_of(outputs)
        labels = self.target_classes(targets, indices, logits).flatten()
        loss = sigmoid_focal_loss(logits.flatten(0, 1), labels, alpha=self.alpha, gamma=self.gamma, avg_factor=num_boxes)
        return {"loss_focal": loss}

    @torch.no_grad()
    def pair_iou(self, outputs: Layer, targets: Targets, indices: Pairs) -> Tensor:
        """``[N]`` IoU of all pairs."""
        pred = boxes_of(outputs)[self._get_source_permutation_idx(indices)]
        return overlap(pred, matched(targets, "boxes", indices, pred), "cxcywh").iou.nan_to_num()

    def weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms that have a weight, times it."""
        return {name: term * self.weight_dict[name] for name, term in terms.items() if name in self.weight_dict}

    @staticmethod
    def get_cdn_matched_indices(dn_meta: Mapping[str, Any], targets: Targets) -> Pairs:
        """The pairs of the denoising queries: ``dn_positive_idx`` per image, ``dn_num_group`` times all of its objects."""
        pairs = []
        for place, target in zip(dn_meta["dn_positive_idx"], targets, strict=True):
            count, device = len(target["class_labels"]), target["class_labels"].device
            objects = torch.arange(count, device=device).tile(dn_meta["dn_num_group"])
            if count and len(place) != len(objects):
                raise ValueError(f"RTDetrLoss: expected {len(objects)} positive denoising queries; got {len(place)}")
            pairs.append((place.to(device) if count else objects, objects))
        return pairs

    def forward(self, outputs: Layer, targets: Targets) -> dict[str, Tensor]:
        """Compute the terms; auxiliary layers, the encoder last, end in ``_aux_0`` …, denoising layers in ``_dn_0`` …."""
        layers: list[Layer] = [outputs, *(outputs.get("auxiliary_outputs") or ())]
        indices = self.match(layers, targets)
        count = number_of_objects(targets, logits_of(outputs))
        losses: dict[str, Tensor] = {}
        for k, (layer, own) in enumerate(zip(layers, indices, strict=True)):
            losses |= self.all_losses(layer, targets, own, count, f"_aux_{k - 1}" if k else "")
        if "dn_auxiliary_outputs" in outputs:
            if "denoising_meta_values" not in outputs:
                raise ValueError("RTDetrLoss: dn_auxiliary_outputs need 'denoising_meta_values'; got " + str(sorted(outputs)))
            meta = outputs["denoising_meta_values"]
            pairs = self.get_cdn_matched_indices(meta, targets)
            for k, layer in enumerate(outputs["dn_auxiliary_outputs"]):
                losses |= self.all_losses(layer, targets, pairs, count * meta["dn_num_group"], f"_dn_{k}")
        return losses


def _set_aux_loss(outputs_class: Sequence[Tensor] | Tensor, outputs_coord: Sequence[Tensor] | Tensor) -> list[dict[str, Tensor]]:
    """All layers as mappings; unlike that of DETR, with the last."""
    return [{"logits": logits, "pred_boxes": boxes} for logits, boxes in zip(outputs_class, outputs_coord, strict=True)]


def RTDetrForObjectDetectionLoss(
    logits: Tensor,
    labels: Targets,
    device: Any,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Tensor | None = None,
    outputs_coord: Tensor | None = None,
    enc_topk_logits: Tensor | None = None,
    enc_topk_bboxes: Tensor | None = None,
    denoising_meta_values: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Losses:
    """The loss of RT-DETR, as its model calls it.

    Args:
        logits: ``[B, Q, C]`` of the last layer; with denoising, its queries come first.
        labels: per image ``class_labels`` and ``boxes``, (cx, cy, w, h) in units of the image.
        device: of the criterion.
        pred_boxes: ``[B, Q, 4]``.
        config: see :class:`RTDetrLoss`; also ``auxiliary_loss``.
        outputs_class: ``[B, L, Q, C]`` of all layers, for auxiliary losses.
        outputs_coord: ``[B, L, Q, 4]`` likewise.
        enc_topk_logits: ``[B, Q, C]`` of the encoder.
        enc_topk_bboxes: ``[B, Q, 4]`` likewise.
        denoising_meta_values: ``dn_num_split``, numbers of denoising and of other queries, ``dn_positive_idx``, ``dn_num_group``.
        kwargs: without effect.

    Returns:
        The total, the terms, and the outputs of the auxiliary layers (or ``None``).
    """
    meta, split = denoising_meta_values, {}
    if meta is not None:
        logits, pred_boxes = (torch.split(x, meta["dn_num_split"], dim=1)[1] for x in (logits, pred_boxes))
    outputs: dict[str, Any] = {"logits": logits, "pred_boxes": pred_boxes}
    auxiliary = None
    if config.auxiliary_loss:
        layers: Any = (outputs_class, outputs_coord)
        if meta is not None:
            noisy, layers = zip(*(torch.split(x, meta["dn_num_split"], dim=2) for x in layers), strict=True)
            split = {"dn_auxiliary_outputs": _set_aux_loss(*(x.transpose(0, 1) for x in noisy)), "denoising_meta_values": meta}
        auxiliary = _set_aux_loss(*(x[:, :-1].transpose(0, 1) for x in layers))
        auxiliary += [{"logits": enc_topk_logits, "pred_boxes": enc_topk_bboxes}]  # type: ignore[dict-item]
        outputs |= {"auxiliary_outputs": auxiliary, **split}
    losses = RTDetrLoss(config).to(device)(outputs, labels)
    return torch.stack(list(losses.values())).sum(), losses, auxiliary
