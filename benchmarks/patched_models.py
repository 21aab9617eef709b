"""A training step of real detectors before and after `detloss.patch`: time, the share of the losses, and peak memory.

    python benchmarks/patched_models.py [--quick] [--only retinanet yolov8n] [--rounds 7] [--threads 2] [--json FILE]

A step is forward, loss and backward of the same model with the same weights, batch and random numbers, with and without the
patch in turn. First the losses of both are compared: what differs by more than 1e-4 is not timed. "Losses" is forward and
backward of loss and assignment alone, on detached copies of what the model gave them. Medians with quartiles are shown, the
ratios being those of the same round. Peak memory is the high-water mark of a fresh process during its first whole step, and how
far that is above its level before, the median of three (Linux). A framework that is not installed, or has no patch, is left out.

`--json` keeps the rows of other cases that the file has, so that a long run can be made in parts. `--record` writes the file
that is in the repository, and the table of `docs/migration.md` from it.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from measure import MIB
from memory import resident, rise
from patched_cases import CASES, Training
from patched_page import RESULTS, write
from torch import Tensor

import detloss
from detloss import kernels
from detloss.compat.patches import FRAMEWORKS

SIDES = ("before", "after")
TOLERANCE = 1e-4  # of the losses, relative
REPLAYS = 3  # of the losses per round, of which the median counts
Calls = list[tuple[Any, str, Any, Any]]
Row = dict[str, Any]


def made(name: str, quick: bool) -> Training:
    """The model and batch of a case, the same in every process."""
    torch.manual_seed(0)
    case = CASES[name]
    return case.build(case.quick if quick else case.size)


def patched(name: str, side: str) -> Any:
    """Context in which the framework of a case is patched, or is not."""
    return detloss.patch(CASES[name].framework) if side == "after" else nullcontext()


def total_of(losses: dict[str, Tensor]) -> Tensor:
    """What is differentiated."""
    return losses["total"] if "total" in losses else torch.stack(list(losses.values())).sum()


def step(training: Training) -> float:
    """Seconds of forward, loss and backward."""
    training.model.zero_grad()
    torch.manual_seed(1)
    start = time.perf_counter()
    total_of(training.losses()).backward()
    return time.perf_counter() - start


def check_same(name: str, training: Training) -> None:
    """Raise unless all losses agree; a first step of both sides on the way."""
    found = {}
    for side in SIDES:
        with patched(name, side):
            torch.manual_seed(1)
            found[side] = {key: float(value.detach()) for key, value in training.losses().items()}
    before, after = found.values()
    if set(before) != set(after):
        raise SystemExit(f"{name}: losses {sorted(before)} before and {sorted(after)} after")
    apart = [f"{k} {v} and {after[k]}" for k, v in before.items() if not abs(after[k] - v) <= TOLERANCE * abs(v) + 1e-7]
    if apart:
        raise SystemExit(f"{name}: the patch gives other losses: {', '.join(apart)}")


@contextmanager
def recorded(training: Training) -> Iterator[Calls]:
    """The calls of the functions that compute the losses, as they come."""
    calls: Calls = []

    def recording(owner: Any, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append((owner, name, arguments, named))
            return function(*arguments, **named)

        return call

    kept = [(owner, name, get(owner, name)) for owner, name in training.entries]
    for owner, name, function in kept:
        put(owner, name, recording(owner, name, function))
    try:
        yield calls
    finally:
        for owner, name, function in kept:
            put(owner, name, function)


def get(owner: Any, name: str) -> Any:
    """The function of a module, class or dict."""
    return owner[name] if isinstance(owner, dict) else vars(owner)[name]


def put(owner: Any, name: str, function: Any) -> None:
    """Put a function there."""
    if isinstance(owner, dict):
        owner[name] = function
    else:
        setattr(owner, name, function)


def leaves(value: Any) -> Any:
    """The same with every tensor that has a gradient detached, and then a leaf of its own; models stay what they are."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: leaves(item) for key, item in value.items()}
    return type(value)(map(leaves, value)) if type(value) in (list, tuple) else value


def differentiable(value: Any) -> Iterator[Tensor]:
    """All tensors with a gradient in a result."""
    if isinstance(value, Tensor):
        yield from [value] if value.requires_grad else []
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from differentiable(item)


def losses_alone(calls: Calls) -> float:
    """Seconds of forward and backward of the recorded calls, by whatever function is in its place now."""
    given = [(owner, name, leaves(arguments), leaves(named)) for owner, name, arguments, named in calls]
    torch.manual_seed(1)
    start = time.perf_counter()
    for owner, name, arguments, named in given:
        terms = list(differentiable(get(owner, name)(*arguments, **named)))
        if terms:
            torch.stack([term.sum() for term in terms]).sum().backward()
    return time.perf_counter() - start


