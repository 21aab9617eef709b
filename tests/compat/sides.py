"""Both sides of a comparison: the installed peer, and its likes in ``detloss.compat``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from conformance import with_autotimm, with_effdet, with_kornia, with_torchvision, with_transformers, with_ultralytics
from conformance.evaluate import namespace
from torch import Tensor

__all__ = ["DTYPES", "assert_same", "boxes", "gradient", "peer", "random", "slope_of"]

PEERS = {
    "autotimm": with_autotimm.PEER,
    "effdet": with_effdet.PEER,
    "fvcore": with_torchvision.FVCORE,
    "kornia": with_kornia.PEER,
    "transformers": with_transformers.PEER,
    "torchvision": with_torchvision.TORCHVISION,
    "ultralytics": with_ultralytics.PEER,
}
DTYPES = (torch.float32, torch.float64)
VALUE = {torch.float32: 1e-6, torch.float64: 1e-9}
GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-9}


def peer(name: str) -> Any:
    """The installed package; skips the test where it is absent."""
    return namespace(PEERS[name])[name]


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes(seed: int, count: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Pairs of boxes of 20 to 150 px: overlapping, nested and, every third, apart."""
    g = random(seed)

    def unit(columns: int) -> Tensor:
        return torch.rand(count, columns, generator=g, dtype=torch.float64)

    centre, size = 300 * unit(2), 40 + 60 * unit(2)
    shift = (unit(2) - 0.5) * torch.where(torch.arange(count) % 3 == 0, 500.0, 50.0)[:, None]
    half = size * (0.5 + unit(2)) / 2
    pred = torch.cat((centre + shift - half, centre + shift + half), 1)
    return pred.to(dtype), torch.cat((centre - size / 2, centre + size / 2), 1).to(dtype)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor, weigh: bool = True) -> tuple[Tensor, Tensor]:
    """The value of ``loss`` and its gradient, with unequal weights where it is not a scalar."""
    leaf = at.detach().clone().requires_grad_()
    value = loss(leaf)
    weights = torch.linspace(0.5, 1.5, max(value.numel(), 1), dtype=value.dtype).reshape(value.shape) if weigh else 1.0
    return value.detach(), torch.autograd.grad((value * weights).sum(), leaf)[0]


def slope_of(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    return gradient(loss, at)[1]


def assert_same(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], pred: Tensor, tolerance: float | None = None
) -> None:
    """The same shape, value and gradient, up to the tolerance of the dtype in units of the largest element."""
    mine, other = gradient(ours, pred), gradient(theirs, pred)
    for what, a, b, allowed in zip(("value", "gradient"), mine, other, (VALUE, GRADIENT), strict=True):
        assert a.shape == b.shape, f"{what}: {list(a.shape)} here, {list(b.shape)} there"
        assert a.isfinite().all() and b.isfinite().all(), what
        largest = b.abs().max()
        assert largest > 0, f"{what}: nothing is compared"
        difference = (a.double() - b.double()).abs().max() / largest
        assert difference <= (tolerance or allowed[pred.dtype]), f"{what} differs by {difference:.2e}"
