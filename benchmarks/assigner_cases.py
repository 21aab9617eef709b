"""The assigners beside those of the peers, which take one image after the other or fill whole tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from dense import dense_atss, dense_max_iou, dense_sim_ota, dense_soft_label
from measure import OURS, Case, Entry, Result, Step
from scenes import CLASSES, STRIDES, Scene, anchors_of, objects, predictions, pyramid, scene, three_levels
from torch import Tensor

from detloss.assigners import (
    ATSSAssigner,
    DynamicSoftLabelAssigner,
    FCOSAssigner,
    HungarianAssigner,
    MaxIoUAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
)
from detloss.geometry import convert_boxes, grid_points
from detloss.types import Assignment, Target

__all__ = ["entries"]

NOT_INSTALLED = "not installed"
BETWEEN = -2


def _from(module: str) -> ModuleType:
    return __import__(module, fromlist=["x"])


def _differs(ours: Result, theirs: Result) -> str:
    """Objects must be the same; qualities, where both have them, within rounding."""
    different = int((ours[0] != theirs[0]).sum())
    if different:
        return f"{different} of {ours[0].numel()} priors belong elsewhere"
    for mine, other in zip(ours[1:], theirs[1:], strict=False):
        error = (mine - other).abs() - 1e-4 * other.abs()
        if not bool((error <= 2e-6).all()):
            return f"qualities off by {(mine - other).abs().max().item():.1e}"
    return ""


def _case(ours: Callable[[], Assignment], makers: dict[str, Callable[[], Step]], between: bool = False) -> Case:
    """The case of an assigner; ``between`` marks ignored priors with −2, as the peer does."""

    def step() -> Result:
        found = ours()
        index = torch.where(found.ignore, BETWEEN, found.gt_index) if between else found.gt_index
        return (index,) if found.quality is None else (index, found.quality)

    steps: dict[str, Step] = {OURS: step}
    left_out = {}
    for name, make in makers.items():
        try:
            steps[name] = make()
        except ImportError:
            left_out[name] = NOT_INSTALLED
    return Case(steps, _differs, left_out=left_out)


def _stacked(per_image: Callable[[Any], Tensor | tuple[Tensor, ...]], items: list[Any]) -> Result:
    """One image after the other."""
    found = [per_image(item) for item in items]
    parts = [(x,) if isinstance(x, Tensor) else x for x in found]
    return tuple(torch.stack(x) for x in zip(*parts, strict=True))


def atss(of: Scene) -> Case:
    """ATSS; no package has it alone."""
    anchors, targets, assigner = (
        anchors_of(of.height, of.width),
        objects(of.images, of.count, of.height, of.width),
        ATSSAssigner(),
    )
    dense = partial(dense_atss, anchors.boxes, anchors.counts)
    return _case(
        lambda: assigner(anchors, targets),
        {"dense": lambda: lambda: _stacked(lambda t: dense(t["boxes"]), targets)},
    )


def max_iou(of: Scene) -> Case:
    """MaxIoU as in mmdet: an object claims all anchors that tie at its best IoU; in effdet the first of them."""
    anchors, targets = anchors_of(of.height, of.width), objects(of.images, of.count, of.height, of.width)
    assigner = MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.0)
    dense = partial(dense_max_iou, anchors.boxes)

    def of_effdet() -> Step:
        parts = "effdet.object_detection"
        similarity = _from(f"{parts}.region_similarity_calculator").IouSimilarity()
        matcher = _from(f"{parts}.argmax_matcher").ArgMaxMatcher(0.5, 0.4, force_match_for_each_row=True)
        listed = _from(f"{parts}.box_list").BoxList
        every = listed(anchors.boxes)

        def one(target: Target) -> Tensor:
            return matcher.match(similarity.compare(listed(target["boxes"]), every)).match_results.clamp(min=-1)

        return lambda: _stacked(one, targets)

    makers = {"dense": lambda: lambda: _stacked(lambda t: dense(t["boxes"]), targets), "effdet": of_effdet}
    return _case(lambda: assigner(anchors, targets), makers)


def max_iou_of_anchors(of: Scene) -> Case:
    """MaxIoU as in torchvision: claimed anchors go to the object that they overlap most."""
    anchors, targets = anchors_of(of.height, of.width), objects(of.images, of.count, of.height, of.width)
    assigner = MaxIoUAssigner(0.5, 0.4, low_quality="anchor")

    def of_torchvision() -> Step:
        matcher = _from("torchvision.models.detection._utils").Matcher(0.5, 0.4, allow_low_quality_matches=True)
        box_iou = _from("torchvision.ops").box_iou
        return lambda: _stacked(lambda t: matcher(box_iou(t["boxes"], anchors.boxes)), targets)

    return _case(lambda: assigner(anchors, targets), {"torchvision": of_torchvision}, between=True)


def fcos_sampled(of: Scene) -> Case:
    """FCOS with centre sampling, as in torchvision, whose model matches inside its loss."""
    points = grid_points(pyramid(of.height, of.width), STRIDES, offset=0.0)
    targets = objects(of.images, of.count, of.height, of.width)
    assigner = FCOSAssigner(center_sampling_radius=1.5, range_bounds="open")
    half = points.stride[:, None] / 2
    anchors = [torch.cat((points.xy - half, points.xy + half), dim=1)] * of.images

    def of_torchvision() -> Step:
        compute = _from("torchvision.models.detection.fcos").FCOS.compute_loss

        def step() -> Result:
            found: list[Tensor] = []
            head = SimpleNamespace(compute_loss=lambda _targets, _outputs, _anchors, matched: found.extend(matched) or {})
            detector = SimpleNamespace(center_sampling_radius=1.5, head=head)
            compute(detector, targets, {}, anchors, list(points.counts))
            return (torch.stack(found),)

        return step

    return _case(lambda: assigner(points, targets), {"torchvision": of_torchvision})


def fcos_whole_box(of: Scene) -> Case:
    """FCOS without centre sampling, as in autotimm, which makes the targets of boxes and centerness in the same call."""
    sizes = pyramid(of.height, of.width)
    points, targets = grid_points(sizes, STRIDES), objects(of.images, of.count, of.height, of.width)
    ranges = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, float("inf")))
    assigner = FCOSAssigner(regress_ranges=ranges, range_bounds="half_open")
    number = torch.arange(of.count)
    levels = [xy.view(*shape, 2) for xy, shape in zip(points.xy.split(points.counts), sizes, strict=True)]

    def of_autotimm() -> Step:
        targets_of_level = _from("autotimm.tasks._fcos_targets").compute_targets_per_level

        def one(target: Target) -> Tensor:
            found = [targets_of_level(xy, target["boxes"], number, r)[0] for xy, r in zip(levels, ranges, strict=True)]
            return torch.cat([x.flatten() for x in found])

        return lambda: _stacked(one, targets)

    return _case(lambda: assigner(points, targets), {"autotimm": of_autotimm})


def task_aligned(of: Scene) -> Case:
    """Task alignment, as in ultralytics."""
    points, targets = three_levels(of.height, of.width), objects(of.images, of.count, of.height, of.width)
    logits, boxes = predictions(of.images, points)
    assigner = TaskAlignedAssigner()
    padded, labels = (torch.stack([t[name] for t in targets]) for name in ("boxes", "labels"))
    scores, labels = logits.sigmoid(), labels[..., None]

    def of_ultralytics() -> Step:
        theirs = _from("ultralytics.utils.tal").TaskAlignedAssigner(
            topk=10, num_classes=CLASSES, alpha=0.5, beta=6.0, stride=list(STRIDES[:3])
        )

        def step() -> Result:
            _, _, target, found, index = theirs(scores, boxes, points.xy, labels, padded, torch.ones_like(labels))
            quality = target.amax(-1)
            return torch.where(found & (quality > 0), index, -1), quality

        return step

    return _case(lambda: assigner(points, targets, logits, boxes), {"ultralytics": of_ultralytics})


def hungarian(images: int, queries: int, count: int) -> Case:
    """The matching of Deformable DETR, boxes in units of the image."""
    targets = [{**t, "boxes": t["boxes"] / 1000} for t in objects(images, count, 900, 900)]
    logits, centred = torch.randn(images, queries, CLASSES) * 2, torch.rand(images, queries, 4) * 0.4 + 0.05
    boxes = convert_boxes(centred, "cxcywh", "xyxy")
    true = [convert_boxes(t["boxes"], "xyxy", "cxcywh") for t in targets]
    assigner = HungarianAssigner("focal", cls_weight=2.0)

    def indices(pairs: Any, firsts: list[int]) -> Result:
        index = torch.full((images, queries), -1)
        for image, ((query, found), first) in enumerate(zip(pairs, firsts, strict=True)):
            index[image, query] = found - first
        return (index,)

    def of_transformers() -> Step:
        matcher = _from("transformers.loss.loss_deformable_detr").DeformableDetrHungarianMatcher(2, 5, 2)
        theirs = [{"class_labels": t["labels"], "boxes": b} for t, b in zip(targets, true, strict=True)]
        return lambda: indices(matcher({"logits": logits, "pred_boxes": centred}, theirs), [0] * images)

    def of_ultralytics() -> Step:
        matcher = _from("ultralytics.models.utils.ops").HungarianMatcher({"class": 2, "bbox": 5, "giou": 2}, use_fl=True)
        every, labels = torch.cat(true), torch.cat([t["labels"] for t in targets])
        firsts = [count * image for image in range(images)]
        return lambda: indices(matcher(centred, logits, every, labels, [count] * images), firsts)

    makers = {"transformers": of_transformers, "ultralytics": of_ultralytics}
    return _case(lambda: assigner(None, targets, logits, boxes), makers)


def dynamic_k(kind: type[SimOTAAssigner] | type[DynamicSoftLabelAssigner], of: Scene) -> Case:
    """SimOTA or dynamic soft label; no package has them alone."""
    points, targets = three_levels(of.height, of.width), objects(of.images, of.count, of.height, of.width)
    logits, boxes = predictions(of.images, points)
    assigner = kind()
    dense = dense_sim_ota if kind is SimOTAAssigner else dense_soft_label
    batch = list(zip(targets, logits, boxes, strict=True))

    def one(image: Any) -> tuple[Tensor, Tensor]:
        target, scores, predicted = image
        return dense(points.xy, points.stride, target["boxes"], target["labels"], scores, predicted)

    return _case(lambda: assigner(points, targets, logits, boxes), {"dense": lambda: lambda: _stacked(one, batch)})


def entries(size: str) -> list[Entry]:
    """The cases at a size, ``"tiny"``, ``"quick"`` or ``"full"``."""
    of, square = scene(size), scene(size, 640, 640)
    anchors = len(anchors_of(of.height, of.width).boxes)
    points = len(three_levels(square.height, square.width).xy)
    dense, yolo = f"{of.images} × {anchors} × {of.count}", f"{square.images} × {points} × {square.count}"
    queries = {"tiny": (2, 20, 3), "quick": (2, 100, 20)}.get(size, (8, 300, 50))
    matched = " × ".join(map(str, queries))
    few = square._replace(images=min(square.images, 2))  # its dense form takes seconds an image
    return [
        Entry("MaxIoU", "MaxIoUAssigner", dense, partial(max_iou, of)),
        Entry("MaxIoU of anchors", "MaxIoUAssigner", dense, partial(max_iou_of_anchors, of)),
        Entry("ATSS", "ATSSAssigner", dense, partial(atss, of)),
        Entry("FCOS, centre sampling", "FCOSAssigner", dense, partial(fcos_sampled, of)),
        Entry("FCOS, whole box", "FCOSAssigner", dense, partial(fcos_whole_box, of)),
        Entry("TaskAligned", "TaskAlignedAssigner", yolo, partial(task_aligned, square)),
        Entry("SimOTA", "SimOTAAssigner", yolo, partial(dynamic_k, SimOTAAssigner, square)),
        Entry("DynamicSoftLabel", "DynamicSoftLabelAssigner", f"{few.images} × {points} × {few.count}",
              partial(dynamic_k, DynamicSoftLabelAssigner, few)),
        Entry("Hungarian", "HungarianAssigner", matched, partial(hungarian, *queries)),
    ]  # fmt: skip
