"""Time and memory of the assigners beside what else there is, in one run.

    python benchmarks/assigners.py [--quick] [--rounds 15] [--threads 2]

ATSS and MaxIoU are compared with the usual dense algorithm, one image after the other, as written here; TaskAligned with the
assigner of ultralytics, where that is installed. The results are compared first: nothing is timed that is not the same.
Rounds are interleaved; medians with quartiles are printed, the ratio being that of the same round. Memory is how far the
resident set of a fresh process rises above what it was before the call (Linux), the median of three. At the end every
registered dense assigner matches 1000 objects in one image, to compare its peak with its memory budget.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detloss.assigners import ATSSAssigner, MaxIoUAssigner, TaskAlignedAssigner
from detloss.geometry import Anchors, grid_anchors, grid_points
from detloss.registry import ASSIGNERS
from detloss.types import Assignment, Target

STRIDES = (8, 16, 32, 64, 128)
MIB = 2**20
NOT_DENSE = ("HungarianAssigner",)


class Pair(NamedTuple):
    """Two implementations of one assignment, and what both of them found: index of the object and quality, −1 and 0 elsewhere."""

    ours: Callable[[], Assignment]
    peer: Callable[[], tuple[Tensor, Tensor | None]]
    peer_name: str


def pyramid(height: int, width: int, strides: tuple[int, ...] = STRIDES) -> list[tuple[int, int]]:
    """Sizes of the feature maps of an image."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def anchors_of(height: int, width: int) -> Anchors:
    """One square anchor of 8 strides per cell: 20267 for 800 x 1216."""
    return grid_anchors(pyramid(height, width), STRIDES, [[8 * stride] for stride in STRIDES], [1.0])


def objects(images: int, count: int, height: int, width: int, classes: int = 80) -> list[Target]:
    """Boxes whose sides are log-uniform from 16 to 320 pixels, some over the edge of the image.

    Cut off at the image their centres would be as far from one anchor as from another, and which of two that are equally
    far is a candidate is open in the dense algorithm.
    """
    made = []
    for _ in range(images):
        centre = torch.rand(count, 2) * torch.tensor([width, height])
        half = 8 * 20 ** torch.rand(count, 2)
        made.append({"boxes": torch.cat((centre - half, centre + half), dim=1), "labels": torch.randint(classes, (count,))})
    return made


