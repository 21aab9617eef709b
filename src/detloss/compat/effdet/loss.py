"""``effdet.loss``: focal, Huber and smooth L1 losses and the criterion of EfficientDet.

What differs: float64 stays float64 in the criterion; a mean of nothing is 0; targets are not one-hot in memory. ``loss_jit`` is
the criterion function itself: it is for eager mode and ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloss.checks import check_same_shape, upcast
from detloss.compat.arguments import binary_focal_loss
from detloss.functional import regression, robust
from detloss.functional.focal import sigmoid_focal_loss
from detloss.types import Reduction

__all__ = [
    "DetectionLoss",
    "focal_loss_legacy",
    "huber_loss",
    "loss_fn",
    "loss_jit",
    "new_focal_loss",
    "smooth_l1_loss",
]

IGNORED = -2
SMALLEST_BETA = 1e-5


def focal_loss_legacy(logits: Tensor, targets: Tensor, alpha: float, gamma: float, normalizer: float | Tensor) -> Tensor:
    """Focal loss of every element over ``normalizer``, without label smoothing.

    Logits of any size are fine (there ln(1 + e^−x) overflows below −88, and the worst false negative costs nothing).

    Args:
        logits: of any shape.
        targets: 0 or 1, the same shape.
        alpha: weight of the positives in [0, 1].
        gamma: focusing exponent, >= 0.
        normalizer: what every element is divided by.

    >>> focal_loss_legacy(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), 0.25, 2.0, 2.0)
    tensor([[0.0217, 0.0650]])
    """
    return binary_focal_loss("focal_loss_legacy", logits, targets, alpha, gamma, "none") / normalizer


def new_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float,
    gamma: float,
    normalizer: float | Tensor,
    label_smoothing: float = 0.01,
) -> Tensor:
    """Focal loss of every element over ``normalizer``: :func:`detloss.functional.sigmoid_focal_loss`.

    Args:
        logits: of any shape.
        targets: in [0, 1], the same shape.
        alpha: weight of the positives in [0, 1].
        gamma: focusing exponent, >= 0; finite gradients below 1 too.
        normalizer: what every element is divided by.
        label_smoothing: ε; the cross entropy is taken against (1 − ε) t + ε/2.

    >>> new_focal_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), 0.25, 2.0, 2.0)
    tensor([[0.0217, 0.0650]])
    """
    check_same_shape("new_focal_loss", logits, targets)
    loss = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, label_smoothing=label_smoothing, reduction="none")
    return loss / normalizer


def huber_loss(
    input: Tensor, target: Tensor, delta: float = 1.0, weights: Tensor | None = None, size_average: bool = True
) -> Tensor:
    """Huber loss, the mean over all elements or (``size_average=False``) the sum: :func:`detloss.functional.huber_loss`.

    Args:
        input: predictions of any shape.
        target: likewise, the same shape.
        delta: where the parabola ends, > 0.
        weights: factors that broadcast to the shape; 0 removes an element even where it is infinite or NaN.
        size_average: divide by the number of elements.

    >>> huber_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), delta=2.0, size_average=False)  # 0.125 + 4
    tensor(4.1250)
    """
    return robust.huber_loss(input, target, delta=delta, weight=_spread(weights, input), reduction=_reduction(size_average))


def smooth_l1_loss(
    input: Tensor, target: Tensor, beta: float = 1.0 / 9, weights: Tensor | None = None, size_average: bool = True
) -> Tensor:
    """Smooth L1 loss, mean or sum: :func:`detloss.functional.smooth_l1_loss`; below 1e-5 ``beta`` counts as 0, as there.

    Arguments as in :func:`huber_loss`.

    >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), beta=1.0, size_average=False)  # 0.125 + 2.5
    tensor(2.6250)
    """
    return regression.smooth_l1_loss(
        input, target, beta=beta if beta >= SMALLEST_BETA else 0.0, weight=_spread(weights, input),
        reduction=_reduction(size_average),
    )  # fmt: skip


def _spread(weights: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weights is None else weights.broadcast_to(like.shape)


def _reduction(size_average: bool) -> Reduction:
    return "mean" if size_average else "sum"


def _rows(levels: Sequence[Tensor], size: int) -> Tensor:
    """Maps ``[B, A·size, H, W]`` of all levels as rows ``[R, size]``, anchors of a cell one after the other."""
    return torch.cat([upcast(x).movedim(1, -1).reshape(-1, size) for x in levels])


def loss_fn(
    cls_outputs: Sequence[Tensor],
    box_outputs: Sequence[Tensor],
    cls_targets: Sequence[Tensor],
    box_targets: Sequence[Tensor],
    num_positives: Tensor,
    num_classes: int,
    alpha: float,
    gamma: float,
    delta: float,
    box_loss_weight: float,
    label_smoothing: float = 0.0,
    legacy_focal: bool = False,
    *,
    strict: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The criterion of EfficientDet for anchors that are assigned already.

    The focal loss of all anchors that are not ignored is divided by n = Σ ``num_positives`` + 1, the Huber loss of the anchors
    with an object by 4 n. As there, n is that of this rank.

    What differs: a target delta of exactly 0, of an anchor that fits its object, is learnt; there it is taken for background.
    ``strict=True`` gives the old number.

    Args:
        cls_outputs: per level logits ``[B, A·C, H, W]``.
        box_outputs: per level deltas ``[B, A·4, H, W]``.
        cls_targets: per level class indices ``[B, H, W, A]``; −1 is background, −2 ignored.
        box_targets: per level deltas ``[B, H, W, A·4]``.
        num_positives: ``[B]`` anchors with an object.
        num_classes: number of classes C.
        alpha: weight of the positives in [0, 1].
        gamma: focusing exponent, >= 0.
        delta: where the parabola of the Huber loss ends.
        box_loss_weight: weight of the boxes in the total.
        label_smoothing: of the cross entropy; not with ``legacy_focal``.
        legacy_focal: :func:`focal_loss_legacy` in the place of :func:`new_focal_loss`.
        strict: leave deltas of exactly 0 out.

    Returns:
        The total, the class loss and the box loss before ``box_loss_weight``.
    """
    normalizer = num_positives.sum() + 1.0
    logits, deltas = _rows(cls_outputs, num_classes), _rows(box_outputs, 4)
    labels = torch.cat([x.reshape(-1) for x in cls_targets])
    true = torch.cat([x.reshape(-1, 4) for x in box_targets])
    cls_loss = sigmoid_focal_loss(
        logits, torch.where((labels < 0) & (labels != IGNORED), num_classes, labels), alpha=alpha, gamma=gamma,
        label_smoothing=0.0 if legacy_focal else label_smoothing, ignore_index=IGNORED, avg_factor=normalizer,
    )  # fmt: skip
    taught = true != 0 if strict else labels >= 0
    box_loss = robust.huber_loss(deltas, true, delta=delta, weight=taught, avg_factor=4 * normalizer)
    return cls_loss + box_loss_weight * box_loss, cls_loss, box_loss


