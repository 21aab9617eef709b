"""Random and degenerate problems for assigners whose matches have kernels."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detloss.assigners import Assigner, ATSSAssigner, MaxIoUAssigner, TaskAlignedAssigner
from detloss.assigners.aligned import AlignedRule, Problem
from detloss.geometry import Anchors, grid_points
from detloss.types import Assignment

ODD = (torch.nan, torch.inf, -torch.inf, 1e30, -1e20)
CLASSES = 6  # of queries
POINTS = grid_points([(20, 24), (10, 12), (5, 6)], [8, 16, 32])
Case: TypeAlias = tuple[Assigner, tuple[Any, ...]]


def some_boxes(*shape: int, whole: bool, size: float, side: float) -> Tensor:
    """Boxes; ``whole`` ones have corners on a grid of 4 pixels, so that many overlaps are equal."""
    corner, sides = torch.rand(*shape, 2) * size, torch.rand(*shape, 2) * side
    if whole:
        corner, sides = (corner / 4).round() * 4, (sides / 4).round() * 4
    return torch.cat((corner, corner + sides), dim=-1)


def some_objects(draw: random.Random, images: int, most: int, own: Tensor | None, classes: int, **kind: Any) -> list[Any]:
    """Targets: none, few or many objects, duplicates, some without area, some equal to boxes that they are matched with."""
    targets = []
    for image in range(images):
        boxes = some_boxes(draw.randint(0, most), **kind)
        if own is not None and draw.random() < 0.5:
            like = (own[image] if own.ndim == 3 else own)[:3]
            fine = torch.isfinite(like).all(1) & (like[:, 2:] >= like[:, :2]).all(1)
            boxes = torch.cat((boxes, like[fine]))
        if len(boxes) and draw.random() < 0.4:
            boxes = torch.cat((boxes, boxes[:2]))
            boxes[-1, 2:] = boxes[-1, :2] if draw.random() < 0.5 else boxes[-1, 2:]
        target = {"boxes": boxes, "labels": torch.randint(classes, (len(boxes),))}
        if draw.random() < 0.3:
            target["ignore_boxes"] = some_boxes(2, whole=True, size=60, side=200)
        if draw.random() < 0.3:
            target["iscrowd"] = torch.rand(len(boxes)) < 0.2
        targets.append(target)
    return targets


def of_anchors(draw: random.Random) -> tuple[Anchors, list[Any]]:
    """Anchors of all images or proposals of each, padded or not, with some that are degenerate or not finite."""
    images, count, whole = draw.choice([1, 2, 3]), draw.choice([1, 5, 64, 65, 700]), draw.random() < 0.6
    size = draw.choice([60.0, 600.0])
    per_image = (images,) if draw.random() < 0.4 else ()
    boxes = some_boxes(*per_image, count, whole=whole, size=size, side=40)
    some = torch.randint(count, (1 + count // 10,))
    if draw.random() < 0.3:
        boxes[..., some, draw.randrange(4)] = draw.choice(ODD)
    if draw.random() < 0.2:
        boxes[..., some, 2:] = boxes[..., some, :2] - draw.choice([0.0, 4.0])
    valid = torch.rand(images, count) < 0.8 if draw.random() < 0.4 else None
    kind = {"whole": whole, "size": size, "side": draw.choice([30.0, 200.0])}
    targets = some_objects(draw, images, draw.choice([0, 3, 30, 70]), boxes, 1, **kind)
    counts = [count] if count < 10 or draw.random() < 0.5 else [count // 2, 0, count - count // 2]
    return Anchors.of(boxes, counts, valid=valid), targets


def max_iou_case(draw: random.Random) -> Case:
    assigner = MaxIoUAssigner(
        draw.choice([0.4, 0.5, 0.7]),
        draw.choice([0.4, 0.3, (0.0, 0.4), (0.1, 0.4), (0.3, 0.3)]),
        draw.choice([0.0, 0.1, 0.3]),
        draw.random() < 0.8,
        draw.choice(["gt", "anchor"]),
        draw.choice([None, 0.5]),
    )
    return assigner, of_anchors(draw)


def atss_case(draw: random.Random) -> Case:
    memory = draw.choice([2**26, 2**26, 2**14])
    return ATSSAssigner(draw.choice([1, 3, 9, 200]), draw.choice([0.0, 0.01, 3.0]), memory_budget=memory), of_anchors(draw)


def aligned_case(draw: random.Random) -> Case:
    images, classes, count = draw.choice([1, 2, 3]), draw.choice([1, 20]), len(POINTS.xy)
    kind = {"whole": draw.random() < 0.5, "size": 190.0, "side": draw.choice([8.0, 80.0, 300.0])}
    targets = some_objects(draw, images, draw.choice([0, 5, 25]), None, classes, **kind)
    dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    logits = torch.randn(images, count, classes) * 3 - 2
    logits = (logits.round() if draw.random() < 0.4 else logits).to(dtype)
    if draw.random() < 0.3:
        logits = logits.transpose(1, 2).contiguous().transpose(1, 2)
    sides = torch.rand(images, count, 4) * draw.choice([1, 6]) * POINTS.stride[:, None]
    sides = (sides / 8).round() * 8 if draw.random() < 0.5 else sides
    boxes = torch.cat((POINTS.xy - sides[..., :2], POINTS.xy + sides[..., 2:]), dim=-1)
    if draw.random() < 0.3:
        boxes[torch.rand(images, count) < 0.1] = draw.choice(ODD)
        logits[torch.rand(images, count) < 0.1] = draw.choice([torch.nan, torch.inf])
    assigner = TaskAlignedAssigner(
        draw.choice([1, 3, 10, 500]),
        draw.choice([0.0, 0.5, 1.0, 1.3]),
        draw.choice([0.0, 1.0, 2.0, 6.0, 4.5]),
        draw.choice(["iou", "ciou"]),
        draw.random() < 0.5,
        memory_budget=draw.choice([2**26, 2**12, 2**16]),
    )
    return assigner, (POINTS, targets, logits, boxes)


def aligned_problem(draw: random.Random) -> tuple[Problem, AlignedRule]:
    """A small problem where most priors are inside several objects, whose boxes many predictions come near or hit."""
    images, count, priors, classes = draw.choice([1, 2, 3]), draw.choice([1, 3, 7]), draw.choice([1, 63, 64, 130]), 3
    whole = draw.random() < 0.5
    xy = torch.rand(*([images] if draw.random() < 0.5 else []), priors, 2) * 64
    objects = some_boxes(images, count, whole=whole, size=30, side=60)
    if draw.random() < 0.5:
        objects[:, -1] = objects[:, 0]
    noise = torch.randn(images, priors, 4) * draw.choice([0, 2, 8])
    boxes = objects[torch.arange(images)[:, None], torch.randint(count, (images, priors))] + (noise.round() if whole else noise)
    logits = torch.randn(images, priors, classes) * 3
    logits = (logits.round() if whole else logits).to(draw.choice([torch.float32, torch.bfloat16, torch.float16]))
    if draw.random() < 0.3:
        boxes[torch.rand(images, priors) < 0.1, draw.randrange(4)] = draw.choice(ODD)
        logits[torch.rand(images, priors) < 0.1] = draw.choice([torch.nan, torch.inf, -torch.inf])
    region = torch.where(torch.rand(images, count, 1) < 0.2, torch.nan, objects + torch.tensor([-4.0, -4, 4, 4]))
    valid, labels = torch.rand(images, priors) < 0.9, torch.randint(-classes, classes, (images * count,))
    scores = logits.transpose(0, 1).contiguous().transpose(0, 1) if draw.random() < 0.3 else logits
    rule = AlignedRule(
        draw.choice([1, 3, 10, 200]), draw.choice([0.0, 0.5, 1.0, 1.3]), draw.choice([0.0, 1.0, 2.0, 6.0, 4.5]),
        draw.choice(["iou", "ciou"]), draw.choice([1e-9, 0.1]), 2**26,
    )  # fmt: skip
    return Problem(xy, valid, region.flatten(0, 1), objects.flatten(0, 1), labels, scores, boxes), rule


CASES: dict[str, Callable[[random.Random], Case]] = {
    "max_iou": max_iou_case,
    "atss": atss_case,
    "task_aligned": aligned_case,
}


class NoWait(TorchDispatchMode):
    """An error where the host would wait for values of a device."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        assert not any(word in str(function) for word in ("_local_scalar_dense", "nonzero", "unique", "masked_select")), function
        return function(*arguments, **(options or {}))


