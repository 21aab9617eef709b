"""Every criterion with random predictions and targets, for the tests that all criteria must pass.

A family adds its own rows in ``criteria_cases_<family>.py``; each is a :class:`Case`. All predictions of a case are tensors
with the images along the first dimension, so that the tests can take images out of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fcos_cases import STRIDES, Target, random_boxes, random_maps
from torch import Tensor

from detloss import Criterion, FCOSLoss, MultiPartLoss

Tree = Any  # a tensor, or a list, tuple or dict of trees

NUM_CLASSES = 3
EXTENT = 64.0  # pixels; images are square


@dataclass(frozen=True)
class Case:
    """One criterion as the shared tests use it.

    Attributes:
        name: for the test's name.
        make: ``make(**options)`` → the criterion; options are ``normalizer`` and ``weights``.
        predict: ``predict(images, dtype)`` → the predictions, a tree of leaf tensors [images, …] drawn from the global
            random generator.
        call: ``call(criterion_or_method, predictions, targets)`` → the result; by default
            ``criterion(*predictions, targets)``.
        targets: ``targets(counts)`` → one target per image with that many objects of random class and box.
        box_terms: terms that only positives pay, which an ignored region must not change.
        assigns: whether it assigns objects itself (and so takes targets as lists of dicts, with regions to ignore).
        local_differs: whether counting on each rank alone gives other gradients where ranks have unlike numbers of objects.
        compiles: whether ``torch.compile(fullgraph=True)`` takes it; else the reason is in ``note``.
        note: anything a reader should know.
    """

    name: str
    make: Callable[..., Criterion]
    predict: Callable[[int, torch.dtype], Tree]
    call: Callable[[Any, Tree, Sequence[Target]], Any] = lambda criterion, predictions, targets: criterion(*predictions, targets)
    targets: Callable[[Sequence[int]], list[Target]] = None  # type: ignore[assignment]
    box_terms: tuple[str, ...] = ("loss_box",)
    assigns: bool = True
    local_differs: bool = True
    compiles: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        if self.targets is None:
            object.__setattr__(self, "targets", pixel_targets)


def pixel_targets(counts: Sequence[int], least: float = 8.0) -> list[Target]:
    """Targets with boxes of at least ``least`` pixels a side inside the image of 64 × 64 pixels."""
    made = []
    for count in counts:
        boxes = random_boxes(count, extent=EXTENT).clamp(0, EXTENT - least)
        size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=least)
        boxes = torch.cat((boxes[:, :2], torch.minimum(boxes[:, :2] + size, torch.tensor(EXTENT))), dim=1)
        made.append({"boxes": boxes, "labels": torch.randint(NUM_CLASSES, (count,))})
    return made


def map_tree(change: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The tree with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: map_tree(change, value) for key, value in tree.items()}
    return type(tree)(map_tree(change, value) for value in tree)


def leaves(tree: Tree) -> list[Tensor]:
    """All tensors of the tree, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree
    return [leaf for value in values for leaf in leaves(value)]


def fresh(tree: Tree, change: Callable[[Tensor], Tensor] = lambda x: x) -> Tree:
    """New leaves that require gradients, with changed values."""
    return map_tree(lambda x: change(x.detach()).clone().requires_grad_(x.is_floating_point()), tree)


def gradients(total: Tensor, tree: Tree) -> list[Tensor]:
    """Gradient of ``total`` for every floating-point leaf; fails for one that is not connected."""
    return list(torch.autograd.grad(total, [leaf for leaf in leaves(tree) if leaf.requires_grad]))


FCOS = [
    Case(
        name,
        lambda _options=options, **more: FCOSLoss(NUM_CLASSES, strides=STRIDES, **_options, **more),
        lambda images, dtype: random_maps(images, NUM_CLASSES, dtype=dtype),
        box_terms=("loss_box", "loss_centerness"),
    )
    for name, options in {
        "fcos": {},
        "fcos-official": {"centerness_weighted": True, "center_sampling_radius": 1.5},
        "fcos-qfl-ciou": {"loss_cls": "QualityFocalLoss", "loss_box": "ciou"},
    }.items()
]

ROWS = 48  # predictions of an image that come matched, the first ones on foreground


def _parts(images: int, dtype: torch.dtype) -> dict[str, Tensor]:
    shapes = {"cls_pred": (NUM_CLASSES + 1,), "box_pred": (4,), "obj_pred": (), "mask_pred": (5,)}
    return {name: torch.randn(images, ROWS, *shape).to(dtype).requires_grad_() for name, shape in shapes.items()}


def _call_parts(criterion: Any, predictions: dict[str, Tensor], targets: Sequence[Target]) -> Any:
    """Object i of an image is matched with its row i; the other rows are background."""
    classes = torch.full((len(targets), ROWS), NUM_CLASSES)
    boxes = predictions["box_pred"].new_zeros(len(targets), ROWS, 4)
    for image, target in enumerate(targets):
        classes[image, : len(target["labels"])] = target["labels"]
        boxes[image, : len(target["labels"])] = target["boxes"].to(boxes)
    inside = (classes < NUM_CLASSES).to(boxes.dtype)
    masks = inside[..., None].expand(*inside.shape, 5)
    matched = {"cls_target": classes, "box_target": boxes, "obj_target": inside, "mask_target": masks}
    return criterion(predictions, matched)


MATCHED = [
    Case(
        "multipart",
        lambda **more: MultiPartLoss(NUM_CLASSES, **more),
        _parts,
        _call_parts,
        box_terms=("loss_box", "loss_mask"),
        assigns=False,
    )
]