loss_jit = loss_fn


class DetectionLoss(nn.Module):
    """:func:`loss_fn` with the options of a configuration of effdet.

    Args:
        config: has ``num_classes``, ``alpha``, ``gamma``, ``delta``, ``box_loss_weight``, ``label_smoothing``, ``legacy_focal``
            and ``jit_loss`` (without effect) as attributes.
        strict: see :func:`loss_fn`.
    """

    def __init__(self, config: Any, *, strict: bool = False) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.alpha = config.alpha
        self.gamma = config.gamma
        self.delta = config.delta
        self.box_loss_weight = config.box_loss_weight
        self.label_smoothing = config.label_smoothing
        self.legacy_focal = config.legacy_focal
        self.use_jit = config.jit_loss
        self.strict = strict

    def forward(
        self,
        cls_outputs: Sequence[Tensor],
        box_outputs: Sequence[Tensor],
        cls_targets: Sequence[Tensor],
        box_targets: Sequence[Tensor],
        num_positives: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute (total, class loss, box loss); arguments as in :func:`loss_fn`."""
        return loss_fn(
            cls_outputs, box_outputs, cls_targets, box_targets, num_positives, self.num_classes, self.alpha, self.gamma,
            self.delta, self.box_loss_weight, self.label_smoothing, self.legacy_focal, strict=self.strict,
        )  # fmt: skip
