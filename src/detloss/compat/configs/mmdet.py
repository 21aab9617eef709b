"""Configurations of mmdet and visdet: a loss, a head or a whole model becomes a criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from detloss.checks import did_you_mean
from detloss.compat.configs import dense, parts, sets, two_stage
from detloss.compat.configs.files import load_config
from detloss.compat.configs.losses import is_loss, single_loss
from detloss.compat.configs.result import Imported, imported
from detloss.compat.configs.sections import ConfigLog, Section

__all__ = ["from_mmdet"]

Builder = Callable[[Section, Section | None], nn.Module]

HEADS: dict[str, Builder] = {
    "RetinaHead": dense.retinanet,
    "FCOSHead": dense.fcos,
    "ATSSHead": dense.atss,
    "GFLHead": dense.gfl,
    "YOLOXHead": dense.yolox,
    "CenterNetHead": dense.centernet,
    "RPNHead": two_stage.rpn,
    "StandardRoIHead": two_stage.roi_head,
    **dict.fromkeys(two_stage.BOX_HEADS, two_stage.box_head),
    **dict.fromkeys(two_stage.MASK_HEADS, two_stage.mask_head),
    **dict.fromkeys((*sets.SOFTMAX_HEADS, *sets.FOCAL_HEADS), sets.detr),
}
TWO_STAGE_MODELS = ("FasterRCNN", "MaskRCNN", "TwoStageDetector")
TRAINED_ALONE = ("rpn_head", "bbox_head", "mask_head")


def from_mmdet(
    config: Mapping[str, Any] | str | Path,
    *,
    train_cfg: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> Imported:
    """The criterion of a configuration of mmdet 3 or visdet, with what became of every option.

    Args:
        config: a file (see :func:`load_config`) or a dict: a whole one with ``model``, a model, a head (``bbox_head``) or one
            loss. A loss gives the one of :mod:`detloss.compat.mmdet`, everything else a criterion with mmdet's numbers.
        train_cfg: assigner, sampler and the like of a head, where its dict does not have them.
        strict: raise when an option is unknown or cannot be kept.

    Raises:
        ValueError: a head that has no criterion here, parts that do not go together, or, with ``strict``, unknown options.

    >>> head = dict(type="ATSSHead", num_classes=20, in_channels=256, loss_bbox=dict(type="GIoULoss", loss_weight=2.0))
    >>> found = from_mmdet(head)
    >>> type(found.criterion).__name__, found.ignored, found.unknown
    ('ATSSLoss', ('in_channels',), ())
    """
    values = load_config(config) if isinstance(config, (str, Path)) else config
    if not isinstance(values, Mapping):
        raise TypeError(f"from_mmdet: expected a dict or the path of a file; got {type(config).__name__}")
    log = ConfigLog()
    section = Section(values, "", log)
    if "model" in values and "type" not in values:
        section.skip(*(str(key) for key in values if key != "model"))
        inner = section.part("model")
        section = inner if inner is not None else section
    given = Section(train_cfg, "train_cfg", log) if train_cfg is not None else None
    return imported(_criterion(section, given), log, strict)


def _criterion(section: Section, given: Section | None) -> nn.Module:
    """The criterion of a loss, a head or a model."""
    if is_loss(section.get("type")):
        return single_loss(section)
    kind = section.kind(default="" if any(name in section for name in TRAINED_ALONE) else None)
    train = given or section.part("train_cfg")
    if kind in TWO_STAGE_MODELS:
        return two_stage.two_stage(section, train)
    if kind in HEADS:
        return _head(section, train)
    if "roi_head" in section:
        raise section.error(f"{kind} is no Faster or Mask R-CNN; known models of two stages: {', '.join(TWO_STAGE_MODELS)}")
    for name in TRAINED_ALONE:
        inner = section.part(name)
        if inner is not None:
            stage = train.part("rpn") if name == "rpn_head" and train is not None and "rpn" in train else train
            return _head(inner, inner.part("train_cfg") or stage)
    raise section.error(f"no criterion for {kind!r}.{did_you_mean(kind, HEADS)} Heads: {', '.join(HEADS)}")


def _head(head: Section, train: Section | None) -> nn.Module:
    """The criterion of a head."""
    kind = head.kind()
    if kind not in HEADS:
        raise head.error(f"no criterion for {kind!r}.{did_you_mean(kind, HEADS)} Heads: {', '.join(HEADS)}")
    criterion = HEADS[kind](head, train)
    parts.train_options(train)
    return criterion
