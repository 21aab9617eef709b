"""Ground truth of a batch: checked, and padded to the largest number of objects so that all images go through at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detloss.checks import shape_of
from detloss.types import Target
from detloss.values import value_checks_enabled, within

__all__ = ["PaddedTargets", "pad_targets"]


@dataclass(frozen=True)
class PaddedTargets:
    """The objects of B images, padded to G per image.

    Attributes:
        boxes: ``[B, G, 4]`` corners in pixels; padding is 0.
        labels: ``[B, G]`` int64 classes; padding is 0.
        valid: ``[B, G]`` bool; ``False`` for padding and for crowds.
        ignore_boxes: ``[B, K, 4]`` regions that count neither way (crowds included).
        ignore_valid: ``[B, K]`` bool.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignore_boxes: Tensor
    ignore_valid: Tensor

    @property
    def num_gt(self) -> Tensor:
        """Number of objects in the batch, crowds not counted (0-dim int64)."""
        return self.valid.sum()


def _entry(image: int, target: Target, key: str) -> Tensor:
    if not isinstance(target, Mapping):
        raise TypeError(f"targets[{image}] must be a dict with 'boxes' and 'labels'; got {type(target).__name__}")
    if key not in target:
        raise ValueError(f"targets[{image}] has no {key!r}; got keys {sorted(target)}")
    value = target[key]
    if not isinstance(value, Tensor):
        raise TypeError(f"targets[{image}][{key!r}] must be a torch.Tensor; got {type(value).__name__}")
    return value


def _boxes(image: int, target: Target, key: str, like: Tensor) -> Tensor:
    boxes = _entry(image, target, key)
    if boxes.numel() == 0 and boxes.ndim <= 2:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"targets[{image}][{key!r}] must have shape [G, 4]; got {shape_of(boxes)}")
    if boxes.is_complex() or boxes.dtype == torch.bool:
        raise TypeError(f"targets[{image}][{key!r}] must hold numbers; got {boxes.dtype}")
    return boxes.detach().to(device=like.device, dtype=like.dtype)


def _check_corners(key: str, parts: Sequence[Tensor], padded: Tensor) -> None:
    """Raise ``ValueError`` unless all boxes are finite and none is turned inside out; all images at once when they are."""
    if not value_checks_enabled(padded) or padded.numel() == 0:
        return
    largest = torch.finfo(padded.dtype).max
    if within(padded, -largest, largest) and not bool((padded[..., 2:] < padded[..., :2]).any()):
        return
    for image, boxes in enumerate(parts):
        _check_corners_of(image, key, boxes)


def _check_corners_of(image: int, key: str, boxes: Tensor) -> None:
    if not bool(torch.isfinite(boxes).all()):
        row = int((~torch.isfinite(boxes).all(1)).nonzero()[0])
        raise ValueError(f"targets[{image}][{key!r}][{row}] must be finite; got {boxes[row].tolist()}")
    if bool((boxes[:, 2:] < boxes[:, :2]).any()):
        row = int((boxes[:, 2:] < boxes[:, :2]).any(1).nonzero()[0])
        raise ValueError(
            f"targets[{image}][{key!r}][{row}] must be corners with x1 <= x2 and y1 <= y2; got {boxes[row].tolist()}"
        )


def _labels(image: int, target: Target, count: int, num_classes: int | None, device: torch.device) -> Tensor:
    labels = _entry(image, target, "labels")
    if labels.numel() == 0 and count == 0:
        return torch.zeros(0, dtype=torch.long, device=device)
    if labels.shape != (count,):
        raise ValueError(f"targets[{image}]['labels'] must have shape [{count}], one per box; got {shape_of(labels)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"targets[{image}]['labels'] must have an integer dtype; got {labels.dtype}")
    if num_classes is not None and count and value_checks_enabled(labels) and not within(labels, 0, num_classes - 1):
        bad = (labels < 0) | (labels >= num_classes)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"targets[{image}]['labels'][{row}] must be in 0…{num_classes - 1} (num_classes={num_classes}); "
                f"got {int(labels[row])}"
            )
    return labels.to(device=device, dtype=torch.long)


def _crowd(image: int, target: Target, count: int, device: torch.device) -> Tensor:
    if "iscrowd" not in target:
        return torch.zeros(count, dtype=torch.bool, device=device)
    crowd = _entry(image, target, "iscrowd")
    if crowd.numel() != count or crowd.ndim > 1:
        raise ValueError(f"targets[{image}]['iscrowd'] must have shape [{count}], one per box; got {shape_of(crowd)}")
    return crowd.to(device=device).reshape(count) != 0


def pad_targets(targets: Sequence[Target], like: Tensor, num_classes: int | None = None) -> PaddedTargets:
    """Check the targets of a batch and pad them.

    Args:
        targets: one mapping per image: ``boxes [G, 4]`` corners in pixels (any number dtype), ``labels [G]``, optional
            ``iscrowd [G]`` and ``ignore_boxes [K, 4]``. G = 0 is normal.
        like: tensor whose device and floating dtype the result takes.
        num_classes: labels must be below it, where values are checked.

    Raises:
        TypeError, ValueError: naming the image, the key and the row.
    """
    if isinstance(targets, (Mapping, Tensor, str)) or not isinstance(targets, Sequence):
        raise TypeError(f"targets must be a list of dicts, one per image; got {type(targets).__name__}")
    boxes, labels, valid, extra, regions = [], [], [], [], []
    for image, target in enumerate(targets):
        own = _boxes(image, target, "boxes", like)
        crowd = _crowd(image, target, len(own), own.device)
        boxes.append(own)
        labels.append(_labels(image, target, len(own), num_classes, own.device))
        valid.append(~crowd)
        extra.append(_boxes(image, target, "ignore_boxes", like) if "ignore_boxes" in target else own[:0])
        if "ignore_boxes" in target or "iscrowd" in target:
            region_valid = torch.cat((crowd, crowd.new_ones(len(extra[-1]))))
            regions.append((torch.cat((own, extra[-1])), region_valid))
        else:
            regions.append((own[:0], crowd[:0]))
    if not boxes:
        empty = like.new_zeros(0, 0, 4)
        flags = torch.zeros(0, 0, dtype=torch.bool, device=like.device)
        return PaddedTargets(empty, flags.long(), flags, empty, flags)
    padded = _pad(boxes)
    _check_corners("boxes", boxes, padded)
    _check_corners("ignore_boxes", extra, torch.cat(extra))
    ignored = ([part[i] for part in regions] for i in (0, 1))
    return PaddedTargets(padded, _pad(labels), _pad(valid), *map(_pad, ignored))


def _pad(parts: Sequence[Tensor]) -> Tensor:
    """One row per image, as long as the longest."""
    same = len({len(part) for part in parts}) == 1
    return torch.stack(list(parts)) if same else pad_sequence(list(parts), batch_first=True)
