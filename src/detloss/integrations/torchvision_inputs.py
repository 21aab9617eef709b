"""Images and targets as a torchvision detector has them inside, and its outputs as maps of every level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detloss.checks import shape_of
from detloss.types import Target
from detloss.values import value_checks_enabled

__all__ = ["Inputs", "as_maps", "level_counts", "prepared"]

KEYS: tuple[str, ...] = ("boxes", "labels", "masks", "iscrowd")


class Inputs(NamedTuple):
    """``images`` (torchvision's ImageList), ``targets`` in the pixels of the resized images, the ``features`` by name."""

    images: Any
    targets: list[Target]
    features: dict[str, Tensor]


def prepared(model: Any, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], first_label: int = 0) -> Inputs:
    """Resize and normalise as the model does, and run its backbone.

    Args:
        model: a torchvision detector.
        images: per image ``[3, H, W]`` in [0, 1].
        targets: per image ``boxes [G, 4]`` corners in pixels and ``labels [G]``; optional ``masks``, ``iscrowd`` and
            ``ignore_boxes``.
        first_label: label of the criterion's class 0.
    """
    where = f"{type(model).__name__} with a criterion"
    if targets is None or isinstance(targets, (Mapping, Tensor)) or len(targets) != len(images):
        got = len(targets) if isinstance(targets, (list, tuple)) else type(targets).__name__
        raise ValueError(f"{where}: expected targets, a list with one dict for each of the {len(images)} images; got {got}")
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    own = [_checked(where, index, target) for index, target in enumerate(targets)]
    resized, found = model.transform(list(images), own)
    features = model.backbone(resized.tensors)
    if isinstance(features, Tensor):
        features = {"0": features}
    shapes = zip(sizes, resized.image_sizes, strict=True)
    return Inputs(resized, [_ours(t, *shape, first_label) for t, shape in zip(found, shapes, strict=True)], dict(features))


def _checked(where: str, index: int, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The target with ``boxes [G, 4]``, also where G is 0; what torchvision resizes has to be of that shape."""
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= set(target):
        got = sorted(map(str, target)) if isinstance(target, Mapping) else type(target).__name__
        raise ValueError(f"{where}: targets[{index}] must be a dict with 'boxes' and 'labels'; got {got}")
    boxes = target["boxes"]
    boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: targets[{index}]['boxes'] must have shape [G, 4]; got {shape_of(boxes)}")
    return {**target, "boxes": boxes}


def _ours(target: dict[str, Tensor], before: tuple[int, int], after: tuple[int, int], first_label: int) -> Target:
    """The keys that criteria know. torchvision resizes boxes and masks; regions to ignore are resized here."""
    kept: dict[str, Tensor] = {key: target[key] for key in KEYS if key in target}
    labels = kept["labels"]
    if first_label and value_checks_enabled(labels) and bool((labels < first_label).any()):
        raise ValueError(
            f"labels of two-stage detectors of torchvision start at {first_label}, 0 is the background; got {int(labels.min())}"
        )
    kept["labels"] = labels - first_label
    if "ignore_boxes" in target:
        scale = [new / old for new, old in zip(after, before, strict=True)]
        kept["ignore_boxes"] = target["ignore_boxes"] * torch.tensor([scale[1], scale[0]] * 2, device=labels.device)
    return kept


def level_counts(features: Sequence[Tensor], per_cell: int = 1) -> list[int]:
    """Rows of every level."""
    return [x.shape[2] * x.shape[3] * per_cell for x in features]


def as_maps(output: Tensor, features: Sequence[Tensor], per_cell: int = 1) -> list[Tensor]:
    """Rows ``[B, ΣHWA, K]``, level by level, as maps ``[B, A·K, H, W]``, without a copy."""
    parts = output.split(level_counts(features, per_cell), 1)
    split = (
        part.unflatten(1, (x.shape[2], x.shape[3], per_cell)).permute(0, 3, 4, 1, 2)
        for part, x in zip(parts, features, strict=True)
    )
    return [part.flatten(1, 2) for part in split]