def dense_iou(a: Tensor, b: Tensor) -> Tensor:
    """``[N, M]`` in one go."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    area = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return common / (area[0][:, None] + area[1] - common).clamp(min=1e-6)


def dense_atss(anchors: Tensor, counts: tuple[int, ...], boxes: Tensor, topk: int = 9) -> tuple[Tensor, Tensor]:
    """One image: all IoU, all distances, topk per level, and the conflicts in a matrix of -inf."""
    iou = dense_iou(anchors, boxes)
    middle, centre = (anchors[:, :2] + anchors[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (middle[:, None] - centre[None]).square().sum(-1).sqrt()
    chosen, start = [], 0
    for count in counts:
        chosen.append(distance[start : start + count].topk(min(topk, count), dim=0, largest=False).indices + start)
        start += count
    candidates = torch.cat(chosen)
    values = iou.gather(0, candidates)
    threshold = values.mean(0) + values.std(0)
    at = middle[candidates]
    inside = torch.cat((at - boxes[:, :2], boxes[:, 2:] - at), dim=-1).amin(-1) > 0.01
    positive = (values >= threshold) & inside
    claims = torch.full_like(iou, -torch.inf)
    for index in range(len(boxes)):
        own = candidates[positive[:, index], index]
        claims[own, index] = iou[own, index]
    best, owner = claims.max(1)
    return torch.where(best.isinf(), -1, owner), torch.where(best.isinf(), 0.0, best)


def dense_max_iou(anchors: Tensor, boxes: Tensor, positive: float = 0.5, negative: float = 0.4) -> Tensor:
    """One image: all IoU, then one object after the other takes the anchors of its highest."""
    iou = dense_iou(boxes, anchors)
    best, owner = iou.max(0)
    index = torch.full_like(owner, -2)
    index[best < negative] = -1
    index[best >= positive] = owner[best >= positive]
    highest = iou.max(1).values
    for row in range(len(boxes)):
        if highest[row] > 0:
            index[iou[row] == highest[row]] = row
    return index.clamp(min=-1)


def atss_case(images: int, height: int, width: int, count: int) -> Pair:
    """ATSS of both kinds on the same anchors."""
    anchors, targets, assigner = anchors_of(height, width), objects(images, count, height, width), ATSSAssigner()

    def peer() -> tuple[Tensor, Tensor]:
        index, quality = zip(*(dense_atss(anchors.boxes, anchors.counts, t["boxes"]) for t in targets), strict=True)
        return torch.stack(index), torch.stack(quality)

    return Pair(lambda: assigner(anchors, targets), peer, "dense, per image")


def max_iou_case(images: int, height: int, width: int, count: int) -> Pair:
    """MaxIoU of both kinds on the same anchors."""
    anchors, targets = anchors_of(height, width), objects(images, count, height, width)
    assigner = MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.0)

    def peer() -> tuple[Tensor, None]:
        return torch.stack([dense_max_iou(anchors.boxes, t["boxes"]) for t in targets]), None

    return Pair(lambda: assigner(anchors, targets), peer, "dense, per image")


def aligned_case(images: int, height: int, width: int, count: int, classes: int = 80) -> Pair:
    """Task alignment on predictions that are about right for some objects and about nothing for most."""
    from ultralytics.utils.tal import TaskAlignedAssigner as Peer

    strides = STRIDES[:3]
    points = grid_points(pyramid(height, width, strides), strides)
    targets = objects(images, count, height, width, classes)
    logits = torch.randn(images, len(points.xy), classes) * 2 - 3
    sides = torch.rand(images, len(points.xy), 4) * 6 * points.stride[:, None]
    boxes = torch.cat((points.xy - sides[..., :2], points.xy + sides[..., 2:]), dim=-1)
    assigner = TaskAlignedAssigner()
    peer_assigner = Peer(topk=10, num_classes=classes, alpha=0.5, beta=6.0, stride=list(strides))
    padded = torch.stack([t["boxes"] for t in targets])
    labels = torch.stack([t["labels"] for t in targets])[..., None]
    scores = logits.sigmoid()

    def peer() -> tuple[Tensor, Tensor]:
        _, _, target, found, index = peer_assigner(scores, boxes, points.xy, labels, padded, torch.ones_like(labels))
        quality = target.amax(-1)
        return torch.where(found & (quality > 0), index, -1), quality

    return Pair(lambda: assigner(points, targets, logits, boxes), peer, "ultralytics")


CASES: dict[str, tuple[Callable[..., Pair], tuple[int, ...], tuple[int, ...]]] = {
    "ATSS": (atss_case, (8, 800, 1216, 50), (2, 256, 320, 20)),
    "TaskAligned": (aligned_case, (8, 640, 640, 50), (2, 256, 320, 20)),
    "MaxIoU": (max_iou_case, (8, 800, 1216, 50), (2, 256, 320, 20)),
}


def made(name: str, quick: bool) -> Pair:
    """The pair of a case, from the same random numbers in every process."""
    torch.manual_seed(0)
    build, *sizes = CASES[name]
    return build(*sizes[quick])


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def quartiles(values: list[float], unit: str, scale: float = 1.0) -> str:
    """Median with quartiles."""
    low, middle, high = (scale * value for value in statistics.quantiles(values, n=4))
    return f"{middle:.1f}{unit} ({low:.1f} to {high:.1f})"


def check_same(name: str, pair: Pair) -> None:
    """Raise unless both found the same objects and, within rounding, the same quality."""
    ours, (index, quality) = pair.ours(), pair.peer()
    different = int((ours.gt_index != index).sum())
    if different:
        raise SystemExit(f"{name}: {different} of {index.numel()} priors differ from {pair.peer_name}")
    if quality is not None and ours.quality is not None:
        torch.testing.assert_close(ours.quality, quality, rtol=1e-4, atol=2e-6)


def resident(key: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the largest so far) of this process in bytes; 0 where there is no such file."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def rise(work: Callable[[], object]) -> int:
    """Bytes by which the resident set of this process rises above its level before the call."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # from here on the highest counts anew
    before = resident("VmRSS")
    work()
    return max(0, resident("VmHWM") - before)


