"""What a back-end is given to decode distributions over bins, and what it returns: their means, without a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

__all__ = ["BinMeans"]


@dataclass
class BinMeans:
    """Σ_r r · softmax(x)_r of groups of bins → fp32 ``[B, G, I]``; NaN stays NaN.

    Attributes:
        logits: ``[B, G, R + 1, I]``: G sides with R + 1 bins each at I positions, fp32, bf16 or fp16, any strides.
    """

    op: ClassVar[str] = "expected_distance"
    logits: Tensor

    @property
    def pred(self) -> Tensor:
        """The predictions, as a ``Call`` has them."""
        return self.logits

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors but ``pred``."""
        return ()
