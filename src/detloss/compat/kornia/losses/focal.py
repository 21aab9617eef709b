"""``kornia.losses.focal``: softmax and binary focal losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detloss.checks import check_non_negative, check_same_shape, check_tensor, shape_of, upcast
from detloss.compat.arguments import NOTHING_IGNORED, keep_weights, known_reduction
from detloss.functional.classification import binary_cross_entropy
from detloss.functional.focal import power, softmax_focal_loss
from detloss.reduction import reduce_loss
from detloss.values import check_unit_interval

__all__ = ["BinaryFocalLossWithLogits", "FocalLoss", "binary_focal_loss_with_logits", "focal_loss"]


def as_maps(logits: Tensor) -> Tensor:
    """Logits ``[B, C, …]`` as ``[B, C]`` or, with any number of further dimensions, ``[B, C, S, 1]``."""
    return logits if logits.ndim == 2 else logits.flatten(2).unsqueeze(-1)


def check_unit(where: str, alpha: float | None) -> None:
    """Raise ``ValueError`` unless ``alpha`` is ``None`` or lies in [0, 1]."""
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"{where}: alpha must be None or lie in [0, 1]; got {alpha}")


def focal_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float | None,
    gamma: float = 2.0,
    reduction: str = "none",
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """Softmax focal loss: :func:`detloss.functional.softmax_focal_loss` with the conventions of kornia.

    Class 0 is background to ``alpha``: it gets 1 − α and every other class α. (Detectors with background last want α per
    class, which :func:`detloss.functional.softmax_focal_loss` takes.)

    Args:
        pred: logits ``[B, C, …]``.
        target: class indices ``[B, …]``.
        alpha: weight in [0, 1]; ``None`` for no weights.
        gamma: focusing exponent, >= 0.
        reduction: ``"none"`` for ``[B, C, …]`` with the loss in the column of the target and 0 in the others; ``"mean"``
            over all of these, so C times less than a mean over positions; or ``"sum"``.
        weight: ``[C]`` factor of each class.
        ignore_index: target value of positions whose loss is 0; they count in the mean. ``None`` for none.

    >>> focal_loss(torch.zeros(1, 2), torch.tensor([1]), alpha=None)  # ln 2 / 4
    tensor([[0.0000, 0.1733]])
    """
    where = "focal_loss"
    mode = known_reduction(where, reduction, NotImplementedError)
    check_tensor(where, "pred", pred)
    check_tensor(where, "target", target)
    if pred.ndim < 2 or target.shape != pred.shape[:1] + pred.shape[2:]:
        raise ValueError(
            f"{where}: expected logits [B, C, …] and class indices [B, …]; got {shape_of(pred)} and {shape_of(target)}"
        )
    ignored = NOTHING_IGNORED if ignore_index is None else ignore_index
    maps = as_maps(pred)
    labels = target.reshape(maps.shape[:1] + maps.shape[2:])
    loss = softmax_focal_loss(
        maps, labels, gamma=gamma, alpha=None if alpha is None else [1 - alpha] + [alpha] * (pred.shape[1] - 1),
        class_weight=None if weight is None else weight.reshape(-1), ignore_index=ignored, reduction=mode,
        avg_factor=pred.numel() if mode == "mean" else None,
    )  # fmt: skip
    if mode != "none":
        return loss
    column = torch.where(labels == ignored, 0, labels).long().unsqueeze(1)
    return torch.zeros_like(maps, dtype=loss.dtype).scatter(1, column, loss.unsqueeze(1)).reshape(pred.shape)


def binary_focal_loss_with_logits(
    pred: Tensor,
    target: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """Focal loss of independent logits: −t α (1 − p)^γ ln p − (1 − t)(1 − α) p^γ ln(1 − p) with p = σ(x).

    For t of 0 and 1 it is :func:`detloss.functional.sigmoid_focal_loss`; for others it is not (there p_t and α_t are blended).

    Args:
        pred: logits ``[B, C, …]``.
        target: targets t in [0, 1] of the same shape.
        alpha: weight of the positive term in [0, 1]; ``None`` for no weights.
        gamma: focusing exponent, >= 0.
        reduction: ``"none"``, ``"mean"`` over all elements, or ``"sum"``.
        pos_weight: ``[C]`` factor of the positive term.
        weight: ``[C]`` factor of both terms.
        ignore_index: target value of elements whose loss is 0; they count in the mean. ``None`` for none.

    >>> binary_focal_loss_with_logits(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # 0.25 · ln 2 / 4 and 0.75 · ln 2 / 4
    tensor([[0.0433, 0.1300]])
    """
    where = "binary_focal_loss_with_logits"
    mode = known_reduction(where, reduction, NotImplementedError)
    check_same_shape(where, pred, target)
    if pred.ndim < 2:
        raise ValueError(f"{where}: expected logits [B, C, …]; got {shape_of(pred)}")
    ignored = NOTHING_IGNORED if ignore_index is None else ignore_index
    check_non_negative(where, gamma=gamma)
    check_unit(where, alpha)
    x, t = as_maps(upcast(pred)), as_maps(target)
    valid = t != ignored
    x, t = torch.where(valid, x, 0.0), torch.where(valid, t, 0).to(x.dtype)
    check_unit_interval(where, "targets", t)
    high, low = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    by_channel = (1, -1, *(1,) * (x.ndim - 2))
    positive = t * high if pos_weight is None else t * (high * pos_weight.reshape(by_channel))
    loss = positive * power((-x).sigmoid(), gamma) * binary_cross_entropy(x, 1.0)
    loss = loss + low * (1 - t) * power(x.sigmoid(), gamma) * binary_cross_entropy(x, 0.0)
    if weight is not None:
        loss = loss * weight.reshape(by_channel)
    loss = reduce_loss(torch.where(valid, loss, 0.0), reduction=mode, where=where)
    return loss.reshape(pred.shape) if mode == "none" else loss


class FocalLoss(nn.Module):
    """:func:`focal_loss` as a module."""

    weight: Tensor | None

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        keep_weights(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the loss."""
        return focal_loss(pred, target, self.alpha, self.gamma, self.reduction, self.weight, self.ignore_index)


class BinaryFocalLossWithLogits(nn.Module):
    """:func:`binary_focal_loss_with_logits` as a module; ``alpha`` has no default here, as there."""

    pos_weight: Tensor | None
    weight: Tensor | None

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        pos_weight: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        keep_weights(self, "pos_weight", pos_weight)
        keep_weights(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the loss."""
        return binary_focal_loss_with_logits(
            pred, target, self.alpha, self.gamma, self.reduction, self.pos_weight, self.weight, self.ignore_index
        )
