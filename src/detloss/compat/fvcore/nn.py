"""``fvcore.nn``: focal losses, GIoU and smooth L1, with which detectron2 trains.

What differs: float64 stays float64 (its focal losses compute in fp32 always); shapes must be equal, nothing is broadcast; an
unknown reduction is a ``ValueError`` (there it returns the unreduced tensor); a mean of nothing is 0. The names that end in
``_jit`` are the functions themselves: they are for eager mode and ``torch.compile``.
"""

from __future__ import annotations

from torch import Tensor

from detloss.checks import check_positive, check_same_shape, upcast_pair
from detloss.compat.arguments import binary_focal_loss, known_reduction, optional_alpha
from detloss.compat.torchvision.ops import box_loss
from detloss.functional import iou, regression
from detloss.functional.classification import binary_cross_entropy
from detloss.reduction import reduce_loss

__all__ = [
    "giou_loss",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_jit",
    "sigmoid_focal_loss_star",
    "sigmoid_focal_loss_star_jit",
    "smooth_l1_loss",
]

SMALLEST_BETA = 1e-5


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = -1,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    """Focal loss of independent logits: :func:`detloss.functional.sigmoid_focal_loss` for dense targets.

    Args:
        inputs: logits of any shape.
        targets: targets in [0, 1] of the same shape.
        alpha: weight of the positives in [0, 1]; negative (the default) for no weights.
        gamma: focusing exponent, >= 0.
        reduction: ``"none"``, ``"mean"`` over all elements, or ``"sum"``.

    >>> import torch
    >>> sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # ln 2 / 4
    tensor([[0.1733, 0.1733]])
    """
    where = "sigmoid_focal_loss"
    return binary_focal_loss(where, inputs, targets, optional_alpha(alpha), gamma, known_reduction(where, reduction))


def sigmoid_focal_loss_star(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = -1,
    gamma: float = 1,
    reduction: str = "none",
) -> Tensor:
    """FL*: −α_t ln σ(γ x (2y − 1)) / γ, a cross entropy of stretched logits.

    Source: the appendix of Lin et al. 2017, arXiv:1708.02002 (its β is 0).

    Args:
        inputs: logits x of any shape.
        targets: targets y in [0, 1] of the same shape.
        alpha: weight of the positives; negative (the default) for no weights.
        gamma: stretches the logits, > 0; 1 is the binary cross entropy.
        reduction: ``"none"``, ``"mean"`` over all elements, or ``"sum"``.

    >>> import torch
    >>> sigmoid_focal_loss_star(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), gamma=2)  # ln 2 / 2
    tensor([[0.3466, 0.3466]])
    """
    where = "sigmoid_focal_loss_star"
    mode = known_reduction(where, reduction)
    check_positive(where, gamma=gamma)
    check_same_shape(where, inputs, targets)
    x, y = upcast_pair(inputs, targets)
    loss = binary_cross_entropy(gamma * x * (2 * y - 1), 1.0) / gamma
    if alpha >= 0:
        loss = loss * (alpha * y + (1 - alpha) * (1 - y))
    return reduce_loss(loss, reduction=mode, where=where)


sigmoid_focal_loss_jit = sigmoid_focal_loss
sigmoid_focal_loss_star_jit = sigmoid_focal_loss_star


def giou_loss(
    boxes1: Tensor,
    boxes2: Tensor,
    reduction: str = "none",
    eps: float = 1e-7,
) -> Tensor:
    """1 − GIoU of paired boxes: :func:`detloss.functional.giou_loss`.

    A prediction that is turned inside out counts as empty and pays for it, and a NaN stays in its row (there an assertion ends
    the run, after the host has waited for the device). ``eps`` is relative to the enclosing box: an exact match costs 0 for
    boxes of every size. fp16 is computed in fp32 (there boxes of 256 px overflow).

    Args:
        boxes1: ``[N, 4]`` or ``[4]`` corners (x1, y1, x2, y2), the predictions.
        boxes2: likewise, the same shape.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``; the mean of no boxes is 0.
        eps: lower bound of the union relative to the enclosing area.
    """
    return box_loss("giou_loss", iou.giou_loss, boxes1, boxes2, reduction, eps)


def smooth_l1_loss(input: Tensor, target: Tensor, beta: float, reduction: str = "none") -> Tensor:
    """Smooth L1 loss: :func:`detloss.functional.smooth_l1_loss`; below 1e-5 ``beta`` counts as 0, which is L1, as there.

    Args:
        input: predictions of any shape.
        target: likewise, the same shape.
        beta: where the parabola ends.
        reduction: ``"none"``, ``"mean"`` over all elements, or ``"sum"``; the mean of nothing is 0.

    >>> import torch
    >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), beta=1.0)
    tensor([0.1250, 2.5000])
    """
    mode = known_reduction("smooth_l1_loss", reduction)
    return regression.smooth_l1_loss(input, target, beta=beta if beta >= SMALLEST_BETA else 0.0, reduction=mode)
