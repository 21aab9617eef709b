"""Every loss and assigner against every installed peer that has it: results as JSON, with a plot.

    python benchmarks/run.py [--full] [--only focal ATSS] [--out DIR] [--publish] [--device cuda]

The quick sizes take minutes, ``--full`` has the documented ones. Results go to ``build/benchmarks/<date>/``: ``results.json``
with machine, versions and settings, and ``speed.svg``. ``--publish`` also makes them the committed ones: ``benchmarks/results/``,
``docs/images/``, ``docs/benchmarks.md`` and the lines of README.md. ``--device cuda`` measures the losses on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import command
import machine
import memory
import torch

from detloss import functional

__all__ = ["ROOT", "main", "publish", "unrivalled", "write"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def unrivalled(rows: list[dict[str, Any]]) -> list[str]:
    """The losses that no installed peer has, as far as the rows go."""
    with_peer = {row["loss"] for row in rows if row["has_peer"]}
    return sorted(name for name in functional.__all__ if name.endswith("_loss") and name not in with_peer)


def on_cpu(given: argparse.Namespace) -> dict[str, Any]:
    """Measure both suites on the CPU."""
    cases = command.chosen(given.suites, given.size, given.only)
    if not given.no_memory:
        memory.start()
    torch.set_num_threads(given.threads)
    copied = machine.copy_bandwidth(3 if given.size == "tiny" else 15)
    how = command.settings(given.size, given.rounds, weigh=not given.no_memory)
    rows = command.measured(cases, how)
    result: dict[str, Any] = {"copy": copied, "rows": rows}
    if "losses" in given.suites and not given.only:
        result["no_peer"] = unrivalled(rows)
    if "assigners" in given.suites and not given.only and given.size != "tiny":
        from assigners import crowds

        result["crowds"] = crowds(given.size != "full", given.threads)
    return result


def write(result: dict[str, Any], folder: Path) -> Path:
    """Put ``results.json`` and ``speed.svg`` into a folder; the path of the first."""
    from plot import draw

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if any("ratio" in row for row in result["rows"]):
        draw(result, folder / "speed.svg")
    return path


def publish(result: dict[str, Any]) -> None:
    """Make a result the committed one, with the plot and the texts that are written from it."""
    sys.path.append(str(ROOT / "docs"))
    import measurements
    from plot import draw

    RESULTS.mkdir(exist_ok=True)
    for old in RESULTS.glob(f"*-{result['device']}.json"):
        old.unlink()
    path = RESULTS / f"{result['date']}-{result['device']}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    draw(result, images / "speed.svg", measurements.HEADLINES)
    draw(result, images / "speed-all.svg")
    measurements.main()
    print(f"published {path.relative_to(ROOT)}, docs/images/, docs/benchmarks.md and the lines of README.md")


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--full", action="store_const", dest="size", const="full", default="quick", help="the documented sizes")
    made.add_argument("--tiny", action="store_const", dest="size", const="tiny", help="to see that everything runs")
    made.add_argument("--suites", nargs="+", choices=command.SUITES, default=list(command.SUITES))
    made.add_argument("--only", nargs="*", default=[], help="beginnings of the names of cases")
    made.add_argument("--rounds", type=int, help="instead of as many as fit into the time of a case")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--no-memory", action="store_true", help="do not weigh, which takes a process for every implementation")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--out", type=Path, help="folder for the results instead of build/benchmarks/<date>")
    made.add_argument("--publish", action="store_true", help="write the committed results and what is made of them")
    return made


def main(arguments: list[str] | None = None) -> Path:
    """Measure, write, and say where; the path of the JSON file."""
    given = parser().parse_args(arguments)
    if given.publish and (given.only or given.suites != list(command.SUITES) or given.device != "cpu"):
        raise SystemExit("--publish takes a whole run on the CPU: no --only, --suites or --device")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this PyTorch finds no CUDA device (torch.cuda.is_available() is False)")
    start = time.perf_counter()
    if given.device == "cuda":
        from on_gpu import on_cuda as measure_on
    else:
        measure_on = on_cpu
    found = measure_on(given)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    head = {"format": 1, "date": date, "device": given.device, "size": given.size}
    result = {**head, "seconds": round(time.perf_counter() - start), **machine.description(), **found}
    suffix = "" if given.device == "cpu" else "-cuda"
    path = write(result, given.out or ROOT / "build" / "benchmarks" / f"{date}{suffix}")
    print(f"{len(result['rows'])} cases in {result['seconds']} s: {path}")
    if result.get("errors"):
        raise SystemExit(f"{len(result['errors'])} cases failed: {'; '.join(result['errors'])}")
    if given.publish:
        publish(result)
    return path


if __name__ == "__main__":
    main()
