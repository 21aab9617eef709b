"""Means of the parts of a loss between two lines of a log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detloss.types import LossDict

__all__ = ["LossMeter", "detached"]


class LossMeter:
    """Running means of what each :class:`detloss.types.LossDict` holds: total, weighted terms, metrics.

    :meth:`update` adds on the device and never waits for it; :meth:`means` reads all numbers in one transfer.

    >>> meter = LossMeter()
    >>> for value in (1.0, 2.0):
    ...     meter.update(LossDict({"loss_cls": torch.tensor(value)}, metrics={"num_pos": torch.tensor(4)}))
    >>> meter.means("train/")
    {'train/total_loss': 1.5, 'train/loss_cls': 1.5, 'train/num_pos': 4.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def update(self, losses: Mapping[str, Tensor] | None) -> None:
        """Add the losses of a step: a LossDict, or a mapping of 0-dim tensors. ``None`` (no step yet) adds nothing."""
        if losses is None:
            return
        values = losses.log_dict() if isinstance(losses, LossDict) else losses
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.ndim:
                got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"LossMeter: {name} must be a 0-dim tensor; got {got}")
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self, prefix: str = "") -> dict[str, float]:
        """Mean of every entry over the updates that had it, as numbers; keys get the prefix. The host waits once."""
        if not self._sums:
            return {}
        numbers = torch.stack(list(self._sums.values())).tolist()
        return {prefix + name: x / self._counts[name] for name, x in zip(self._sums, numbers, strict=True)}

    def reset(self) -> None:
        """Forget everything."""
        self._sums, self._counts = {}, {}


def detached(losses: LossDict) -> LossDict:
    """The same numbers without the graph, which would keep the activations of the step alive."""
    return LossDict({name: value.detach() for name, value in losses.items()}, losses.unweighted, losses.metrics)
