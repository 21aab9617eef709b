"""YOLOv8Loss beside ultralytics' v8DetectionLoss: forward and backward of the whole criterion, and their peak memory.

    python benchmarks/yolov8_loss.py [--batch 8] [--side 640] [--classes 80] [--objects 50] [--rounds 15] [--threads 2]

Both get the same predictions, each in the layout it takes: maps per level here, joined over the levels there. The numbers
are compared first. Times are of interleaved rounds; the ratio is that of each round. Peak memory is that of one step in a
process of its own, above what was resident before it (Linux only), gradients of the predictions included.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics import __version__ as ultralytics_version
from ultralytics.utils.loss import v8DetectionLoss

from detloss import YOLOv8Loss

STRIDES, BINS = (8, 16, 32), 16
TERMS = ("loss_box", "loss_cls", "loss_dfl")  # in ultralytics' order
Inputs = dict[str, Any]


class Model(nn.Module):
    """What v8DetectionLoss reads of a model."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
        self.model = [SimpleNamespace(stride=torch.tensor(STRIDES, dtype=torch.float32), nc=num_classes, reg_max=BINS)]


def random_maps(options: argparse.Namespace) -> tuple[list[Tensor], list[Tensor]]:
    """Class logits and bins per level; sides of 0 to 9 strides, as in the midst of training."""
    scores, bins = [], []
    for stride in STRIDES:
        cells = options.side // stride
        noise = torch.randn(options.batch, 4, BINS, cells, cells)
        peak = torch.rand(options.batch, 4, 1, cells, cells) * 9
        bins.append((noise - (torch.arange(BINS).view(1, 1, -1, 1, 1) - peak).abs()).flatten(1, 2))
        scores.append(torch.randn(options.batch, options.classes, cells, cells) * 1.5 - 4)
    return scores, bins


def random_targets(options: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Boxes of 8 pixels to half the side, small ones more often."""
    made = []
    for _ in range(options.batch):
        size = 8 + torch.rand(options.objects, 2) ** 2 * (options.side / 2 - 8)
        corner = torch.rand(options.objects, 2) * (options.side - size)
        boxes = torch.cat((corner, corner + size), 1)
        made.append({"boxes": boxes, "labels": torch.randint(options.classes, (options.objects,))})
    return made


def our_inputs(options: argparse.Namespace) -> Inputs:
    """Predictions ``[scores…, bins…]`` per level, and targets."""
    scores, bins = random_maps(options)
    return {"leaves": [*scores, *bins], "targets": random_targets(options)}


def their_inputs(options: argparse.Namespace) -> Inputs:
    """Predictions joined over the levels, and the targets in one table."""
    scores, bins = (torch.cat([x.flatten(2) for x in levels], 2) for levels in random_maps(options))
    targets = random_targets(options)
    boxes = torch.cat([t["boxes"] for t in targets])
    batch = {
        "batch_idx": torch.arange(options.batch).repeat_interleave(options.objects).float(),
        "cls": torch.cat([t["labels"] for t in targets]).float()[:, None],
        "bboxes": torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / options.side,
    }
    return {"leaves": [scores, bins], "batch": batch}


def our_losses(inputs: Inputs, options: argparse.Namespace) -> Callable[[], Tensor]:
    criterion = YOLOv8Loss.preset("ultralytics", num_classes=options.classes)
    scores, bins = inputs["leaves"][: len(STRIDES)], inputs["leaves"][len(STRIDES) :]

    def losses() -> Tensor:
        terms = criterion(scores, bins, inputs["targets"])
        return torch.stack([terms[name] for name in TERMS])

    return losses


def their_losses(inputs: Inputs, options: argparse.Namespace) -> Callable[[], Tensor]:
    criterion = v8DetectionLoss(Model(options.classes))
    features = [torch.empty(options.batch, 0, options.side // s, options.side // s) for s in STRIDES]
    scores, bins = inputs["leaves"]
    return lambda: criterion({"boxes": bins, "scores": scores, "feats": features}, inputs["batch"])[0]


INPUTS = {"detloss": our_inputs, "ultralytics": their_inputs}
LOSSES = {"detloss": our_losses, "ultralytics": their_losses}


class Step:
    """Forward and backward of one criterion on one batch; the gradients of the last call are dropped first."""

    def __init__(self, name: str, options: argparse.Namespace, inputs: Inputs | None = None) -> None:
        torch.manual_seed(0)
        inputs = INPUTS[name](options) if inputs is None else inputs
        self.leaves = [x.requires_grad_() for x in inputs["leaves"]]
        self.losses = LOSSES[name](inputs, options)

    def __call__(self) -> Tensor:
        for leaf in self.leaves:
            leaf.grad = None
        losses = self.losses()
        losses.sum().backward()
        return losses.detach()


def check(steps: dict[str, Step]) -> None:
    """Raise unless both give the same losses and gradients.

    In corners counted from the edge of the image, as theirs are, float32 leaves 1.3e-5 of the largest gradient at 640 pixels.
    """
    losses = {name: step() for name, step in steps.items()}
    torch.testing.assert_close(losses["detloss"], losses["ultralytics"], rtol=1e-5, atol=0)
    ours, theirs = ([leaf.grad for leaf in step.leaves] for step in steps.values())
    joined = [torch.cat([g.flatten(2) for g in ours[i : i + len(STRIDES)]], 2) for i in (0, len(STRIDES))]
    for got, want in zip(joined, theirs, strict=True):
        error = float((got - want).abs().max() / want.abs().max())
        if error > 5e-5:
            raise SystemExit(f"gradients differ by {error:.1e} of the largest one")


def megabytes(field: str) -> float:
    """Resident memory of this process: ``VmRSS`` now, ``VmHWM`` at most so far (``ru_maxrss`` may be that of the parent)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure_peak(name: str, options: argparse.Namespace) -> float:
    """Megabytes that one step takes above what is resident before it; to be called in a process of its own."""
    Step(name, argparse.Namespace(**{**vars(options), "side": 64, "batch": 1, "objects": 2}))()  # libraries, thread pools
    step = Step(name, options, torch.load(options.inputs))
    before = megabytes("VmRSS")
    step()
    return megabytes("VmHWM") - before


def peak_of(name: str, options: argparse.Namespace) -> float:
    """:func:`measure_peak` in a new process, which reads its inputs: to make them would take more memory than a step."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.pt"
        torch.save(INPUTS[name](options), file)
        command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name, "--inputs", str(file)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:7.1f} [{low:.1f}–{high:.1f}]"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"batch": 8, "side": 640, "classes": 80, "objects": 50, "rounds": 15, "threads": 2}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--peak-of", choices=tuple(LOSSES), help=argparse.SUPPRESS)
    parser.add_argument("--inputs", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Compare the numbers, then time and memory."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(measure_peak(options.peak_of, options))
        return
    steps = {name: Step(name, options) for name in LOSSES}
    check(steps)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    times = {name: values[2:] for name, values in times.items()}
    peaks = {name: peak_of(name, options) for name in steps}
    for name in steps:
        print(f"{name:>12}: {quartiles(times[name])} ms, peak {peaks[name]:.0f} MB")
    ratios = [theirs / ours for ours, theirs in zip(times["detloss"], times["ultralytics"], strict=True)]
    memory = peaks["ultralytics"] / peaks["detloss"]
    print(f"{'ratio':>12}: {quartiles(ratios)} in time, {memory:.1f} in memory")
    print(f"torch {torch.__version__}, ultralytics {ultralytics_version}, {options.threads} threads")


if __name__ == "__main__":
    main()
