"""The head of FCOS with distances as distributions, as the generalised focal loss learns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from detloss.criteria.distances import expected_distance
from detloss.criteria.levels import rows
from detloss.integrations.attach import Attached, attach, detach
from detloss.integrations.torchvision_inputs import as_maps

__all__ = ["GFLHead", "replace_head", "restore_head"]

CERTAIN = 40.0  # a logit whose probability is 1 in every precision
LAYERS = ("bbox_reg", "bbox_ctrness")


class GFLHead(Attached):
    """``FCOSHead`` whose ``bbox_reg`` gives 4·(R + 1) bins of strides, without centerness.

    The call gives what torchvision's detection reads: expected distances in strides, and logits x′ and a centerness of 1 for
    which its score √(σ(x′) · 1) is the class score σ(x).
    """

    classification_head: Any
    regression_head: Any
    reg_max: int
    original_layers: tuple[nn.Module, ...]

    def maps(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level class logits ``[B, C, H, W]`` and bins ``[B, 4·(R + 1), H, W]``."""
        tower = self.regression_head
        bins = [tower.bbox_reg(tower.conv(x)) for x in features]
        return as_maps(self.classification_head(list(features)), features), bins

    def forward(self, x: Sequence[Tensor]) -> dict[str, Tensor]:
        """Rows of all levels, as ``FCOSHead`` gives them."""
        scores, bins = self.maps(x)
        logits = squared_score(rows(scores))
        return {
            "cls_logits": logits,
            "bbox_regression": rows([expected_distance(level, 1) for level in bins]),
            "bbox_ctrness": torch.full_like(logits[..., :1], CERTAIN),
        }


def squared_score(logits: Tensor) -> Tensor:
    """x′ with σ(x′) = σ(x)², computed in fp32: x′ = 2 ln σ(x) − ln(1 − σ(x)²), 1 − σ² = σ(−x)(1 + σ(x))."""
    x = logits.float()
    return 2 * logsigmoid(x) - logsigmoid(-x) - torch.log1p(x.sigmoid())


def replace_head(head: Any, reg_max: int) -> None:
    """Give an ``FCOSHead`` 4·(reg_max + 1) channels for the boxes; a head that has them already keeps its weights."""
    if isinstance(head, GFLHead) and head.reg_max == reg_max:
        return
    restore_head(head)
    tower = getattr(head, "regression_head", None)
    parts = [getattr(tower, name, None) for name in (*LAYERS, "conv")]
    if tower is None or any(part is None for part in parts) or not isinstance(tower.bbox_reg, nn.Conv2d):
        raise ValueError(
            f"with_criterion(FCOS): for GFLLoss the head must have regression_head.conv, .bbox_reg (a Conv2d) and .bbox_ctrness, "
            f"as torchvision's FCOSHead has them; got {type(head).__name__} with {type(tower).__name__}"
        )
    old = tower.bbox_reg
    if old.out_channels != 4:
        raise ValueError(f"with_criterion(FCOS): expected one anchor per cell, 4 channels of boxes; got {old.out_channels}")
    # The initial weights are those of FCOSHead: every distance starts as the mean of the bins.
    layer = nn.Conv2d(old.in_channels, 4 * (reg_max + 1), old.kernel_size, old.stride, old.padding)  # type: ignore[arg-type]
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]
    originals = tuple(getattr(tower, name) for name in LAYERS)
    tower.bbox_reg = layer.to(device=old.weight.device, dtype=old.weight.dtype)
    del tower.bbox_ctrness
    attach(head, GFLHead, reg_max=reg_max, original_layers=originals)


def restore_head(head: Any) -> None:
    """Put the layers that :func:`replace_head` took back; nothing happens for other heads."""
    if not isinstance(head, GFLHead):
        return
    like = head.regression_head.bbox_reg.weight
    for name, layer in zip(LAYERS, head.original_layers, strict=True):
        setattr(head.regression_head, name, layer.to(device=like.device, dtype=like.dtype))
    detach(head)  # type: ignore[type-var]
