"""Classification losses whose target is a quality: quality focal, varifocal, Gaussian (heat map) focal and centerness.

The arguments shared by all classification losses are described in :mod:`detloss.functional.classification`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detloss.checks import check_non_negative, check_real, check_same_shape, shape_of, upcast
from detloss.functional.classification import binary_cross_entropy
from detloss.functional.focal import as_logits, power
from detloss.functional.targets import (
    CLASS_DIM,
    ClassIndex,
    class_index,
    dense_target,
    is_class_index,
    of_own_class,
    put_positive,
)
from detloss.kernels.contract import Call
from detloss.kernels.dispatch import fused_loss
from detloss.reduction import check_reduction, mute, reduce_loss
from detloss.types import Number, Reduction
from detloss.values import check_unit_interval

__all__ = [
    "centerness_loss",
    "gaussian_focal_loss",
    "label_and_score",
    "label_with_score",
    "quality_focal_loss",
    "varifocal_loss",
]


def label_with_score(where: str, pred: Tensor, target: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The two parts of a ``(label, score)`` target: indices and scores of the same shape, their values not yet checked."""
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        raise TypeError(f"{where}: target must be a tensor of the logits' shape or (label, score); got {type(target).__name__}")
    label, score = target
    check_real(where, "score", score)
    if not is_class_index(where, pred, label):
        raise ValueError(f"{where}: label must hold class indices, [N] for logits [N, C]; got {shape_of(label)}")
    if label.shape != score.shape:
        raise ValueError(f"{where}: label and score must have the same shape; got {shape_of(label)} and {shape_of(score)}")
    return label, score


def label_and_score(where: str, pred: Tensor, target: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The two parts of a ``(label, score)`` target: indices, and checked scores with a class dimension of 1."""
    label, score = label_with_score(where, pred, target)
    check_unit_interval(where, "scores", score)
    return label, score.to(pred.dtype).unsqueeze(CLASS_DIM)


def foreground_score(where: str, score: Tensor, pred: Tensor, found: ClassIndex) -> Tensor:
    """Checked scores shaped to go with the column of the class; 0 where there is no class."""
    check_unit_interval(where, "scores", score)
    return torch.where(found.foreground, score.to(pred.dtype).unsqueeze(CLASS_DIM), 0.0)


def quality_targets(label: Tensor, score: Tensor, dense: bool) -> dict[str, Tensor]:
    """The targets under the names that a kernel call gives them."""
    return {"target": score} if dense else {"index": label, "score": score}


def quality_focal_loss(
    pred: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    *,
    beta: float = 2.0,
    ignore_index: int = -100,
    activated: bool = False,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Quality focal loss: |s − σ(x)|^β · BCE(x, s) in the column of the class, σ(x)^β · BCE(x, 0) in all others.

    The sum over classes is the loss of a position: ``none`` gives ``[N]`` or ``[B, H, W]``. The modulating factor is
    differentiated. Source: Generalized Focal Loss, Li et al. 2020, arXiv:2006.04388.

    Args:
        target: ``(label, score)``: class indices ``[N]`` (background C) and qualities ``[N]`` in [0, 1], usually the IoU
            of the predicted box; or one dense tensor of the logits' shape that holds the score in the class's column.
        beta: exponent of the modulating factor, >= 0.
        activated: ``pred`` holds probabilities σ(x), not logits; logits keep more digits.

    >>> quality_focal_loss(torch.zeros(1, 2), (torch.tensor([0]), torch.tensor([1.0])))  # 2 · ln 2 / 4
    tensor(0.3466)
    """
    where = "quality_focal_loss"
    check_non_negative(where, beta=beta)
    check_reduction(where, reduction, avg_factor)
    dense = isinstance(target, Tensor)
    label, score = (target, target) if isinstance(target, Tensor) else label_with_score(where, pred, target)
    if dense and (is_class_index(where, pred, label) or pred.ndim not in (2, 4)):
        raise ValueError(
            f"{where}: target must be (label, score) or a dense tensor of the shape of the logits [N, C] or [B, C, H, W]; "
            f"got pred {shape_of(pred)} and target {shape_of(label)}"
        )

    def formula(pred: Tensor) -> Tensor:
        pred = as_logits(where, pred, activated)
        if dense:
            y = dense_target(where, pred, score)
            return (power((y - pred.sigmoid()).abs(), beta) * binary_cross_entropy(pred, y)).sum(CLASS_DIM)
        found = class_index(where, pred, label, ignore_index, background=True)
        pred = torch.where(found.valid, pred, 0.0)
        own, own_score = of_own_class(pred, found), foreground_score(where, score, pred, found)
        negative = power(pred.sigmoid(), beta) * binary_cross_entropy(pred, 0.0)
        positive = power((own_score - own.sigmoid()).abs(), beta) * binary_cross_entropy(own, own_score)
        return torch.where(found.valid, put_positive(negative, positive, found), 0.0).sum(CLASS_DIM)

    call = Call(
        "quality_focal", pred, **quality_targets(label, score, dense), weight=weight, ignore_index=ignore_index, numbers=(beta,)
    )
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction, fusible=not activated)


