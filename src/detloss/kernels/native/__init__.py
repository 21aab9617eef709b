"""The native back-end: C++ kernels for the CPU, called through ctypes, with the threads of PyTorch."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from detloss.kernels.contract import Call, Request
from detloss.kernels.matches import Match
from detloss.kernels.means import BinMeans
from detloss.kernels.native import (
    boxes,
    coordinates,
    expectation,
    library,
    masks,
    matching,
    prototypes,
    rotated,
    sigmoid,
    softmax,
)
from detloss.kernels.prototypes import PrototypeMasks

__all__ = ["BACKEND", "Native"]

_FAMILIES: dict[str, ModuleType] = {
    op: family for family in (sigmoid, softmax, boxes, coordinates, rotated, masks) for op in family.OPS
}


class Native:
    """Kernels on the CPU; see :class:`detloss.kernels.contract.Backend` for the methods."""

    name = "native"
    ops = frozenset(_FAMILIES) | matching.OPS | expectation.OPS | prototypes.OPS

    def unavailable(self) -> str | None:
        """Why there is no library, or ``None``."""
        return library.problem()

    def refuses(self, call: Request) -> str | None:
        """Why a call is not taken: another device, or an operation without a kernel."""
        if not call.pred.is_cpu:
            return f"the native kernels run on the CPU, not on {call.pred.device.type!r}"
        if isinstance(call, Call):
            family = _FAMILIES.get(call.op)
            return f"{call.op} has no native kernel" if family is None else family.refuses(call)
        if isinstance(call, BinMeans):
            return expectation.refuses(call)
        return prototypes.refuses(call) if isinstance(call, PrototypeMasks) else matching.refuses(call)

    def total(
        self, call: Call, factor: float, divisor: Tensor | None, need_grad: bool, checked: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """Scaled sum and gradient in one pass; ``None`` when a target is outside its range."""
        scale = factor
        if divisor is not None:
            number = float(divisor)
            scale = factor / number if number > 0 else 0.0
        total, bad, grad = _FAMILIES[call.op].run(call, scale, need_grad, None, False)
        if bad and checked:
            return None
        return total, grad.zero_() if scale == 0 and grad is not None else grad

    def elements(self, call: Call, checked: bool) -> Tensor | None:
        """Element-wise losses; ``None`` when a target is outside its range."""
        _, bad, losses = _FAMILIES[call.op].run(call, 1.0, False, None, True)
        return None if bad and checked else losses

    def gradient(self, call: Call, upstream: Tensor) -> Tensor:
        """Gradient of the element-wise losses times ``upstream``."""
        if any(upstream.stride()):
            return _FAMILIES[call.op].run(call, 1.0, True, upstream, False)[2]
        scale = float(upstream.reshape(-1)[0])  # one number expanded, as sum() gives it
        grad: Tensor = _FAMILIES[call.op].run(call, scale, True, None, False)[2]
        return grad.zero_() if scale == 0 else grad

    def rescale(self, grad: Tensor, upstream: Tensor, in_place: bool) -> Tensor:
        """``grad`` times the number ``upstream``."""
        number = float(upstream)
        if number == 1:
            return grad
        return grad.mul_(number) if in_place else grad * number

    def match(self, match: Match) -> tuple[Tensor, ...]:
        """The assignment that a rule finds."""
        return matching.match(match)

    def means(self, means: BinMeans) -> Tensor:
        """The means of bins."""
        return expectation.run(means)

    def masks(self, masks: PrototypeMasks, need_grad: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The cross entropy of masks from prototypes."""
        return prototypes.run(masks, need_grad)


BACKEND = Native()
