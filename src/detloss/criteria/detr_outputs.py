"""What a set-prediction detector puts out: decoder layers, encoder and denoising queries, and targets in units of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from detloss.assigners.targets import PaddedTargets
from detloss.checks import check_float, check_tensor, shape_of, upcast
from detloss.geometry.boxes import to_xyxy
from detloss.types import Assignment, Number, Target

__all__ = [
    "MAX_OUTPUTS",
    "ImageSizes",
    "Layer",
    "Output",
    "corners_of",
    "denoising_assignment",
    "image_units",
    "read_outputs",
    "rescale",
]

Layer = tuple[Tensor, Tensor] | Sequence[Tensor] | Mapping[str, Tensor]
ImageSizes = Tensor | tuple[Number, Number] | Sequence[tuple[Number, Number]]
Stage = Literal["decoder", "aux", "enc", "dn"]
WHERE = "DETRLoss"
MAX_OUTPUTS = 30
LOGIT_KEYS, BOX_KEYS = ("pred_logits", "logits"), ("pred_boxes", "boxes")


@dataclass(frozen=True)
class Output:
    """Logits ``[B, Q, C]`` and boxes ``[B, Q, 4]`` (cx, cy, w, h in units of the image) of one stage.

    ``suffix`` is what the names of its terms end in: nothing for the last decoder layer, ``_0`` … for the auxiliary ones in
    order, ``_enc``, ``_dn_0`` ….
    """

    stage: Stage
    suffix: str
    logits: Tensor
    boxes: Tensor


def read_outputs(
    last: Layer,
    aux: Sequence[Layer] | None,
    enc: Layer | None,
    dn: Sequence[Layer] | None,
    channels: int,
) -> tuple[Output, ...]:
    """All layers checked: the last decoder layer first, then auxiliary, encoder and denoising ones.

    Raises:
        TypeError, ValueError: naming the argument and its layer.
    """
    first = _read("pred_logits and pred_boxes", "decoder", "", last, channels)
    outputs = [first]
    for name, layers in (("aux_outputs", aux), ("dn_outputs", dn)):
        if layers is not None and (isinstance(layers, (Tensor, Mapping)) or not isinstance(layers, Sequence)):
            raise TypeError(f"{WHERE}: {name} must be a list of layers; got {type(layers).__name__}")
    outputs += [_read(f"aux_outputs[{k}]", "aux", f"_{k}", layer, channels, first) for k, layer in enumerate(aux or ())]
    if enc is not None:
        outputs.append(_read("enc_outputs", "enc", "_enc", enc, channels, first))
    outputs += [_read(f"dn_outputs[{k}]", "dn", f"_dn_{k}", layer, channels, first) for k, layer in enumerate(dn or ())]
    if len(outputs) > MAX_OUTPUTS:
        raise ValueError(f"{WHERE}: expected at most {MAX_OUTPUTS} layers, all kinds together; got {len(outputs)}")
    return tuple(outputs)


def _read(name: str, stage: Stage, suffix: str, layer: Any, channels: int, first: Output | None = None) -> Output:
    """Check one layer, a pair (logits, boxes) or a mapping with ``pred_logits`` (or ``logits``) and ``pred_boxes``."""
    logits: Any
    boxes: Any
    if isinstance(layer, Mapping):
        logits, boxes = (next((layer[key] for key in keys if key in layer), None) for keys in (LOGIT_KEYS, BOX_KEYS))
        if logits is None or boxes is None:
            raise ValueError(f"{WHERE}: {name} must have 'pred_logits' and 'pred_boxes'; got keys {sorted(map(str, layer))}")
    elif isinstance(layer, (tuple, list)) and len(layer) == 2:
        logits, boxes = layer
    else:
        got = f"{type(layer).__name__} of {len(layer)}" if isinstance(layer, (tuple, list)) else type(layer).__name__
        raise TypeError(f"{WHERE}: {name} must be (logits, boxes) or a dict of pred_logits and pred_boxes; got {got}")
    check_float(WHERE, f"the logits of {name}", logits)
    check_float(WHERE, f"the boxes of {name}", boxes)
    images = "B" if first is None else len(first.logits)
    if logits.ndim != 3 or logits.shape[2] != channels or images not in ("B", len(logits)):
        raise ValueError(f"{WHERE}: the logits of {name} must have shape [{images}, Q, {channels}]; got {shape_of(logits)}")
    if boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(f"{WHERE}: the boxes of {name} must have shape {[*logits.shape[:2], 4]}; got {shape_of(boxes)}")
    return Output(stage, suffix, upcast(logits), upcast(boxes))


def image_units(image_sizes: ImageSizes | None, like: Tensor) -> Tensor:
    """``[B, 4]`` (width, height, width, height) in pixels of the B images of ``like``."""
    if image_sizes is None:
        raise ValueError(
            f"{WHERE}: targets in pixels need image_sizes=(height, width) or [B, 2] in the call; got None "
            "(targets as DETR's data sets have them need target_format='cxcywh_normalized')"
        )
    sizes = torch.as_tensor(image_sizes, device=like.device).to(like.dtype)
    if sizes.shape not in ((2,), (len(like), 2)):
        raise ValueError(f"{WHERE}: image_sizes must be (height, width) or have shape [{len(like)}, 2]; got {shape_of(sizes)}")
    return sizes.expand(len(like), 2).flip(1).repeat(1, 2)


def rescale(truth: PaddedTargets, units: Tensor) -> PaddedTargets:
    """The targets with their boxes divided by ``units [B, 4]``."""
    return replace(truth, boxes=truth.boxes / units[:, None], ignore_boxes=truth.ignore_boxes / units[:, None])


def corners_of(targets: Any) -> Any:
    """Targets with boxes (cx, cy, w, h) as targets with corners; what is no list of dicts with boxes stays as it is."""
    if isinstance(targets, (Mapping, Tensor, str)) or not isinstance(targets, Sequence):
        return targets
    return [_with_corners(target) for target in targets]


def _with_corners(target: Target) -> Target:
    if not isinstance(target, Mapping):
        return target
    changed = {}
    for key in ("boxes", "ignore_boxes"):
        boxes = target.get(key)
        if isinstance(boxes, Tensor) and boxes.ndim == 2 and boxes.shape[1] == 4:
            changed[key] = to_xyxy(boxes, "cxcywh")
    return {**target, **changed}


def denoising_assignment(gt_index: Tensor | None, truth: PaddedTargets, like: Tensor) -> Assignment:
    """The given match of the denoising queries ``like [B, N, C]`` as an assignment.

    ``gt_index [B, N]`` is the index of the object that a query reconstructs, −1 for queries that should find nothing (and
    learn the background). Any other number, such as −2, and crowds, are left out.
    """
    if gt_index is None:
        raise ValueError(
            f"{WHERE}: dn_outputs need dn_gt_index [B, N], the object that each denoising query reconstructs; got None"
        )
    check_tensor(WHERE, "dn_gt_index", gt_index)
    if gt_index.shape != like.shape[:2]:
        raise ValueError(f"{WHERE}: dn_gt_index must have shape {list(like.shape[:2])}; got {shape_of(gt_index)}")
    if gt_index.is_floating_point() or gt_index.dtype == torch.bool:
        raise TypeError(f"{WHERE}: dn_gt_index must have an integer dtype; got {gt_index.dtype}")
    index, objects = gt_index.to(device=like.device, dtype=torch.long), truth.valid.shape[1]
    known = (index >= 0) & (index < objects)
    if objects:
        known = known & truth.valid.gather(1, index.clamp(0, objects - 1))
    return Assignment(torch.where(known, index, -1), ~known & (index != -1))
