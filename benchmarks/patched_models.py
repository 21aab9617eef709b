"""Training steps of real models before and after ``detloss.patch``: time, time of loss and assignment, peak memory.

    python benchmarks/patched_models.py [CASE ...] [--rounds 5] [--threads 2] [--kinds step loss] [--no-memory] [--cpu-time]

Cases: fcos and retinanet (torchvision, ResNet-50 FPN, 91 classes, batch 4, 512 px), yolov8n (ultralytics, 80 classes, batch
16, 320 px), detr (transformers, ResNet-50, 91 classes, batch 2, 320 px). Models have random weights, images are random with
7 objects each. "step" is forward, backward and SGD; "loss" is forward and backward of loss and assignment alone, on the detached
outputs of the model. Rounds without and with the patch take turns in one process; medians are printed, and ratios are those
of each round. With --cpu-time, seconds of the processor are counted, for machines that others use too. Peak memory is that of one step, or of the loss alone, in a process of its own, above what was resident before
it (Linux only).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import detloss

OBJECTS = 7
KINDS = ("step", "loss")


@dataclass
class Case:
    """A model and a batch: ``losses`` of the whole model, and of its loss on ``outputs`` that were kept."""

    framework: str
    model: nn.Module
    losses: Callable[[], Tensor]
    loss_only: Callable[[], Tensor]

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-5)

    def step(self) -> None:
        """Forward, backward and update."""
        self.optimizer.zero_grad()
        self.losses().backward()
        self.optimizer.step()

    def loss(self) -> None:
        """Forward and backward of the loss alone."""
        self.loss_only().backward()


def boxes(side: int, relative: bool = False) -> Tensor:
    """Corners of the objects of an image in pixels, or (cx, cy, w, h) relative to it."""
    size = 16 + torch.rand(OBJECTS, 2) ** 2 * side / 2
    corner = torch.rand(OBJECTS, 2) * (side - size)
    return torch.cat((corner + size / 2, size), 1) / side if relative else torch.cat((corner, corner + size), 1)


def leaf(x: Any) -> Any:
    """Outputs of a model as leaves with a gradient of their own, whatever they are kept in."""
    if isinstance(x, Tensor):
        return x.detach().requires_grad_() if x.is_floating_point() else x
    if isinstance(x, dict):
        return {key: leaf(value) for key, value in x.items()}
    return type(x)(leaf(value) for value in x) if isinstance(x, (list, tuple)) else x


def torchvision_case(name: str, side: int = 512, batch: int = 4) -> Case:
    """FCOS or RetinaNet."""
    from torchvision.models import detection

    model = getattr(detection, f"{name}_resnet50_fpn")(
        weights=None, weights_backbone=None, num_classes=91, min_size=side, max_size=side
    ).train()
    images = [torch.rand(3, side, side) for _ in range(batch)]
    targets = [{"boxes": boxes(side), "labels": torch.randint(1, 91, (OBJECTS,))} for _ in range(batch)]
    kept: dict[str, Any] = {}
    original = type(model).compute_loss

    def keep(self: Any, targets: Any, outputs: Any, *rest: Any) -> Any:
        kept["given"] = (targets, leaf(outputs), *rest)
        return original(self, targets, outputs, *rest)

    type(model).compute_loss = keep
    model(images, targets)
    type(model).compute_loss = original
    return Case(
        "torchvision",
        model,
        lambda: sum(model(images, targets).values()),
        lambda: sum(model.compute_loss(*kept["given"]).values()),
    )


def yolov8_case(side: int = 320, batch: int = 16) -> Case:
    """YOLOv8n."""
    from types import SimpleNamespace

    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", nc=80, verbose=False).train()
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    data = {
        "img": torch.rand(batch, 3, side, side),
        "batch_idx": torch.arange(batch).repeat_interleave(OBJECTS).float(),
        "cls": torch.randint(80, (batch * OBJECTS, 1)).float(),
        "bboxes": torch.cat([boxes(side, relative=True) for _ in range(batch)]),
    }
    outputs = leaf(model(data["img"]))
    return Case(
        "ultralytics",
        model,
        lambda: model.loss(data)[0].sum(),
        lambda: model.loss(data, outputs)[0].sum(),
    )


def detr_case(side: int = 320, batch: int = 2) -> Case:
    """DETR with auxiliary losses."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(out_features=["stage4"])
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, num_labels=91, auxiliary_loss=True
    )
    model = DetrForObjectDetection(config).train()
    images = torch.rand(batch, 3, side, side)
    labels = [{"boxes": boxes(side, True), "class_labels": torch.randint(91, (OBJECTS,))} for _ in range(batch)]
    kept: dict[str, Any] = {}

    def keep(logits: Tensor, labels: Any, device: Any, pred_boxes: Tensor, config: Any, *stacked: Tensor) -> Any:
        kept["given"] = (leaf(logits), labels, device, leaf(pred_boxes), config, *map(leaf, stacked))
        return logits.sum(), {}, None

    model.loss_function = keep
    model(images, labels=labels)
    del model._loss_function
    return Case(
        "transformers",
        model,
        lambda: model(images, labels=labels).loss,
        lambda: model.loss_function(*kept["given"])[0],
    )


