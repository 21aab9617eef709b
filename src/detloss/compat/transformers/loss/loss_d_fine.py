"""``transformers.loss.loss_d_fine``: the criterion of D-FINE, RT-DETR's with distributions of the sides of a box.

What differs: as in :mod:`detloss.compat.transformers.loss.loss_rt_detr`; the host is not asked which queries are matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloss.compat.transformers.loss.loss_rt_detr import Losses, RTDetrLoss, _set_aux_loss
from detloss.compat.transformers.loss.pairs import Layer, Pairs, Targets, boxes_of, matched
from detloss.functional.distillation import kl_distillation_loss
from detloss.functional.distribution import distribution_focal_loss
from detloss.geometry.boxes import to_xyxy
from detloss.reduction import reduce_loss
from detloss.types import Number, Reduction

__all__ = ["DFineForObjectDetectionLoss", "DFineLoss", "bbox2distance", "translate_gt", "weighting_function"]

LAST_BIN_MARGIN = 0.1


def weighting_function(max_num_bins: int, up: Tensor, reg_scale: float) -> Tensor:
    """``[max_num_bins + 1]`` offsets that the bins stand for: W(n), finer near 0. Source: Peng et al. 2024, arXiv:2410.13842.

    Args:
        max_num_bins: number of the last bin, even.
        up: one element, the largest offset in units of a quarter of the size.
        reg_scale: the larger, the flatter near 0.

    >>> weighting_function(4, torch.tensor([0.5]), 4.0)
    tensor([-4., -2.,  0.,  2.,  4.])
    """
    bound = up[0].abs() * abs(reg_scale)
    powers = torch.arange(1, max_num_bins // 2, device=up.device, dtype=bound.dtype)
    right = (bound + 1) ** (powers * (2 / (max_num_bins - 2))) - 1
    edge = (2 * bound).reshape(1)
    return torch.cat((-edge, -right.flip(0), torch.zeros_like(edge), right, edge))


def translate_gt(gt: Tensor, max_num_bins: int, reg_scale: float, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left bin of every offset, and the weights of the right and of the left one.

    Offsets beyond the bins take the outermost one: the index is max_num_bins − 0.1 at the upper end, as there.

    Args:
        gt: offsets, of any shape; flattened.
        max_num_bins: number of the last bin.
        reg_scale: see :func:`weighting_function`.
        up: likewise.
    """
    values, gt = weighting_function(max_num_bins, up, reg_scale), gt.reshape(-1)
    left = torch.searchsorted(values, gt.to(values.dtype).contiguous(), right=True) - 1
    index = left.clamp(0, max_num_bins - 1)
    low, high = (gt - values[index]).abs(), (values[index + 1] - gt).abs()
    right = low / (low + high)
    right = torch.where(left < 0, 0.0, torch.where(left >= max_num_bins, 1.0, right))
    place = torch.where(left >= max_num_bins, max_num_bins - LAST_BIN_MARGIN, index.to(right.dtype))
    return place, right, 1 - right


def bbox2distance(
    points: Tensor, bbox: Tensor, max_num_bins: int, reg_scale: float, up: Tensor, eps: float = LAST_BIN_MARGIN
) -> tuple[Tensor, Tensor, Tensor]:
    """Sides of boxes as bins: :func:`translate_gt` of their offsets from the sides of reference boxes, ``[N · 4]`` each.

    Args:
        points: ``[N, 4]`` reference boxes (cx, cy, w, h).
        bbox: ``[N, 4]`` corners.
        max_num_bins: number of the last bin.
        reg_scale: see :func:`weighting_function`.
        up: likewise.
        eps: how far the index stays below the last bin.
    """
    scale = abs(reg_scale)
    unit = (points[:, 2:] / scale + 1e-16).repeat(1, 2)
    distance = torch.cat((points[:, :2] - bbox[:, :2], bbox[:, 2:] - points[:, :2]), 1) / unit - 0.5 * scale
    index, right, left = translate_gt(distance, max_num_bins, reg_scale, up)
    return index.clamp(0, max_num_bins - eps).detach(), right.detach(), left.detach()


