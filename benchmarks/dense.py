"""Assigners as the usual dense algorithms, one image at a time: what is compared with where no package has them alone."""

from __future__ import annotations

import torch
import torch.nn.functional as torch_f
from torch import Tensor

__all__ = ["dense_atss", "dense_iou", "dense_max_iou", "dense_sim_ota", "dense_soft_label"]


def dense_iou(a: Tensor, b: Tensor) -> Tensor:
    """``[N, M]`` in one go."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return common / (area[0][:, None] + area[1] - common).clamp(min=1e-6)


def dense_atss(anchors: Tensor, counts: tuple[int, ...], boxes: Tensor, topk: int = 9) -> tuple[Tensor, Tensor]:
    """One image: all IoU, all distances, topk per level, and the conflicts in a matrix of -inf."""
    iou = dense_iou(anchors, boxes)
    middle, centre = (anchors[:, :2] + anchors[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (middle[:, None] - centre[None]).square().sum(-1).sqrt()
    chosen, start = [], 0
    for count in counts:
        chosen.append(distance[start : start + count].topk(min(topk, count), dim=0, largest=False).indices + start)
        start += count
    candidates = torch.cat(chosen)
    values = iou.gather(0, candidates)
    threshold = values.mean(0) + values.std(0)
    at = middle[candidates]
    inside = torch.cat((at - boxes[:, :2], boxes[:, 2:] - at), dim=-1).amin(-1) > 0.01
    positive = (values >= threshold) & inside
    claims = torch.full_like(iou, -torch.inf)
    for index in range(len(boxes)):
        own = candidates[positive[:, index], index]
        claims[own, index] = iou[own, index]
    best, owner = claims.max(1)
    return torch.where(best.isinf(), -1, owner), torch.where(best.isinf(), 0.0, best)


def dense_max_iou(anchors: Tensor, boxes: Tensor, positive: float = 0.5, negative: float = 0.4) -> Tensor:
    """One image: all IoU, then one object after the other takes the anchors of its highest."""
    iou = dense_iou(boxes, anchors)
    best, owner = iou.max(0)
    index = torch.full_like(owner, -2)
    index[best < negative] = -1
    index[best >= positive] = owner[best >= positive]
    highest = iou.max(1).values
    for row in range(len(boxes)):
        if highest[row] > 0:
            index[iou[row] == highest[row]] = row
    return index.clamp(min=-1)


def _dynamic_k(cost: Tensor, iou: Tensor, pool: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Index and IoU of the object of every prior, from ``[G, M]`` costs and IoU of the M priors of the pool (of P)."""
    k = iou.topk(min(topk, iou.shape[1])).values.sum(1).long().clamp(min=1)
    claims = torch.zeros_like(cost, dtype=torch.bool)
    for row, number in enumerate(k.tolist()):
        claims[row, cost[row].topk(number, largest=False).indices] = True
    several = claims.sum(0) > 1
    claims[:, several] = False
    claims[cost[:, several].argmin(0), several.nonzero()[:, 0]] = True
    taken = claims.any(0)
    owner = claims.to(torch.uint8).argmax(0)
    index, quality = torch.full(pool.shape, -1, device=cost.device), torch.zeros(pool.shape, device=cost.device)
    index[pool] = torch.where(taken, owner, -1)
    quality[pool] = torch.where(taken, iou.gather(0, owner[None])[0], 0.0)
    return index, quality


def dense_sim_ota(
    xy: Tensor, stride: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, predicted: Tensor
) -> tuple[Tensor, Tensor]:
    """One image, as YOLOX goes about it: cross entropy ``[G, M, C]`` of the candidates with a one-hot of every object."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = ((xy[None] - centre[:, None]).abs() < 1.5 * stride[None, :, None]).all(-1)
    pool = near.any(0)
    iou = dense_iou(boxes, predicted[pool])
    logits = scores[pool].expand(len(boxes), -1, -1)
    hot = torch_f.one_hot(labels, scores.shape[1]).float()[:, None].expand_as(logits)
    entropy = torch_f.binary_cross_entropy_with_logits(logits, hot, reduction="none").sum(-1)
    cost = entropy - 3 * (iou + 1e-8).log()
    return _dynamic_k(torch.where(near[:, pool], cost, 1e6 * (cost + 1)), iou, pool, 10)


def dense_soft_label(
    xy: Tensor, stride: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, predicted: Tensor
) -> tuple[Tensor, Tensor]:
    """One image, as RTMDet goes about it: soft labels ``[G, M, C]`` of the locations inside objects."""
    pool = ((xy[None] > boxes[:, None, :2]) & (xy[None] < boxes[:, None, 2:])).all(-1).any(0)
    iou = dense_iou(boxes, predicted[pool])
    logits = scores[pool].expand(len(boxes), -1, -1)
    soft = torch_f.one_hot(labels, scores.shape[1]).float()[:, None] * iou[..., None]
    entropy = torch_f.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    classification = (entropy * (soft - logits.sigmoid()).square()).sum(-1)
    distance = (xy[pool][None] - ((boxes[:, :2] + boxes[:, 2:]) / 2)[:, None]).square().sum(-1).sqrt() / stride[pool]
    return _dynamic_k(classification - 3 * (iou + 1e-7).log() + 10 ** (distance - 3), iou, pool, 13)