CASES: dict[str, Callable[[], Case]] = {
    "fcos": lambda: torchvision_case("fcos"),
    "retinanet": lambda: torchvision_case("retinanet"),
    "yolov8n": yolov8_case,
    "detr": detr_case,
}


def seconds(work: Callable[[], None], clock: Callable[[], float]) -> float:
    """Time of one call."""
    start = clock()
    work()
    return clock() - start


def measure(case: Case, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Times by kind and by side ("before", "after")."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    found: dict[str, dict[str, list[float]]] = {kind: {"before": [], "after": []} for kind in options.kinds}
    for turn in range(options.rounds + 1):
        for side in ("before", "after"):
            with detloss.patch(case.framework) if side == "after" else nullcontext():
                for kind in options.kinds:
                    value = seconds(getattr(case, kind), clock)
                    if turn:
                        found[kind][side].append(value)
    return found


def megabytes(field: str) -> float:
    """Resident memory of this process: ``VmRSS`` now, ``VmHWM`` at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak(name: str, kind: str, patched: bool) -> float:
    """Megabytes that one step takes above what is resident before it; to be called in a process of its own."""
    torch.manual_seed(0)
    case = CASES[name]()
    if kind == "loss":
        case.loss()  # libraries, thread pools
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    before = megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    with detloss.patch(case.framework) if patched else nullcontext():
        getattr(case, kind)()
    return megabytes("VmHWM") - before


def peak_of(name: str, kind: str, patched: bool, threads: int) -> float:
    """:func:`peak` in a new process."""
    command = [sys.executable, __file__, name, "--peak", kind, "--threads", str(threads), *(["--patched"] if patched else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report(name: str, options: argparse.Namespace) -> None:
    """Print times, shares and peaks of a case."""
    torch.manual_seed(0)
    times = measure(CASES[name](), options)
    for kind in options.kinds:
        before, after = (statistics.median(times[kind][side]) for side in ("before", "after"))
        ratio = statistics.median(a / b for a, b in zip(times[kind]["after"], times[kind]["before"], strict=True))
        print(f"{name:>10} {kind}: {1e3 * before:8.1f} ms before, {1e3 * after:8.1f} ms after, ratio {ratio:.2f}")
    if len(options.kinds) == len(KINDS):
        pairs = {side: zip(times["loss"][side], times["step"][side], strict=True) for side in ("before", "after")}
        before, after = (statistics.median(part / whole for part, whole in pairs[side]) for side in ("before", "after"))
        print(f"{name:>10} share of loss and assignment in a step: {before:.1%} before, {after:.1%} after")
    for kind in options.kinds if options.memory else ():
        before, after = (peak_of(name, kind, patched, options.threads) for patched in (False, True))
        print(f"{name:>10} peak memory, {kind}: {before:6.0f} MB before, {after:6.0f} MB after")


def main() -> None:
    """Measure the cases that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--patched", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.cases:
        if options.peak:
            print(peak(name, options.peak, options.patched))
        else:
            report(name, options)
    if not options.peak:
        print(f"torch {torch.__version__}, {options.threads} threads")


if __name__ == "__main__":
    main()
