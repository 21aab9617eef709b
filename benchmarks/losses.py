"""Losses against every installed peer on the CPU: forward and backward, time in interleaved rounds and peak memory.

    python benchmarks/losses.py [--only focal giou] [--rounds 7] [--threads 2] [--small] [--json losses.json]

Values and gradients are compared first: a peer that computes something else is an error. Peak memory is the high-water mark of
a process of its own, less what the process held before the step, so it includes the gradient. The floor is the time to move
the bytes that any implementation must move (read the inputs, write the gradient into fresh memory) at the speed of a copy
into fresh memory, measured in the same run. ``plain`` is the formula in the fewest operations of PyTorch.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as torch_f
from torch import Tensor

import detloss
from detloss import functional as F
from detloss import kernels

Step = Callable[[], Tensor]
CLASSES = 80


@dataclass
class Case:
    """One loss at one size: the prediction, implementations by name ("detloss" among them), bytes that must be moved."""

    pred: Tensor
    steps: dict[str, Step]
    bytes: int
    rounds: int = 7


def attempt(steps: dict[str, Step], name: str, make: Callable[[], Step]) -> None:
    """Add an implementation if its package is installed."""
    try:
        steps[name] = make()
    except ImportError:
        print(f"  ({name} is not installed)", file=sys.stderr)


def leaf(x: Tensor) -> Tensor:
    return x.requires_grad_()


def labels(shape: tuple[int, ...], classes: int) -> Tensor:
    """1 % positives, the rest background (index ``classes``)."""
    return torch.where(torch.rand(shape) < 0.01, torch.randint(0, classes, shape), classes)


def one_hot(index: Tensor, classes: int) -> Tensor:
    hot = torch_f.one_hot(index, classes + 1)[..., :classes].float()
    return hot if index.ndim == 1 else hot.permute(0, 3, 1, 2).contiguous()


def focal(shape: tuple[int, ...]) -> Case:
    pred, index = leaf(torch.randn(shape) - 3), labels((shape[0], *shape[2:]), shape[1])
    steps: dict[str, Step] = {"detloss": lambda: F.sigmoid_focal_loss(pred, index, reduction="sum")}

    def dense(module: str, name: str, **options: object) -> Step:
        target = one_hot(index, shape[1])
        function = getattr(__import__(module, fromlist=[name]), name)
        return lambda: function(pred, target, **options).sum()

    attempt(steps, "torchvision", lambda: dense("torchvision.ops", "sigmoid_focal_loss", reduction="sum"))
    attempt(steps, "fvcore", lambda: dense("fvcore.nn", "sigmoid_focal_loss", alpha=0.25, reduction="sum"))
    attempt(steps, "kornia", lambda: dense("kornia.losses", "binary_focal_loss_with_logits", alpha=0.25, reduction="sum"))

    def of_ultralytics() -> Step:
        from ultralytics.utils.loss import FocalLoss

        target, loss = one_hot(index, shape[1]), FocalLoss(2.0, 0.25)
        return lambda: loss(pred, target) * shape[1]

    attempt(steps, "ultralytics", of_ultralytics)
    return Case(pred, steps, 8 * pred.numel() + 8 * index.numel(), 5)


def scored(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pred, index, score = leaf(torch.randn(rows, CLASSES) - 3), labels((rows,), CLASSES), torch.rand(rows)
    return pred, index, score, one_hot(index, CLASSES) * score.unsqueeze(1)


def quality_focal(rows: int) -> Case:
    pred, index, score, dense = scored(rows)

    def plain() -> Tensor:
        entropy = torch_f.binary_cross_entropy_with_logits(pred, dense, reduction="none")
        return (entropy * (dense - pred.sigmoid()).abs().pow(2)).sum()

    steps = {"detloss": lambda: F.quality_focal_loss(pred, (index, score), reduction="sum"), "plain": plain}
    return Case(pred, steps, 8 * pred.numel() + 12 * rows, 5)


def varifocal(rows: int) -> Case:
    pred, index, score, dense = scored(rows)
    steps: dict[str, Step] = {"detloss": lambda: F.varifocal_loss(pred, (index, score), reduction="sum")}

    def of_ultralytics() -> Step:
        from ultralytics.utils.loss import VarifocalLoss

        loss, hot = VarifocalLoss(), (dense > 0).float()
        return lambda: loss(pred, dense, hot) * CLASSES

    attempt(steps, "ultralytics", of_ultralytics)
    return Case(pred, steps, 8 * pred.numel() + 12 * rows, 5)


def binary_cross_entropy(rows: int) -> Case:
    pred, _, _, dense = scored(rows)
    steps: dict[str, Step] = {
        "detloss": lambda: F.binary_cross_entropy_loss(pred, dense, reduction="sum"),
        "torch none + sum": lambda: torch_f.binary_cross_entropy_with_logits(pred, dense, reduction="none").sum(),
        "torch": lambda: torch_f.binary_cross_entropy_with_logits(pred, dense, reduction="sum"),
    }
    return Case(pred, steps, 12 * pred.numel(), 5)


def cross_entropy(rows: int) -> Case:
    pred, index = leaf(torch.randn(rows, CLASSES + 1)), torch.randint(0, CLASSES + 1, (rows,))
    steps: dict[str, Step] = {
        "detloss": lambda: F.cross_entropy_loss(pred, index, reduction="sum"),
        "torch": lambda: torch_f.cross_entropy(pred, index, reduction="sum"),
    }
    return Case(pred, steps, 8 * pred.numel() + 8 * rows, 7)


def distribution_focal(boxes: int) -> Case:
    pred, target = leaf(torch.randn(4 * boxes, 16)), torch.rand(4 * boxes) * 14.9
    steps: dict[str, Step] = {"detloss": lambda: F.distribution_focal_loss(pred, target, reduction="sum")}

    def of_ultralytics() -> Step:
        from ultralytics.utils.loss import DFLoss

        loss, sides = DFLoss(16), target.view(-1, 4)
        return lambda: loss(pred, sides).sum() * 4

    attempt(steps, "ultralytics", of_ultralytics)
    return Case(pred, steps, 8 * pred.numel() + 4 * target.numel(), 7)


def boxes(kind: str, count: int) -> Case:
    centre, size = torch.rand(count, 2) * 500, torch.rand(count, 2) * 100 + 40
    target = torch.cat((centre - size / 2, centre + size / 2), 1)
    pred = leaf(target + torch.randn(count, 4) * 4)
    ours = F.giou_loss if kind == "giou" else F.ciou_loss
    steps: dict[str, Step] = {"detloss": lambda: ours(pred, target, reduction="sum")}

    def of_torchvision() -> Step:
        from torchvision import ops

        loss = ops.generalized_box_iou_loss if kind == "giou" else ops.complete_box_iou_loss
        return lambda: loss(pred, target, reduction="sum")

    def of_ultralytics() -> Step:
        from ultralytics.utils.metrics import bbox_iou

        return lambda: (1 - bbox_iou(pred, target, xywh=False, GIoU=kind == "giou", CIoU=kind == "ciou")).sum()

    attempt(steps, "torchvision", of_torchvision)
    attempt(steps, "ultralytics", of_ultralytics)
    if kind == "giou":
        attempt(
            steps, "fvcore", lambda: partial(__import__("fvcore.nn", fromlist=["x"]).giou_loss, pred, target, reduction="sum")
        )
    return Case(pred, steps, 48 * count, 7 if count > 1000 else 25)


def cases(small: bool) -> dict[str, Callable[[], Case]]:
    """By name, made when they are measured."""
    rows, images, sides = (20000, 4, 10000) if small else (162136, 32, 100000)
    found: dict[str, Callable[[], Case]] = {
        f"focal {rows}x{CLASSES}": partial(focal, (rows, CLASSES)),
        f"focal {images}x{CLASSES}x100x100": partial(focal, (images, CLASSES, 100, 100)),
        f"qfl {rows}x{CLASSES}": partial(quality_focal, rows),
        f"vfl {rows}x{CLASSES}": partial(varifocal, rows),
        f"bce {rows}x{CLASSES}": partial(binary_cross_entropy, rows),
        f"ce {rows}x{CLASSES + 1}": partial(cross_entropy, rows),
        f"dfl {sides} boxes": partial(distribution_focal, sides),
    }
    for kind in ("giou", "ciou"):
        for count in (1000, 100000) if small else (1000, 100000, 1000000):
            found[f"{kind} {count} boxes"] = partial(boxes, kind, count)
    return found


def burst(case: Case, name: str) -> float:
    """Seconds of a step; small ones are repeated in a row, as a training loop would not find them cold from other code."""
    steps = 1 if case.pred.numel() > 100000 else 50
    times = [once(case, name)[0] for _ in range(steps)]
    return statistics.median(times)


def once(case: Case, name: str) -> tuple[float, Tensor, Tensor]:
    """Seconds, loss and gradient of a step."""
    case.pred.grad = None
    start = time.perf_counter()
    loss = case.steps[name]()
    loss.backward()
    seconds = time.perf_counter() - start
    grad = case.pred.grad
    if grad is None:
        raise RuntimeError(f"{name} gave no gradient")
    return seconds, loss.detach(), grad


def verify(case: Case) -> None:
    """Every implementation must agree with detloss in value and gradient; also warms up."""
    _, loss, grad = once(case, "detloss")
    for name in case.steps:
        _, other, slope = once(case, name)
        # A sum, because a few of a million boxes share a coordinate with their target, where the derivative is a convention.
        error = ((slope - grad).abs().sum() / grad.abs().sum()).item()
        if abs(other / loss - 1) > 1e-3 or error > 1e-3:
            raise RuntimeError(f"{name} disagrees: {other:g} for {loss:g}, gradient off by {error:.1e}")


def copy_seconds_per_byte(size: int) -> float:
    """Of reading a tensor and writing it into fresh memory, median of 5."""
    source = torch.ones(max(size // 8, 1))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.empty_like(source).copy_(source)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / (2 * source.nbytes)


def memory(case: Case, name: str) -> float:
    """Megabytes by which a step raises the high-water mark of this process (Linux)."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew from what is held now
    before = int(status.read_text().split("VmRSS:")[1].split()[0])
    case.steps[name]().backward()
    return (int(status.read_text().split("VmHWM:")[1].split()[0]) - before) / 1024


