"""The Triton back-end: one kernel for the loss, its gradient and its sum, and one that adds the partial sums up."""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

from detloss.kernels.contract import Call, Request
from detloss.kernels.matches import Match
from detloss.kernels.means import BinMeans
from detloss.kernels.prototypes import PrototypeMasks
from detloss.kernels.triton_backend import (
    aligned,
    atss,
    boxes,
    coordinates,
    distribution,
    divergence,
    expectation,
    masks,
    max_iou,
    pair_cost,
    prototypes,
    rotated,
    sigmoid,
    softmax,
)
from detloss.kernels.triton_backend.sums import finished, rescaled

__all__ = ["BACKEND", "Triton"]

_LOSSES = (sigmoid, softmax, divergence, distribution, coordinates, boxes, rotated, masks)
_MATCHES = (aligned, atss, max_iou, pair_cost)
_FAMILIES: dict[str, ModuleType] = {op: family for family in (*_LOSSES, *_MATCHES, expectation, prototypes) for op in family.OPS}


def _interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU, as tests do where there is no CUDA device."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


class Triton:
    """Kernels on CUDA; see :class:`detloss.kernels.contract.Backend` for the methods.

    Nothing here waits for the device, so calls can be captured in a CUDA graph, but masks, whose windows the host reads; sums
    are taken in a fixed order.
    """

    name = "triton"
    ops = frozenset(_FAMILIES)

    def unavailable(self) -> str | None:
        """Why there is nothing to run on, or ``None``."""
        return None if _interpreted() or torch.cuda.is_available() else "PyTorch finds no CUDA device"

    def refuses(self, call: Request) -> str | None:
        """Why a call is not taken: another device, or an operation without a kernel."""
        kind = call.pred.device.type
        if kind != ("cpu" if _interpreted() else "cuda"):
            return f"the triton kernels run on CUDA, not on {kind!r}"
        family = _FAMILIES.get(call.op)
        return f"{call.op} has no triton kernel" if family is None else family.refuses(call)

    def total(
        self, call: Call, factor: float, divisor: Tensor | None, need_grad: bool, checked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Scaled sum and gradient in one pass."""
        if divisor is not None:
            divisor = divisor.to(call.pred.device)
        partial, grad = _FAMILIES[call.op].run(call, factor, divisor, None, "grad" if need_grad else "none", True)
        return finished(partial, divisor, factor), grad

    def elements(self, call: Call, checked: bool) -> Tensor:
        """Element-wise losses."""
        losses: Tensor = _FAMILIES[call.op].run(call, 1.0, None, None, "each", False)[1]
        return losses

    def gradient(self, call: Call, upstream: Tensor) -> Tensor:
        """Gradient of the element-wise losses times ``upstream``."""
        grad: Tensor = _FAMILIES[call.op].run(call, 1.0, None, upstream, "grad", False)[1]
        return grad

    def rescale(self, grad: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
        """``grad`` times the number ``upstream``, which stays on the device."""
        return rescaled(grad, upstream, in_place)

    def match(self, match: Match) -> tuple[Tensor, ...]:
        """The assignment that a rule finds."""
        found: tuple[Tensor, ...] = _FAMILIES[match.op].match(match)
        return found

    def means(self, means: BinMeans) -> Tensor:
        """The means of bins."""
        return expectation.run(means)

    def masks(self, masks: PrototypeMasks, need_grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The cross entropy of masks from prototypes."""
        return prototypes.run(masks, need_grad)


BACKEND = Triton()