def timed(name: str, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of ``step`` and ``losses`` in every round by side."""
    training = made(name, options.quick)
    check_same(name, training)
    with recorded(training) as calls:
        training.losses()
    found: dict[str, dict[str, list[float]]] = {what: {side: [] for side in SIDES} for what in ("step", "losses")}
    for number in range(options.rounds + 1):
        for side in SIDES if number % 2 else SIDES[::-1]:
            with patched(name, side):
                whole = step(training)
                alone = statistics.median(losses_alone(calls) for _ in range(REPLAYS))
            if number:  # the first is for warming up
                found["step"][side].append(1e3 * whole)
                found["losses"][side].append(1e3 * alone)
    return found


def peak(name: str, side: str, quick: bool, threads: int) -> tuple[int, int]:
    """Bytes: rise during the first whole step of this process and high-water mark; after a small step, which loads libraries."""
    torch.set_num_threads(threads)
    with patched(name, side):
        step(made(name, quick=True))
        gc.collect()
        training = made(name, quick)
        return rise(lambda: step(training)), resident("VmHWM")


def in_fresh_process(work: Callable[..., Any], *arguments: object) -> Any:
    """Result of a call in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def measured(name: str, options: argparse.Namespace) -> Row:
    """All figures of a case."""
    case, times = CASES[name], timed(name, options)
    size = case.quick if options.quick else case.size
    row: Row = {
        "case": name, "images": size.images, "side": size.side, "rounds": options.rounds,
        "framework": f"{case.framework} {importlib.metadata.version(case.framework)}",
    }  # fmt: skip
    for what, sides in times.items():
        row[f"{what}_ms"] = {side: three(values, 1) for side, values in sides.items()}
        row[f"{what}_ratio"] = three([a / b for a, b in zip(sides["before"], sides["after"], strict=True)], 3)
    shares = {
        side: [100 * part / whole for part, whole in zip(times["losses"][side], times["step"][side], strict=True)]
        for side in SIDES
    }
    row["share_percent"] = {side: three(values, 2) for side, values in shares.items()}
    if not options.no_memory:
        for side in SIDES:
            found = [in_fresh_process(peak, name, side, options.quick, options.threads) for _ in range(options.processes)]
            for what, values in zip(("rise_mib", "peak_mib"), zip(*found, strict=True), strict=True):
                row.setdefault(what, {})[side] = round(statistics.median(values) / MIB)
    return row


def three(values: list[float], digits: int) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [round(value, digits) for value in statistics.quantiles(values, n=4)]


def show(row: Row) -> None:
    """One case as lines of a table."""
    print(f"{row['case']}, {row['images']} images of {row['side']} pixels ({row['framework']})")
    lines = [("step", "step_ms", " ms"), ("losses", "losses_ms", " ms"), ("share", "share_percent", " %")]
    for what, key, unit in lines:
        before, after = (spread(row[key][side], unit) for side in SIDES)
        ratio = row.get(f"{what}_ratio")
        print(f"  {what:7s} {before:32s} {after:32s} {spread(ratio, ' times as fast') if ratio else ''}".rstrip())
    for what, key in (("rise", "rise_mib"), ("peak", "peak_mib")) if "rise_mib" in row else ():
        print(f"  {what:7s} {str(row[key]['before']) + ' MiB':32s} {row[key]['after']} MiB")


def spread(quartiles: list[float], unit: str) -> str:
    """Median with quartiles."""
    low, middle, high = quartiles
    return f"{middle:g}{unit} ({low:g} to {high:g})"


def chosen(only: list[str]) -> Iterator[str]:
    """Names of the cases that were asked for and can run."""
    for name, case in CASES.items():
        if only and not any(part.lower() in name.lower() for part in only):
            continue
        if case.framework not in FRAMEWORKS:
            print(f"{name}: left out, there is no patch of {case.framework}")
        elif not importlib.util.find_spec(case.framework):
            print(f"{name}: left out, {case.framework} is not installed")
        else:
            yield name


def save(path: Path, rows: list[Row], options: argparse.Namespace) -> Row:
    """Write the rows, and keep those of other cases that the file has; what the file holds now."""
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    by_case = {row["case"]: row for row in [*kept, *rows]}
    found = {
        "date": datetime.date.today().isoformat(), "machine": platform.machine(), "threads": options.threads,
        "torch": torch.__version__,
        "detloss": detloss.__version__, "kernels": str(kernels.backend()),
        "rows": [by_case[name] for name in CASES if name in by_case],
    }  # fmt: skip
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches, to see that it works")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of cases")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=3, help="in which memory is measured, per side")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", action="store_true", help="into the repository: the file of results, the page about moving")
    options = parser.parse_args()
    if options.record and (options.quick or options.no_memory):
        parser.error("what is recorded is the whole benchmark, not --quick or --no-memory")
    torch.set_num_threads(options.threads)
    print(f"detloss {detloss.__version__}, torch {torch.__version__}, {options.threads} threads; {kernels.backend()}")
    print("before, after the patch: medians (quartiles)", flush=True)
    rows = []
    for name in chosen(options.only):
        rows.append(measured(name, options))
        show(rows[-1])
        if options.json:
            save(options.json, rows, options)
        if options.record:
            write(save(RESULTS, rows, options))


if __name__ == "__main__":
    main()
