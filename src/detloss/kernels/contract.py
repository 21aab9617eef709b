"""What a fused back-end is given and what it returns: one form for the CPU and the CUDA kernels.

A back-end knows no reduction names, no errors and no autograd. It is given a :class:`Call` whose metadata is already
checked, and computes in one pass the weighted sum of the loss times a scale together with its gradient, or the
element-wise loss. fp16 and bf16 predictions are computed in fp32; the gradient has the dtype of the prediction.

Rules for all operations:

* A position whose weight is 0, or whose class index is ``ignore_index``, has loss 0 and gradient 0 whatever its values are.
* NaN in a position that counts stays NaN.
* The scale is ``factor``, or ``factor / divisor`` where ``divisor > 0`` and 0 elsewhere.

Operations, and the ``numbers`` of each:

====================  =======================================  ===================================================
op                    targets                                  numbers
====================  =======================================  ===================================================
sigmoid_focal         index [N] | [B, H, W], or target dense   gamma, factor of positives, factor of negatives, ε
binary_cross_entropy  the same                                 ε
quality_focal         index and score, or target dense         beta
varifocal             index and score, or target dense         alpha, gamma, iou_weighted
cross_entropy         index, or target dense                   ε
softmax_focal         index, or target dense                   gamma, ε
kl_divergence         target: logits of a teacher              temperature, in [1e-6, 1e6]
distribution_focal    target: distances [...] in bins
l1, mse               target: like pred
smooth_l1             target: like pred                        beta > 0
huber                 target: like pred                        delta > 0
iou                   target: boxes [..., 4]                   eps, format, mode (0 linear, 1 square, 2 log)
giou, diou, eiou      target: boxes [..., 4]                   eps, format (0 xyxy, 1 xywh, 2 cxcywh)
ciou                  target: boxes [..., 4]                   eps, format, alpha_threshold (negative: none)
siou                  target: boxes [..., 4]                   eps, format, theta
probiou               target: boxes [..., 5]                   eps, form (0 bounded, 1 the distance itself)
tversky               target: masks [N, pixels] like pred      alpha, beta, smooth, squared
====================  =======================================  ===================================================

ε is the label smoothing. ``alpha`` holds factors per class that take the place of both factors of sigmoid_focal (negatives
get 1 − alpha) and that multiply the loss of the class in softmax_focal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from detloss.kernels.matches import Match
from detloss.kernels.means import BinMeans
from detloss.kernels.prototypes import PrototypeMasks

__all__ = ["BOX_OPS", "ELEMENT_OPS", "OPS", "POSITION_OPS", "ROW_OPS", "Backend", "Call", "Request", "loss_shape"]

ELEMENT_OPS = frozenset({"sigmoid_focal", "binary_cross_entropy", "varifocal", "l1", "mse", "smooth_l1", "huber"})
POSITION_OPS = frozenset({"quality_focal", "cross_entropy", "softmax_focal", "kl_divergence"})
BOX_OPS = frozenset({"iou", "giou", "diou", "ciou", "eiou", "siou"})
ROW_OPS = BOX_OPS | {"distribution_focal", "probiou", "tversky"}
OPS = ELEMENT_OPS | POSITION_OPS | ROW_OPS


@dataclass(slots=True)
class Call:
    """One loss call, its metadata checked, no value read; not changed once it is made.

    Attributes:
        op: name of the operation, one of ``OPS``.
        pred: predictions, any strides: logits ``[N, C]`` or ``[B, C, H, W]`` (element-wise operations with a dense target:
            any shape), boxes ``[..., 4]``, rotated boxes ``[..., 5]``, logits of bins ``[..., R + 1]``, logits of masks
            ``[N, pixels]``.
        index: class indices of an integer dtype, ``[N]`` or ``[B, H, W]``.
        target: dense target of the shape of ``pred`` (distances: without its last dimension), any real dtype.
        score: qualities in [0, 1], the shape of ``index``, any real dtype.
        weight: weights over the leading dimensions of the element-wise loss (:func:`loss_shape`), any real dtype.
        class_weight: ``[C]`` fp32.
        alpha: ``[C]`` fp32.
        ignore_index: index of positions that count neither way.
        numbers: the numbers of the operation, see the module.
    """

    op: str
    pred: Tensor
    index: Tensor | None = None
    target: Tensor | None = None
    score: Tensor | None = None
    weight: Tensor | None = None
    class_weight: Tensor | None = None
    alpha: Tensor | None = None
    ignore_index: int = -100
    numbers: tuple[float, ...] = ()

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors but ``pred``, in the order of the fields."""
        return (self.index, self.target, self.score, self.weight, self.class_weight, self.alpha)


def loss_shape(call: Call) -> tuple[int, ...]:
    """Shape of the element-wise loss: that of ``pred``, without the class dimension 1 or without the last dimension."""
    shape = tuple(call.pred.shape)
    if call.op in ELEMENT_OPS:
        return shape
    return shape[:1] + shape[2:] if call.op in POSITION_OPS else shape[:-1]


Request: TypeAlias = Call | Match | BinMeans | PrototypeMasks  # what a back-end can be asked for


class Backend(Protocol):
    """A fused implementation of some operations on some devices: of losses, and of the matches of assigners.

    Attributes:
        name: what :func:`detloss.kernels.use` calls it.
        ops: operations of which it takes at least some calls.
    """

    name: str
    ops: frozenset[str]

    def unavailable(self) -> str | None:
        """Why it cannot run in this process at all, or ``None`` when it can."""

    def refuses(self, call: Request) -> str | None:
        """Why it cannot take this call (operation, device, dtype, shape), or ``None``. Reads metadata only."""

    def total(
        self, call: Call, factor: float, divisor: Tensor | None, need_grad: bool, checked: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """Scaled weighted sum (0-dim fp32) and, if asked, its gradient (dtype and shape of ``pred``).

        ``divisor`` is a one-element tensor on the device of ``pred`` or on the CPU, never read by the host if on a device.
        With ``checked``, a back-end on the CPU gives ``None`` when a target is outside its range: the caller then runs the
        reference, which raises. Without, an index that is no class counts as background and scores are used as they are.
        """

    def elements(self, call: Call, checked: bool) -> Tensor | None:
        """Weighted element-wise loss, fp32; ``checked`` and ``None`` as for :meth:`total`."""

    def gradient(self, call: Call, upstream: Tensor) -> Tensor:
        """Gradient of the weighted element-wise loss times ``upstream`` (fp32, the shape of that loss, any strides)."""

    def rescale(self, grad: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
        """``grad * upstream`` (0-dim fp32) without a host sync on a device; ``grad`` itself where upstream is 1."""

    def match(self, match: Match) -> tuple[Tensor, ...]:
        """The assignment that a rule finds; see :mod:`detloss.kernels.matches`."""

    def means(self, means: BinMeans) -> Tensor:
        """The means of bins; see :mod:`detloss.kernels.means`."""

    def masks(self, masks: PrototypeMasks, need_grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Sum and gradients of masks from prototypes; see :mod:`detloss.kernels.prototypes`."""
