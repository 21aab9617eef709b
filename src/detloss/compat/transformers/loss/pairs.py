"""What the criteria of all families share: matchers, the losses of matched pairs, and the number of objects.

Outputs of a layer are a mapping with ``logits [B, Q, C]`` and ``pred_boxes [B, Q, 4]``, (cx, cy, w, h) in units of the image;
targets a list with ``class_labels [G]`` and ``boxes [G, 4]`` per image; pairs a list with (queries, objects) per image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloss.assigners.hungarian import HungarianAssigner
from detloss.compat.arguments import binary_focal_loss, optional_alpha
from detloss.compat.patches.detr_layers import Truth, match_layers
from detloss.functional import mask as masks
from detloss.functional.iou import giou_loss
from detloss.functional.regression import l1_loss
from detloss.reduction import global_count
from detloss.types import Number

__all__ = ["Layer", "Pairs", "SetLoss", "SetMatcher", "Targets", "dice_loss", "number_of_objects", "sigmoid_focal_loss"]

Layer = Mapping[str, Any]
Targets = Sequence[Mapping[str, Tensor]]
Pairs = list[tuple[Tensor, Tensor]]


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, num_boxes: Number | Tensor, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    """Focal loss summed, divided by the size of dimension 1 and by ``num_boxes``: :func:`detloss.functional.sigmoid_focal_loss`.

    Dimension 1 is that of the classes for ``[N, C]`` and that of the queries for ``[B, Q, C]``, as there. γ < 1 has a finite
    gradient at saturated logits.

    Args:
        inputs: logits with at least two dimensions.
        targets: in [0, 1], the same shape.
        num_boxes: divisor.
        alpha: weight of the positives in [0, 1]; negative for no weights.
        gamma: focusing exponent, >= 0.

    >>> sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), 2)  # (0.25 + 0.75) · ln 2 / 4 / 2 / 2
    tensor(0.0433)
    """
    total = binary_focal_loss("sigmoid_focal_loss", inputs, targets, optional_alpha(alpha), gamma, "sum")
    return total / (max(inputs.shape[1], 1) * num_boxes)


def dice_loss(inputs: Tensor, targets: Tensor, num_boxes: Number | Tensor) -> Tensor:
    """Dice loss of N masks over ``num_boxes``: :func:`detloss.functional.dice_loss` with a smoothing of one pixel.

    Args:
        inputs: logits ``[N, …]``.
        targets: 0 and 1, as many per mask.
        num_boxes: divisor.

    >>> dice_loss(torch.full((1, 4), 100.0), torch.tensor([[1.0, 1.0, 0.0, 0.0]]), 1)  # 1 − (4 + 1)/(6 + 1)
    tensor(0.2857)
    """
    return masks.dice_loss(inputs.flatten(1), targets.flatten(1), avg_factor=num_boxes)


def number_of_objects(targets: Targets, like: Tensor) -> Tensor:
    """Objects of all ranks over the number of ranks, at least one over it: what the terms are divided by. No host waits."""
    count = sum(len(target["class_labels"]) for target in targets)
    return global_count(like.new_tensor(float(count), dtype=torch.float32))


class SetMatcher(nn.Module):
    """Match every object with one query, at least cost, on :class:`detloss.HungarianAssigner`.

    A query whose prediction is not finite never matches (it does there where none other is left), and a box turned inside out
    pays for its depth (a ``ValueError`` there). Costs are computed per image (across all images there, and then left aside).
    """

    def assigner(self) -> HungarianAssigner:
        """The assigner with these costs."""
        raise NotImplementedError

    @torch.no_grad()
    def match(self, layers: Sequence[Layer], targets: Targets) -> list[Pairs]:
        """The pairs of several layers; those of one shape in one call."""
        found: dict[int, Pairs] = {}
        for shape in dict.fromkeys(layer["logits"].shape for layer in layers):
            alike = [k for k, layer in enumerate(layers) if layer["logits"].shape == shape]
            scores, boxes = (torch.stack([layers[k][name] for k in alike]) for name in ("logits", "pred_boxes"))
            index = match_layers(self.assigner(), scores, boxes, Truth.of(targets, boxes)).cpu()
            found.update(zip(alike, (_pairs(own) for own in index), strict=True))
        return [found[k] for k in range(len(layers))]

    def forward(self, outputs: Layer, targets: Targets) -> Pairs:
        """The pairs of one layer, on the CPU, in the order of the queries."""
        return self.match([outputs], targets)[0]


def check_costs(matcher: nn.Module, costs: Sequence[float]) -> None:
    """Raise ``ValueError`` when nothing has a cost."""
    if not any(costs):
        raise ValueError(f"{type(matcher).__name__}: All costs of the Matcher can't be 0; got {list(costs)}")


def _pairs(index: Tensor) -> Pairs:
    found = []
    for own in index:
        query = (own >= 0).nonzero().squeeze(1)
        found.append((query, own[query]))
    return found


class SetLoss(nn.Module):
    """Losses of matched pairs, and the order in which a criterion computes them.

    Attributes:
        matcher: callable (layer, targets) → pairs; a :class:`SetMatcher` is asked for all layers at once.
        num_classes: C.
        losses: names of the losses to compute.
    """

    matcher: Any
    num_classes: int
    losses: list[str]
    METHODS: Mapping[str, str] = {"cardinality": "loss_cardinality", "boxes": "loss_boxes", "masks": "loss_masks"}

    def get_loss(
        self, loss: str, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor
    ) -> dict[str, Tensor]:  # fmt: skip
        """The terms of the loss of that name."""
        if loss not in self.METHODS:
            raise ValueError(f"{type(self).__name__}: Loss {loss} not supported; expected one of {', '.join(self.METHODS)}")
        method: Callable[..., dict[str, Tensor]] = getattr(self, self.METHODS[loss])
        return method(outputs, targets, indices, num_boxes)

    def loss_boxes(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_bbox`` = Σ |b − b*| / num_boxes and ``loss_giou`` = Σ (1 − GIoU) / num_boxes over the pairs.

        Pairs are compared one by one (as a table of all with all there).
        """
        pred = _entry(outputs, "pred_boxes", "predicted boxes")[self._get_source_permutation_idx(indices)]
        true = matched(targets, "boxes", indices, pred)
        return {
            "loss_bbox": l1_loss(pred, true, avg_factor=num_boxes),
            "loss_giou": giou_loss(pred, true, box_format="cxcywh", avg_factor=num_boxes),
        }

    def loss_masks(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor
    ) -> dict[str, Tensor]:  # fmt: skip
        """``loss_mask`` (focal, mean over the pixels) and ``loss_dice`` of the matched masks, summed over num_boxes.

        ``pred_masks [B, Q, h, w]`` are enlarged to the size of the largest ``masks [G, H, W]`` of the targets, which are padded
        to it with 0.
        """
        pred = _entry(outputs, "pred_masks", "predicted masks")[self._get_source_permutation_idx(indices)]
        size = [max(target["masks"].shape[k] for target in targets) for k in (1, 2)]
        own = [target["masks"][at.to(target["masks"].device)] for target, (_, at) in zip(targets, indices, strict=True)]
        true = torch.cat([nn.functional.pad(x, (0, size[1] - x.shape[2], 0, size[0] - x.shape[1])) for x in own]).to(pred)
        grown = nn.functional.interpolate(pred[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].flatten(1)
        flat = true.flatten(1)
        return {"loss_mask": sigmoid_focal_loss(grown, flat, num_boxes), "loss_dice": dice_loss(grown, flat, num_boxes)}

    def cardinality_error(self, found: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Mean over the images of |queries that found something ``[B]`` − objects|, for people to look at."""
        counts = torch.tensor([len(target["class_labels"]) for target in targets], device=found.device)
        return {"cardinality_error": (found.float() - counts.float()).abs().mean()}

    def target_classes(self, targets: Targets, indices: Pairs, logits: Tensor) -> Tensor:
        """``[B, Q]`` class of the object of every query; C for none."""
        labels = torch.full(logits.shape[:2], self.num_classes, dtype=torch.long, device=logits.device)
        labels[self._get_source_permutation_idx(indices)] = matched(targets, "class_labels", indices, labels)
        return labels

    def match(self, layers: Sequence[Layer], targets: Targets) -> list[Pairs]:
        """The pairs of several layers."""
        if isinstance(self.matcher, SetMatcher):
            return self.matcher.match(layers, targets)
        return [self.matcher(layer, targets) for layer in layers]

    def all_losses(
        self, outputs: Layer, targets: Targets, indices: Pairs, num_boxes: Number | Tensor, suffix: str = ""
    ) -> dict[str, Tensor]:  # fmt: skip
        """The terms of all losses of a layer; auxiliary layers, with a suffix, have no masks."""
        terms: dict[str, Tensor] = {}
        for loss in self.losses:
            if not (suffix and loss == "masks"):
                terms |= self.weighted(self.get_loss(loss, outputs, targets, indices, num_boxes))
        return {f"{name}{suffix}": term for name, term in terms.items()}

    def weighted(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms as they are returned: before their weights."""
        return terms

    def _get_source_permutation_idx(self, indices: Pairs) -> tuple[Tensor, Tensor]:
        """Image and query of every pair."""
        return _joined(indices, 0)

    def _get_target_permutation_idx(self, indices: Pairs) -> tuple[Tensor, Tensor]:
        """Image and object of every pair."""
        return _joined(indices, 1)


def matched(targets: Targets, name: str, indices: Pairs, like: Tensor) -> Tensor:
    """An entry of the objects of all pairs, of the dtype and on the device of ``like``."""
    own = [target[name][at.to(target[name].device)] for target, (_, at) in zip(targets, indices, strict=True)]
    return torch.cat(own).to(like)


def _joined(indices: Pairs, side: int) -> tuple[Tensor, Tensor]:
    image = torch.cat([torch.full_like(pair[side], k) for k, pair in enumerate(indices)])
    return image, torch.cat([pair[side] for pair in indices])


def _entry(outputs: Layer, name: str, what: str) -> Tensor:
    if name not in outputs:
        raise KeyError(f"No {what} were found in the outputs; expected {name!r}, got {sorted(outputs)}")
    value: Tensor = outputs[name]
    return value


def logits_of(outputs: Layer) -> Tensor:
    """The class logits of a layer."""
    return _entry(outputs, "logits", "logits")


def boxes_of(outputs: Layer) -> Tensor:
    """The predicted boxes of a layer."""
    return _entry(outputs, "pred_boxes", "predicted boxes")
