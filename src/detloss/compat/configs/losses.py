"""Configurations of mmdet's losses as those of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from detloss.checks import did_you_mean
from detloss.compat.configs.sections import Section
from detloss.compat.mmdet.models.losses.iou import CIOU_THRESHOLD
from detloss.compat.mmdet.registry import MODELS
from detloss.registry import options

__all__ = ["is_loss", "loss_config", "single_loss"]

LossConfig = nn.Module | dict[str, Any]

# Losses whose options have the same names and meanings here.
SAME: dict[str, tuple[str, ...]] = {
    "FocalLoss": ("use_sigmoid", "gamma", "alpha", "activated"),
    "CrossEntropyLoss": ("use_sigmoid", "class_weight", "ignore_index", "avg_non_ignore"),
    "QualityFocalLoss": ("use_sigmoid", "beta", "activated"),
    "VarifocalLoss": ("alpha", "gamma", "iou_weighted"),
    "DistributionFocalLoss": (),
    "GaussianFocalLoss": ("alpha", "gamma"),
    "L1Loss": (),
    "MSELoss": (),
    "SmoothL1Loss": ("beta",),
    "BalancedL1Loss": ("alpha", "gamma", "beta"),
    "IoULoss": ("eps", "mode"),
    "GIoULoss": ("eps",),
    "DIoULoss": ("eps",),
    "CIoULoss": ("eps",),
    "SIoULoss": ("eps",),
    "BoundedIoULoss": ("beta", "eps"),
}
# Losses that are made as they are: they have no equal here that could stand in their place.
AS_THEY_ARE = ("EIoULoss", "GHMC", "GHMR")
SEVERAL_COLUMNS = ("SeesawLoss", "EQLV2Loss")


def is_loss(kind: object) -> bool:
    """Whether ``kind``, with or without a scope in front, is the name of a loss."""
    return isinstance(kind, str) and kind.rsplit(".", 1)[-1] in MODELS


def single_loss(section: Section) -> nn.Module:
    """The loss of a configuration that is nothing but a loss: the one of :mod:`detloss.compat.mmdet`, with its call."""
    kind = _known(section)
    names = {**peer_options(kind)}
    loss: nn.Module = MODELS.build({"type": kind, **section.take(*names)})
    return loss


def peer_options(kind: str) -> dict[str, Any]:
    """Options of a loss of mmdet by name."""
    return options(MODELS.get(kind))


def _known(section: Section) -> str:
    kind = section.kind()
    if kind not in MODELS:
        raise section.error(f"unknown loss {kind!r}.{did_you_mean(kind, MODELS)} Known: {', '.join(MODELS)}")
    return kind


def loss_config(section: Section) -> LossConfig:
    """The loss of a term of a criterion: a configuration for :func:`detloss.build`, or a loss where there is no equal.

    The reduction is left out: what a term is divided by is the criterion's to say.
    """
    kind = _known(section)
    if kind in SEVERAL_COLUMNS:
        raise section.error(f"{kind} has columns of its own for the background; criteria have no place for them")
    section.get("reduction")
    if kind in AS_THEY_ARE:
        names = [name for name in peer_options(kind) if name != "reduction"]
        built: nn.Module = MODELS.build({"type": kind, **section.take(*names)})
        return built
    weight = section.take("loss_weight")
    if kind in SAME:
        found = {"type": kind, **section.take(*SAME[kind]), **weight}
        return SPECIAL[kind](section, found) if kind in SPECIAL else found
    if kind == "DiceLoss":
        return {**_dice(section), **weight}
    raise section.error(f"{kind} is no loss of a term of a criterion")


def _dice(section: Section) -> dict[str, Any]:
    naive, eps = section.get("naive_dice", False), section.get("eps", 1e-3)
    section.expect("use_sigmoid", (True,), "there is no softmax of masks")
    return {
        "type": "DiceLoss",
        "squared": not naive,
        "smooth": eps if naive else 2 * eps,
        "activated": not section.get("activate", True),
    }


def _iou(section: Section, found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "mode": "linear"} if section.get("linear", False) else found


def _ciou(section: Section, found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "alpha_threshold": CIOU_THRESHOLD}


def _siou(section: Section, found: dict[str, Any]) -> dict[str, Any]:
    if not section.get("neg_gamma", False):
        section.log.note(f"{section.path}: SIoU has the sign of the paper, which is neg_gamma=True; mmdet's default is a defect")
    return found


def _bounded(section: Section, found: dict[str, Any]) -> dict[str, Any]:
    return {"eps": 1e-3, **found}


def _gaussian(section: Section, found: dict[str, Any]) -> dict[str, Any]:
    for name in ("pos_weight", "neg_weight"):
        section.expect(name, (1, 1.0), "GaussianFocalLoss has no weights of centres and surroundings")
    return found


def _varifocal(section: Section, found: dict[str, Any]) -> dict[str, Any]:
    section.expect("use_sigmoid", (True,), "softmax has no varifocal loss")
    return found


def _cross_entropy(section: Section, found: dict[str, Any]) -> dict[str, Any]:
    """A mask form is MaskBCELoss; an ``ignore_index`` of ``None`` is left out."""
    if section.get("use_mask", False):
        for name in ("class_weight", "ignore_index", "avg_non_ignore", "use_sigmoid"):
            section.expect(name, (None, False), "masks have no such option")
        return {"type": "MaskBCELoss", **{k: v for k, v in found.items() if k == "loss_weight"}}
    return {key: value for key, value in found.items() if key != "ignore_index" or value is not None}


SPECIAL: dict[str, Callable[[Section, dict[str, Any]], dict[str, Any]]] = {
    "CrossEntropyLoss": _cross_entropy,
    "IoULoss": _iou,
    "CIoULoss": _ciou,
    "SIoULoss": _siou,
    "BoundedIoULoss": _bounded,
    "GaussianFocalLoss": _gaussian,
    "VarifocalLoss": _varifocal,
}
