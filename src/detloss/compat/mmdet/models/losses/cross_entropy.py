"""``CrossEntropyLoss`` in its three forms, and the functions behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detloss import functional as F
from detloss import losses as engine
from detloss.compat.mmdet.models.losses.reduction import check_override, fitted_weight
from detloss.compat.mmdet.registry import MODELS
from detloss.types import ClassWeights, Number, Reduction

__all__ = ["CrossEntropyLoss", "binary_cross_entropy", "cross_entropy", "mask_cross_entropy"]


def cross_entropy(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    class_weight: ClassWeights | None = None,
    ignore_index: int | None = -100,
    avg_non_ignore: bool = False,
) -> Tensor:
    """Softmax cross entropy: :func:`detloss.functional.cross_entropy_loss`.

    A mean divides by the number of rows, ignored ones included unless ``avg_non_ignore``, and not by the sum of the class
    weights.

    Args:
        pred: logits ``[N, C]`` or ``[B, C, H, W]``.
        label: class indices ``[N]`` or ``[B, H, W]``.
        weight: one number per position.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
        class_weight: one number per class.
        ignore_index: label that does not count; ``None`` is −100.
        avg_non_ignore: a mean divides by the positions that count.
    """
    return F.cross_entropy_loss(
        pred,
        label,
        class_weight=class_weight,
        ignore_index=-100 if ignore_index is None else ignore_index,
        avg_non_ignore=avg_non_ignore,
        weight=weight,
        avg_factor=avg_factor,
        reduction=reduction,
    )


def binary_cross_entropy(
    pred: Tensor,
    label: Tensor,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    class_weight: ClassWeights | None = None,
    ignore_index: int | None = -100,
    avg_non_ignore: bool = False,
) -> Tensor:
    """Sigmoid cross entropy of every logit: :func:`detloss.functional.binary_cross_entropy_loss`.

    Labels ``[N]`` beside logits ``[N, C]`` are class indices: C (the background) is negative in all columns; ``ignore_index``
    and every negative label count neither way. Labels of the logits' shape are targets in [0, 1]; those equal to
    ``ignore_index`` or below 0 count neither way. ``class_weight`` weighs the positives only, as there.

    Args:
        pred: logits ``[N, C]``, or of any shape with labels of the same shape.
        label: class indices ``[N]`` or targets of the logits' shape.
        weight: one number per row or per logit.
        reduction: ``"none"`` (the shape of ``pred``), ``"mean"`` or ``"sum"``.
        avg_factor: what a mean divides by.
        class_weight: one number per class.
        ignore_index: label that does not count; ``None`` is −100.
        avg_non_ignore: a mean divides by the elements that count.
    """
    ignored = -100 if ignore_index is None else ignore_index
    weight = fitted_weight(weight, pred.shape)
    if label.ndim == pred.ndim:
        counts = (label >= 0) & (label != ignored)
        if avg_non_ignore and avg_factor is None and reduction == "mean":
            avg_factor = counts.sum()
        weight = counts.to(pred.dtype) if weight is None else torch.where(counts, _per_element(weight, pred), 0.0)
        label = torch.where(counts, label, 0)
    else:
        label = torch.where(label < 0, ignored, label)
    return F.binary_cross_entropy_loss(
        pred,
        label,
        class_weight=class_weight,
        ignore_index=ignored,
        avg_non_ignore=avg_non_ignore,
        weight=weight,
        avg_factor=avg_factor,
        reduction=reduction,
    )


def _per_element(weight: Tensor, pred: Tensor) -> Tensor:
    return weight.reshape(*weight.shape, *(1,) * (pred.ndim - weight.ndim)).to(pred.dtype)


def mask_cross_entropy(
    pred: Tensor,
    target: Tensor,
    label: Tensor,
    reduction: Reduction = "mean",
    avg_factor: Number | Tensor | None = None,
    class_weight: ClassWeights | None = None,
    ignore_index: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """Mask loss, a tensor of shape ``[1]``: :func:`detloss.functional.mask_bce_loss`; 0 without masks (there NaN).

    Args:
        pred: logits ``[N, C, H, W]``.
        target: masks ``[N, H, W]`` in [0, 1].
        label: class indices ``[N]``, which mask of the C is meant.
        reduction: must be ``"mean"``.
        avg_factor: must be ``None``.
        class_weight: must be ``None`` (there a weight of the pixels of a row, which no configuration sets).
        ignore_index: must be ``None``.
        **kwargs: not used.

    Raises:
        AssertionError: a reduction other than ``"mean"``, ``avg_factor`` or ``ignore_index``.
        ValueError: ``class_weight``, or shapes that do not fit.
    """
    if reduction != "mean" or avg_factor is not None or ignore_index is not None:
        raise AssertionError(
            "mask_cross_entropy: expected reduction='mean', avg_factor=None and ignore_index=None; "
            f"got {reduction!r}, {avg_factor!r} and {ignore_index!r}"
        )
    if class_weight is not None:
        raise ValueError(f"mask_cross_entropy: expected class_weight=None; got {class_weight!r}")
    return F.mask_bce_loss(pred, target, label=label).reshape(1)


@MODELS.register_module()
class CrossEntropyLoss(engine.CrossEntropyLoss):
    """Cross entropy: softmax, sigmoid (``use_sigmoid``) or of masks (``use_mask``); see :func:`cross_entropy`,
    :func:`binary_cross_entropy` and :func:`mask_cross_entropy`.

    With ``use_mask`` the call is ``loss(mask_logits, masks, labels)`` and returns a tensor of shape ``[1]``.

    Args:
        use_sigmoid: every logit on its own.
        use_mask: mask logits against masks.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        class_weight: one number per class.
        ignore_index: label that does not count; ``None`` is −100.
        loss_weight: factor of the result.
        avg_non_ignore: a mean divides by the elements that count.

    >>> CrossEntropyLoss(use_mask=True)(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4), torch.tensor([1]))
    tensor([0.6931])
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: Reduction = "mean",
        class_weight: ClassWeights | None = None,
        ignore_index: int | None = None,
        loss_weight: float = 1.0,
        avg_non_ignore: bool = False,
    ) -> None:
        super().__init__(
            use_sigmoid, use_mask, class_weight, ignore_index, avg_non_ignore, reduction=reduction, loss_weight=loss_weight
        )

    def forward(  # type: ignore[override]
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: Number | Tensor | None = None,
        reduction_override: Reduction | None = None,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute the loss of logits ``cls_score``; with ``use_mask`` the third argument is the class of each mask.

        ``kwargs`` are not used.
        """
        check_override("CrossEntropyLoss", reduction_override)
        reduction = self.reduction if reduction_override is None else reduction_override
        ignored = self.ignore_index if ignore_index is None else ignore_index
        if self.use_mask:
            if weight is None:
                raise TypeError("CrossEntropyLoss(use_mask=True): the third argument is the class of each mask, [N]; got None")
            loss = mask_cross_entropy(cls_score, label, weight, reduction, avg_factor)
        else:
            function = binary_cross_entropy if self.use_sigmoid else cross_entropy
            loss = function(cls_score, label, weight, reduction, avg_factor, self.class_weight, ignored, self.avg_non_ignore)
        return loss * self.loss_weight