def peak_of_case(name: str, side: str, quick: bool, threads: int) -> int:
    """Rise of one side of a case, after a small case has loaded what is loaded once."""
    torch.set_num_threads(threads)
    getattr(made(name, quick=True), side)()
    pair = made(name, quick)
    return rise(getattr(pair, side))


def crowd(name: str, quick: bool, covering: bool) -> Callable[[], Assignment]:
    """A registered assigner with 1000 objects in one image, spread over it or each covering all of it."""
    torch.manual_seed(0)
    height, width, count = (256, 320, 20) if quick else (800, 1216, 1000)
    anchors, targets = anchors_of(height, width), objects(1, count, height, width)
    if covering:
        edge = torch.tensor([0.0, 0.0, width, height])
        targets = [{**t, "boxes": edge + torch.rand(count, 4) * torch.tensor([-8.0, -8.0, 8.0, 8.0])} for t in targets]
    assigner = ASSIGNERS.get(name)()
    logits = torch.randn(1, len(anchors.stride), 80)
    boxes = anchors.boxes + torch.randn(1, len(anchors.stride), 4) * 8
    return lambda: assigner(anchors, targets, logits, boxes)


def peak_of_crowd(name: str, covering: bool, quick: bool, threads: int) -> tuple[int, float]:
    """Rise and seconds of one assigner with 1000 objects."""
    torch.set_num_threads(threads)
    crowd(name, quick=True, covering=covering)()
    work = crowd(name, quick, covering)
    return rise(work), seconds(work)


def in_fresh_process(work: Callable[..., Any], *arguments: object) -> Any:
    """Result of a call in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def available() -> Iterator[str]:
    """Names of the cases whose two sides are installed."""
    for name in CASES:
        if name != "TaskAligned" or importlib.util.find_spec("ultralytics"):
            yield name
        else:
            print(f"{name}: left out, ultralytics is not installed")


def compare(name: str, options: argparse.Namespace) -> None:
    """Check, time and weigh one case."""
    pair = made(name, options.quick)
    check_same(name, pair)
    for _ in range(2):
        pair.ours(), pair.peer()
    rounds = [(seconds(pair.ours), seconds(pair.peer)) for _ in range(options.rounds)]
    ours, peer = (list(side) for side in zip(*rounds, strict=True))
    peaks = []
    for side in ("ours", "peer"):
        risen = (in_fresh_process(peak_of_case, name, side, options.quick, options.threads) for _ in range(3))
        peaks.append(statistics.median(risen) / MIB)
    print(f"{name} beside {pair.peer_name}: the same result")
    print(f"  time    {quartiles(ours, ' ms', 1e3):30s} {quartiles(peer, ' ms', 1e3):30s}", end="")
    print(f" {quartiles([theirs / own for own, theirs in rounds], ' times as fast')}")
    print(f"  memory  {f'{peaks[0]:.1f} MiB':30s} {f'{peaks[1]:.1f} MiB':30s} {peaks[1] / max(peaks[0], 1e-3):.1f} times less")


def main() -> None:
    """Print the comparisons and the crowds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small problems, to see that it works")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads; medians of {options.rounds} rounds with quartiles")
    for name in available():
        compare(name, options)
    print("1000 objects in one image" if not options.quick else "20 objects in one image")
    for name in (n for n in ASSIGNERS if n not in NOT_DENSE):
        for covering in (False, True):
            peak, taken = in_fresh_process(peak_of_crowd, name, covering, options.quick, options.threads)
            budget = ASSIGNERS.get(name)().memory_budget / MIB
            where = "all covering it" if covering else "spread over it"
            print(f"  {name:28s} {where:16s} {peak / MIB:7.1f} MiB of {budget:.0f} MiB, {1e3 * taken:7.0f} ms")


if __name__ == "__main__":
    main()
