"""What a back-end is given to compare masks that are linear in prototypes with the truth, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

__all__ = ["Crop", "PrototypeMasks"]


class Crop(NamedTuple):
    """One object: the rows that predict it, the pixels that count, and its mask.

    Attributes:
        image: number of the prototypes.
        first: first row of coefficients.
        last: the one after the last.
        y1: first row of pixels.
        y2: the one after the last.
        x1: first column of pixels.
        x2: the one after the last.
        mask: number of the mask.
        number: the object is where the mask has this number; 0: the mask holds targets in [0, 1].
    """

    image: int
    first: int
    last: int
    y1: int
    y2: int
    x1: int
    x2: int
    mask: int
    number: int


@dataclass
class PrototypeMasks:
    """Σ weight · BCE(coefficients · prototypes, target) over the pixels of all crops → sum and gradients, fp32.

    Attributes:
        coefficients: ``[R, K]``.
        prototypes: ``[B, K, H, W]``.
        masks: ``[M, H, W]``.
        crops: a :class:`Crop` per row, int64 ``[G, 9]`` on the CPU, those of an image side by side in the order of images.
        weight: of every pixel of a crop, ``[G]``.
    """

    op: ClassVar[str] = "prototype_masks"
    coefficients: Tensor
    prototypes: Tensor
    masks: Tensor
    crops: Tensor
    weight: Tensor

    @property
    def pred(self) -> Tensor:
        """What the device and dtype of a call are those of."""
        return self.coefficients

    def first_crops(self) -> Tensor:
        """``[B + 1]``: number of the first crop of every image, then of all crops; on the CPU as they are."""
        return torch.searchsorted(self.crops[:, 0].contiguous(), torch.arange(len(self.prototypes) + 1))

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that are constants."""
        return self.masks, self.weight