class DFineLoss(RTDetrLoss):
    """:class:`RTDetrLoss`, and two losses of the sides of the boxes as distributions over bins.

    ``loss_fgl``: distribution focal loss of the matched queries with bins of unequal width, weighed by the IoU of the pair, over
    num_boxes. ``loss_ddf``: T² KL to the distributions of the last layer, weighed by the IoU of the pair, of the others by
    their best score; means over matched and over other sides, joined in the ratio of the roots of their numbers.

    Args:
        config: what :class:`RTDetrLoss` reads, ``max_num_bins``, ``reg_scale``, ``up``, ``weight_loss_fgl`` and
            ``weight_loss_ddf``.
    """

    METHODS: Mapping[str, str] = {
        "cardinality": "loss_cardinality", "local": "loss_local", "boxes": "loss_boxes", "focal": "loss_labels_focal",
        "vfl": "loss_labels_vfl",
    }  # fmt: skip

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.max_num_bins = config.max_num_bins
        self.weight_dict |= {f"loss_{name}": getattr(config, f"weight_loss_{name}") for name in ("fgl", "ddf")}
        self.losses = ["vfl", "boxes", "local"]
        self.reg_scale = config.reg_scale
        self.up = nn.Parameter(torch.tensor([config.up]), requires_grad=False)

    def unimodal_distribution_focal_loss(
        self,
        pred: Tensor,
        label: Tensor,
        weight_right: Tensor,
        weight_left: Tensor,
        weight: Tensor | None = None,
        reduction: Reduction = "sum",
        avg_factor: Number | Tensor | None = None,
    ) -> Tensor:
        """weight_left · CE(x, k) + weight_right · CE(x, k + 1), k = ⌊label⌋: a distribution focal loss.

        Args:
            pred: ``[N, R + 1]`` logits.
            label: ``[N]`` place of the side, below R.
            weight_right: ``[N]``.
            weight_left: ``[N]``.
            weight: ``[N]``.
            reduction: without ``avg_factor``.
            avg_factor: divisor of the sum.
        """
        right, left = weight_right.reshape(-1).to(pred.dtype), weight_left.reshape(-1).to(pred.dtype)
        both = right + left
        share = right / torch.where(both > 0, both, 1.0)
        loss = distribution_focal_loss(pred, label.floor().to(share.dtype) + share, reduction="none") * both
        mode: Reduction = reduction if avg_factor is None else "mean"
        return reduce_loss(loss, weight=weight, avg_factor=avg_factor, reduction=mode, where="unimodal_distribution_focal_loss")

    def loss_local(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor, T: float = 5
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_fgl`` and ``loss_ddf``; nothing for layers without ``pred_corners``.

        Args:
            outputs: with ``pred_corners [B, Q, 4 (R + 1)]``, ``ref_points [B, Q, 4]``, and ``teacher_corners`` and
                ``teacher_logits`` of the last layer.
            T: temperature.
        """
        if "pred_corners" not in outputs:
            return {}
        at = self._get_source_permutation_idx(indices)
        bins, iou = self.max_num_bins + 1, self.pair_iou(outputs, targets, indices)
        corners = outputs["pred_corners"]
        with torch.no_grad():
            true = to_xyxy(matched(targets, "boxes", indices, boxes_of(outputs)), "cxcywh")
            place, right, left = bbox2distance(outputs["ref_points"][at], true, self.max_num_bins, self.reg_scale, self.up)
        fgl = self.unimodal_distribution_focal_loss(
            corners[at].reshape(-1, bins), place, right, left, iou.repeat_interleave(4), avg_factor=num_boxes
        )
        return {"loss_fgl": fgl, "loss_ddf": self._distilled(corners, outputs, at, iou, T)}

    def _distilled(self, corners: Tensor, outputs: Layer, at: tuple[Tensor, Tensor], iou: Tensor, temperature: float) -> Tensor:
        bins = self.max_num_bins + 1
        weight = outputs["teacher_logits"].detach().sigmoid().amax(-1)
        weight[at] = iou.to(weight.dtype)
        found = torch.zeros_like(weight, dtype=torch.bool)
        found[at] = True
        teacher = outputs["teacher_corners"].reshape(-1, bins)
        loss = kl_distillation_loss(
            corners.reshape(-1, bins), teacher, temperature=temperature,
            weight=weight.flatten().repeat_interleave(4), reduction="none",
        )  # fmt: skip
        own = found.flatten().repeat_interleave(4)
        total = loss.new_zeros(())
        shares = []
        for some in (own, ~own):
            count = some.sum().to(loss.dtype)
            shares.append((count / len(found)).sqrt())
            total = total + shares[-1] * reduce_loss(loss, weight=some, avg_factor=count)
        return total / (shares[0] + shares[1]).clamp(min=torch.finfo(loss.dtype).tiny)


def _set_aux_loss2(
    outputs_class: Tensor,
    outputs_coord: Tensor,
    outputs_corners: Tensor,
    outputs_ref: Tensor,
    teacher_corners: Tensor | None = None,
    teacher_logits: Tensor | None = None,
) -> list[dict[str, Any]]:
    """All layers as mappings, with what they learn from."""
    names = ("logits", "pred_boxes", "pred_corners", "ref_points")
    teacher = {"teacher_corners": teacher_corners, "teacher_logits": teacher_logits}
    layers = zip(outputs_class, outputs_coord, outputs_corners, outputs_ref, strict=True)
    return [{**dict(zip(names, layer, strict=True)), **teacher} for layer in layers]


def DFineForObjectDetectionLoss(
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
    predicted_corners: Tensor | None = None,
    initial_reference_points: Tensor | None = None,
    **kwargs: Any,
) -> Losses:
    """The loss of D-FINE, as its model calls it; boxes are clamped to the image.

    Arguments and result as in :func:`detloss.compat.transformers.loss.loss_rt_detr.RTDetrForObjectDetectionLoss`, and

    Args:
        config: see :class:`DFineLoss`; also ``auxiliary_loss``.
        predicted_corners: ``[B, L, Q, 4 (R + 1)]`` logits of the bins of all layers.
        initial_reference_points: ``[B, L, Q, 4]`` boxes that they start from.
    """
    meta = denoising_meta_values
    if meta is not None:
        logits, pred_boxes = (torch.split(x, meta["dn_num_split"], dim=1)[1] for x in (logits, pred_boxes))
    outputs: dict[str, Any] = {"logits": logits, "pred_boxes": pred_boxes.clamp(0, 1)}
    auxiliary = None
    if config.auxiliary_loss:
        layers: Sequence[Any] = outputs_class, _inside(outputs_coord), predicted_corners, initial_reference_points
        if meta is not None:
            noisy, layers = zip(*(torch.split(x, meta["dn_num_split"], dim=2) for x in layers), strict=True)
            teacher = {"teacher_corners": noisy[2][:, -1], "teacher_logits": noisy[0][:, -1]}
            own = _set_aux_loss2(*(x.transpose(0, 1) for x in noisy), **teacher)
            outputs |= {"dn_auxiliary_outputs": own, "denoising_meta_values": meta}
        teacher = {"teacher_corners": layers[2][:, -1], "teacher_logits": layers[0][:, -1]}
        auxiliary = _set_aux_loss2(*(x[:, :-1].transpose(0, 1) for x in layers), **teacher)
        auxiliary += _set_aux_loss([enc_topk_logits], [_inside(enc_topk_bboxes)])  # type: ignore[list-item]
        outputs["auxiliary_outputs"] = auxiliary
    losses = DFineLoss(config).to(device)(outputs, labels)
    return torch.stack(list(losses.values())).sum(), losses, auxiliary


def _inside(boxes: Tensor | None) -> Tensor:
    if boxes is None:
        raise ValueError(
            "DFineForObjectDetectionLoss: auxiliary losses need the boxes of all layers and of the encoder; got None"
        )
    return boxes.clamp(0, 1)
