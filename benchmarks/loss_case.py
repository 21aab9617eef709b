"""A loss as a case: forward and backward of detloss, of its reference formula and of every peer, on the same leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as torch_f
from measure import OURS, REFERENCE, Case, Result, Step
from torch import Tensor

from detloss import kernels

__all__ = ["CLASSES", "Forward", "Makers", "boxes_near", "count", "labels", "leaf", "loss_case", "one_hot", "with_options"]

CLASSES = 80
Forward = Callable[[], Tensor]
Makers = dict[str, Callable[[], Forward]]
SMALL = 100000  # elements of the prediction: below that a step is repeated, as a training loop would not find it cold
NOT_INSTALLED = "not installed"
COMPILED = "torch.compile"
HALF_TOLERANCE = 2e-2
_options: dict[str, Any] = {"dtype": torch.float32, "compile": False}


@contextmanager
def with_options(dtype: torch.dtype, compile: bool) -> Iterator[None]:
    """Cases made inside have predictions of that dtype, and the reference formula through ``torch.compile`` beside it."""
    before = dict(_options)
    _options.update(dtype=dtype, compile=compile)
    try:
        yield
    finally:
        _options.update(before)


def leaf(x: Tensor) -> Tensor:
    """A prediction."""
    x = x.to(_options["dtype"]) if x.dtype == torch.float32 else x
    return x.detach().requires_grad_()


def labels(shape: tuple[int, ...], classes: int = CLASSES) -> Tensor:
    """1 % positives, the rest background (index ``classes``)."""
    return torch.where(torch.rand(shape) < 0.01, torch.randint(0, classes, shape), classes)


def one_hot(index: Tensor, classes: int = CLASSES) -> Tensor:
    """Dense targets ``[N, C]`` or ``[B, C, H, W]`` of class indices."""
    hot = torch_f.one_hot(index, classes + 1)[..., :classes].float()
    return hot if index.ndim == 1 else hot.permute(0, 3, 1, 2).contiguous()


def boxes_near(target: Tensor, spread: float = 4.0) -> Tensor:
    """Predicted boxes whose corners are some pixels off."""
    return target + torch.randn_like(target) * spread


def count(number: int) -> str:
    """``12,345``."""
    return f"{number:,}"


def _difference(tolerance: float) -> Callable[[Result, Result], str]:
    """Compares the loss, then every gradient by the sum of absolute differences.

    A sum, because a few of a million boxes share a coordinate with their target, where the derivative is a convention.
    """

    def differs(ours: Result, theirs: Result) -> str:
        loss, other = (x[0].double().item() for x in (ours, theirs))
        if not abs(loss - other) <= tolerance * abs(other):  # NaN is not
            return f"value {other:.6g}, detloss {loss:.6g}"
        for number, (mine, slope) in enumerate(zip(ours[1:], theirs[1:], strict=True)):
            error = ((mine.double() - slope.double()).abs().sum() / slope.double().abs().sum()).item()
            if not error <= 10 * tolerance:
                return f"gradient {number} off by {error:.1e}"
        return ""

    return differs


def _by_formula(forward: Forward) -> Tensor:
    with kernels.use("reference"):
        return forward()


def loss_case(
    leaves: Tensor | tuple[Tensor, ...],
    ours: Forward,
    makers: Makers,
    *,
    bytes: int | None,
    kernel: str | None = None,
    tolerance: float = 1e-4,
    against: str | None = None,
    values_only: dict[str, str] | None = None,
    left_out: dict[str, str] | None = None,
) -> Case:
    """The case of a loss.

    Args:
        leaves: what the gradients go to.
        ours: the loss of detloss as a sum.
        makers: by name of the implementation; each imports its package and gives the same number as ``ours``.
        bytes: what any implementation must move.
        kernel: name of the loss, where it has a kernel: its formula is then an implementation of its own.
        tolerance: relative, of the value, in float32; of gradients ten times that.
        against: see :class:`measure.Case`, like the rest.
    """
    leaves = (leaves,) if isinstance(leaves, Tensor) else leaves

    def reset() -> None:
        for x in leaves:
            x.grad = None

    def step(forward: Forward) -> Step:
        def both() -> Result:
            loss = forward()
            loss.backward()
            missing = [number for number, x in enumerate(leaves) if x.grad is None]
            if missing:
                raise RuntimeError(f"no gradient for leaves {missing}")
            return loss.detach(), *(x.grad for x in leaves if x.grad is not None)

        return both

    steps, absent = {OURS: step(ours)}, dict(left_out or {})
    if kernel is not None and kernels.backend(kernel, leaves[0]).name != "reference":
        steps[REFERENCE] = step(lambda: _by_formula(ours))
        if _options["compile"]:
            compiled = torch.compile(lambda: ours())
            steps[COMPILED] = step(lambda: _by_formula(compiled))
    if leaves[0].dtype != torch.float32:
        tolerance = HALF_TOLERANCE
    for name, make in makers.items():
        if name in absent:
            continue
        try:
            steps[name] = step(make())
        except ImportError:
            absent[name] = NOT_INSTALLED
    return Case(
        steps, _difference(tolerance), bytes, reset, burst=1 if leaves[0].numel() > SMALL else 25, against=against,
        values_only=values_only or {}, left_out=absent, gradient=sum(x.nbytes for x in leaves),
    )  # fmt: skip