def check_same(found: Assignment, expected: Assignment) -> None:
    """Equal to the bit, of the same dtypes."""
    for name in ("gt_index", "ignore", "quality"):
        own, other = getattr(found, name), getattr(expected, name)
        assert own.dtype == other.dtype and torch.equal(own, other), name


def some_queries(images: int, queries: int, most: int, softmax: bool, scale: float) -> tuple[list[Any], Tensor, Tensor]:
    """Objects, logits and boxes: some equal, some without area, some turned inside out, some not finite."""
    corner = torch.rand(images, queries, 2)
    boxes = torch.cat((corner, corner + torch.rand(images, queries, 2) * 0.4), -1) * scale
    boxes[:, ::7] = boxes[:, ::7].roll(2, -1)
    boxes[:, 1::9, 2] = boxes[:, 1::9, 0]
    scores = torch.randn(images, queries, CLASSES + softmax) * 3
    targets = []
    for image in range(images):
        count = most - image if most > image else 0
        truth = torch.cat((torch.rand(count, 2), torch.ones(count, 2)), -1) * scale
        like = boxes[image].roll(-2, 0).repeat(3, 1)[: len(truth[::3])]
        truth[::3] = torch.cat((torch.minimum(like[:, :2], like[:, 2:]), torch.maximum(like[:, :2], like[:, 2:])), -1)
        truth[1::4, 2:] = truth[1::4, :2]
        targets.append({"boxes": truth, "labels": torch.randint(CLASSES, (count,))})
    boxes[0, 3, 1], scores[0, 5, 2], boxes[-1, 4, 0] = torch.nan, torch.inf, -torch.inf
    return targets, scores, boxes