def measure(name: str, case: Case, rounds: int | None, options: list[str]) -> dict[str, object]:
    """Times, memory, floor and ratios of a case."""
    verify(case)
    times: dict[str, list[float]] = {step: [] for step in case.steps}
    for _ in range(rounds or case.rounds):
        for step, found in times.items():
            found.append(burst(case, step))
    peaks = {}
    if sys.platform == "linux" and case.pred.nbytes > 1 << 20:
        for step in case.steps:
            command = [sys.executable, __file__, "--memory", name, step, *options]
            peaks[step] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    result = {
        step: {
            "ms": [round(q * 1e3, 4) for q in statistics.quantiles(found, n=4)],
            **({"peak_mb": round(peaks[step], 1)} if step in peaks else {}),
        }
        for step, found in times.items()
    }
    fastest = min((s for s in times if s != "detloss"), key=lambda s: statistics.median(times[s]))
    return {
        "case": name, "implementations": result, "fastest_peer": fastest,
        "ratio": round(statistics.median(times[fastest]) / statistics.median(times["detloss"]), 2),
        "floor_ms": round(case.bytes * copy_seconds_per_byte(case.bytes) * 1e3, 4),
        "gradient_mb": round(case.pred.nbytes / 2**20, 1),
    }  # fmt: skip