def varifocal_loss(
    pred: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Varifocal loss: q · BCE(x, q) where q > 0 and α σ(x)^γ · BCE(x, 0) where q = 0.

    The modulating factor is differentiated. ``none`` gives the shape of ``pred``.
    Source: VarifocalNet, Zhang et al. 2021, arXiv:2008.13367.

    Args:
        target: qualities q in [0, 1], dense, of the shape of ``pred``; or ``(label, score)`` as for
            :func:`quality_focal_loss`.
        alpha: weight of the negatives.
        gamma: exponent of the modulating factor of the negatives.
        iou_weighted: weigh positives by q; ``False`` gives them weight 1.

    >>> varifocal_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), reduction="none")  # ln 2 and 0.75 · ln 2 / 4
    tensor([[0.6931, 0.1300]])
    """
    where = "varifocal_loss"
    check_non_negative(where, alpha=alpha, gamma=gamma)
    check_reduction(where, reduction, avg_factor)

    def quality_term(x: Tensor, q: Tensor) -> Tensor:
        factor = torch.where(q > 0, q if iou_weighted else 1.0, alpha * power(x.sigmoid(), gamma))
        return factor * binary_cross_entropy(x, q)

    dense = isinstance(target, Tensor)
    if isinstance(target, Tensor):
        check_same_shape(where, pred, target)
        label, score = target, target
    else:
        label, score = label_with_score(where, pred, target)

    def formula(pred: Tensor) -> Tensor:
        if dense:
            return quality_term(pred, dense_target(where, pred, score))
        found = class_index(where, pred, label, ignore_index, background=True)
        pred = torch.where(found.valid, pred, 0.0)
        negative = alpha * power(pred.sigmoid(), gamma) * binary_cross_entropy(pred, 0.0)
        positive = quality_term(of_own_class(pred, found), foreground_score(where, score, pred, found))
        return torch.where(found.valid, put_positive(negative, positive, found), 0.0)

    call = Call(
        "varifocal", pred, **quality_targets(label, score, dense), weight=weight, ignore_index=ignore_index,
        numbers=(alpha, gamma, float(iou_weighted)),
    )  # fmt: skip
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction)


def gaussian_focal_loss(
    pred: Tensor,
    target: Tensor,
    *,
    alpha: float = 2.0,
    gamma: float = 4.0,
    activated: bool = False,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Gaussian focal loss of a heat map: −(1 − p)^α ln p where h = 1, else −(1 − h)^γ p^α ln(1 − p).

    ``none`` gives the shape of ``pred``. The usual ``avg_factor`` is the number of objects.
    Source: CornerNet, Law and Deng 2018, arXiv:1808.01244; CenterNet, Zhou et al. 2019, arXiv:1904.07850.

    Args:
        pred: logits, or probabilities with ``activated=True``; any shape.
        target: heat map h in [0, 1] of the same shape, exactly 1 at the centres.
        alpha: focusing exponent.
        gamma: exponent that spares the surroundings of a centre.

    >>> gaussian_focal_loss(torch.zeros(2), torch.tensor([1.0, 0.5]), reduction="none")  # ln 2 / 4 and ln 2 / 64
    tensor([0.1733, 0.0108])
    """
    where = "gaussian_focal_loss"
    check_non_negative(where, alpha=alpha, gamma=gamma)
    check_same_shape(where, pred, target)
    check_reduction(where, reduction, avg_factor)
    pred = mute(where, upcast(pred), weight, pred.shape)
    h = dense_target(where, pred, target)
    pred = as_logits(where, pred, activated)
    positive = power((-pred).sigmoid(), alpha) * binary_cross_entropy(pred, 1.0)
    negative = power(1 - h, gamma) * power(pred.sigmoid(), alpha) * binary_cross_entropy(pred, 0.0)
    loss = torch.where(h == 1, positive, negative)
    return reduce_loss(loss, weight=weight, avg_factor=avg_factor, reduction=reduction, where=where)


def centerness_loss(
    pred: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Centerness loss: binary cross entropy −t ln σ(x) − (1 − t) ln(1 − σ(x)) against a centerness t in [0, 1].

    Source: FCOS, Tian et al. 2019, arXiv:1904.01355.

    Args:
        pred: logits of any shape.
        target: centerness (:func:`detloss.geometry.centerness`), the same shape.

    >>> centerness_loss(torch.zeros(3), torch.tensor([0.0, 0.5, 1.0]))
    tensor(0.6931)
    """
    where = "centerness_loss"
    check_same_shape(where, pred, target)
    check_reduction(where, reduction, avg_factor)

    def formula(pred: Tensor) -> Tensor:
        return binary_cross_entropy(pred, dense_target(where, pred, target))

    call = Call("binary_cross_entropy", pred, target=target, weight=weight, numbers=(0.0,))
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction)
