"""Criteria as configurations: what :func:`detloss.build` turns into an equal criterion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from detloss.assigners.base import Assigner
from detloss.assigners.samplers import RandomSampler
from detloss.compat.configs.losses import is_loss, loss_config
from detloss.compat.configs.sections import ConfigLog, Section
from detloss.compat.mmdet.registry import MODELS
from detloss.criteria.base import Criterion
from detloss.criteria.detr_varifocal import MatchedVarifocalLoss
from detloss.reduction import Normalizer
from detloss.registry import ASSIGNERS, CRITERIA, LOSSES, options

__all__ = ["criterion_config"]

# Options that others say already: weights by name, the assigner, the losses of the terms.
SAID_BY_OTHERS = """
    focal_alpha focal_gamma cls_loss_weight reg_loss_weight centerness_loss_weight cls_weight box_weight obj_weight
    l1_weight mask_weight dfl_weight regress_ranges center_sampling_radius range_bounds
"""
GRID = {
    "strides": "strides", "anchor_sizes": "sizes", "anchor_ratios": "ratios", "anchor_offset": "offset",
    "anchor_order": "order", "anchor_rounded": "rounded", "anchors_rounded": "rounded",
}  # fmt: skip
PARTS = ("rpn", "roi", "mask")
OWN_SAMPLERS = {"RPNLoss": (256, 0.5), "RoIHeadLoss": (512, 0.25)}


def criterion_config(criterion: nn.Module) -> dict[str, Any]:
    """The configuration of a criterion (or a loss): ``detloss.build(criterion_config(criterion))`` is equal to it.

    Plain values throughout, but for a ``sampler`` other than the criterion's own, which stays an object. The state of losses
    and of a moving average is not part of it, only the value that the average has now.

    Args:
        criterion: one of this package's criteria, or a loss of this package or of :mod:`detloss.compat.mmdet`.

    Raises:
        TypeError: something else, or a loss that no configuration can name.

    >>> from detloss.criteria.gfl import GFLLoss
    >>> config = criterion_config(GFLLoss(num_classes=3, strides=(8, 16), reg_max=8))
    >>> config["type"], config["loss_dfl"]
    ('GFLLoss', {'type': 'DistributionFocalLoss', 'reduction': 'mean', 'loss_weight': 0.25})
    """
    if not isinstance(criterion, Criterion):
        return _loss(criterion)
    name = type(criterion).__name__
    if name not in CRITERIA or CRITERIA.get(name) is not type(criterion):
        raise TypeError(f"criterion_config: {name} is not registered in CRITERIA, so no configuration can name it")
    return {"type": name, **_options(criterion)}


def _options(criterion: Criterion) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in options(type(criterion)):
        if name in SAID_BY_OTHERS.split():
            continue
        value = _option(criterion, name)
        if value is not _UNSET:
            found[name] = value
    return found


_UNSET = object()


def _option(criterion: Criterion, name: str) -> Any:
    """The value of a constructor option, ``_UNSET`` where the default or another option says it."""
    if name in PARTS:
        part = _options(getattr(criterion, name))
        return {key: value for key, value in part.items() if key not in ("normalizer", "weights")}
    if name == "normalizer":
        return _normalizer(criterion.normalizer)
    if name == "weights":
        return dict(criterion.weights)
    if name == "assigner":
        return _assigner(criterion.assigner)
    if name == "sampler":
        return _sampler(criterion)
    if name.startswith("loss_"):
        return _loss(getattr(criterion, name))
    if hasattr(criterion, "grid") and name in GRID:
        return _plain(getattr(criterion.grid, GRID[name]))
    stages = getattr(criterion, "stage_weights", {})
    if name.removesuffix("_weight") in stages:
        return stages[name.removesuffix("_weight")]
    if name == "memory_budget" or name == "size_ranges":
        return _plain(getattr(criterion, name, getattr(criterion.assigner, name, _UNSET)))
    return _UNSET if name == "anchor_scales" else _plain(getattr(criterion, name))


def _plain(value: Any) -> Any:
    """Tuples become lists, as in a file."""
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _loss(loss: nn.Module) -> dict[str, Any]:
    name = type(loss).__name__
    if isinstance(loss, MatchedVarifocalLoss) or (name in LOSSES and LOSSES.get(name) is type(loss)):
        return loss.to_config()  # type: ignore[operator]
    if is_loss(name) and MODELS.get(name) is type(loss):
        config = loss_config(Section(loss.to_config(), name, ConfigLog()))  # type: ignore[operator]
        if isinstance(config, dict):
            return {**config, "reduction": loss.reduction}
        raise TypeError(f"criterion_config: {name} of mmdet has no equal in LOSSES, so no configuration can name it")
    raise TypeError(f"criterion_config: {name} is not registered in LOSSES, so no configuration can name it")


def _assigner(assigner: Assigner) -> Mapping[str, Any]:
    name = type(assigner).__name__
    if name not in ASSIGNERS:
        raise TypeError(f"criterion_config: {name} is not registered in ASSIGNERS, so no configuration can name it")
    return {"type": name, **{key: _plain(getattr(assigner, key)) for key in options(type(assigner))}}


def _sampler(criterion: Criterion) -> Any:
    """The sampler where it is not the criterion's own, a random one of its size."""
    sampler: Any = criterion.sampler
    own = OWN_SAMPLERS[type(criterion).__name__]
    same = isinstance(sampler, RandomSampler) and repr(sampler) == repr(RandomSampler(*own))
    return _UNSET if same else sampler


def _normalizer(normalizer: Normalizer) -> Any:
    if normalizer.mode != "ema":
        return normalizer.mode
    return {"mode": "ema", "momentum": normalizer.momentum, "initial": float(normalizer.average.max())}