def show(row: dict[str, object]) -> None:
    """One case as lines of a table."""
    print(f"{row['case']}: {row['ratio']}x the fastest peer ({row['fastest_peer']}); floor {row['floor_ms']:.2f} ms")
    for name, found in row["implementations"].items():  # type: ignore[attr-defined]
        low, middle, high = found["ms"]
        peak = f"{found['peak_mb']:8.1f} MB" if "peak_mb" in found else ""
        print(f"  {name:18s} {middle:9.3f} ms [{low:.3f} – {high:.3f}] {peak}", flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the names of cases")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true", help="sizes for a quick look")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "IMPLEMENTATION"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    options = ["--threads", str(given.threads), *(["--small"] if given.small else [])]
    known = cases(given.small)
    if given.memory:
        print(memory(known[given.memory[0]](), given.memory[1]))
        return
    print(f"detloss {detloss.__version__}, torch {torch.__version__}, {given.threads} threads; {kernels.backend()}")
    rows = []
    for name, make in known.items():
        if not given.only or name.startswith(tuple(given.only)):
            rows.append(measure(name, make(), given.rounds, options))
            show(rows[-1])
    if given.json:
        machine = {"machine": platform.machine(), "processor": platform.processor(), "python": platform.python_version()}
        versions = {
            "detloss": detloss.__version__,
            "torch": torch.__version__,
            "threads": given.threads,
            "kernels": str(kernels.backend()),
        }
        given.json.write_text(json.dumps({**machine, **versions, "threads": given.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
