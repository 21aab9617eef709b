"""The page of measurements, docs/benchmarks.md, and the lines of README.md, from the committed result of ``make bench``."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

__all__ = ["NOTE", "committed", "page", "summary", "with_summary"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NOTE = "<!-- Written by docs/measurements.py from benchmarks/results/. -->\n"
START, END = "<!-- measured -->", "<!-- /measured -->"
COMMANDS = {"full": "make bench-full", "quick": "make bench", "tiny": "python benchmarks/run.py --tiny"}
# What the summary shows of each, where a result has it.
HEADLINES = (
    "focal rows", "focal maps", "qfl", "vfl", "bce", "ce", "dfl", "giou 1e3", "giou 1e6", "ciou 1e6", "linear focal",
    "MaxIoU of anchors", "TaskAligned", "Hungarian",
)  # fmt: skip

METHOD = """## How it is measured

`make bench` takes minutes, `make bench-full` the sizes that are documented here; both write `results.json` and the plot to
`build/benchmarks/<date>/` and need no network. `make bench-full PUBLISH=1` also renews this page, the plot and the lines of
README.md. `python benchmarks/losses.py --only giou` and `python benchmarks/assigners.py --only ATSS` measure some.

- **Checked first.** Every implementation gets the same inputs and must give the same loss and the same gradient as detloss, or
  the same assignment; detloss must agree with its own readable formula. One that computes something else is named below with
  what differs, and is not compared with.
- **Time** is forward and backward, or one call of an assigner. All implementations take turns in every round; a ratio is that
  of the same round. Figures are medians, with quartiles in brackets.
- **Memory** is the high-water mark of a process that does nothing else, less what it held before the step: the gradient and all
  temporaries, not the inputs.
- **The floor** of a loss is the time to move the bytes that *any* implementation must move: read the predictions and the
  targets once, write the gradient once. It is the time of a copy of as many bytes into fresh memory, in the same rounds. A
  step that allocates its gradient cannot be much faster; one that takes 30 passes over memory is far away from it. Small inputs
  lie in the caches, and there the calls themselves cost more than the bytes. `share` is the floor divided by the time.
- **Peers get what they like best**: dense targets are made before the clock starts, class indices are detloss's. `plain` and
  `dense` are formulas written for the comparison where no package has the loss or the assigner; `reference` is detloss
  without its kernels.
"""


def committed(device: str = "cpu") -> dict[str, Any]:
    """The committed result.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(RESULTS.glob(f"*-{device}.json"))
    if not found:
        raise FileNotFoundError(f"no result in {RESULTS.name}/ for {device}; run: make bench-full PUBLISH=1")
    content: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    return content


def _number(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(values: list[float], unit: str = "") -> str:
    low, middle, high = map(_number, values)
    return f"{middle}{unit} ({low} – {high})"


def _where(result: dict[str, Any]) -> str:
    """The machine in words."""
    machine, settings, versions = result["machine"], result["settings"], result["versions"]
    return (
        f"{machine['processor']} ({machine['vectors']}, {machine['cores']} cores, {machine['memory_gib']} GiB), "
        f"{settings['threads']} threads, {machine['system']}, Python {versions['python']}, PyTorch {versions['torch']}"
    )


def _table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    cells = ["| " + " | ".join(line) + " |" for line in (header, ("---",) * len(header), *lines)]
    return "\n".join(cells)


def _memory(row: dict[str, Any], name: str) -> str:
    found = row["implementations"][name]
    return f"{_number(found['peak_mib'])} MiB" if "peak_mib" in found else ""


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    """One case of the table."""
    ours = row["implementations"]["detloss"]
    against = row.get("against")
    speed = f"**{_spread(row['ratio'], '×')}**" if against else ""
    rival = f"{against}{'' if row['has_peer'] else ' (no peer)'}" if against else "no peer"
    memory = f"{_memory(row, 'detloss')} / {_memory(row, against)}" if against and "memory_ratio" in row else ""
    share = f"{100 * row['share_of_floor'][1]:.0f} %" if "share_of_floor" in row else ""
    floor = f"{_number(row['floor_ms'][1])} ms" if "floor_ms" in row else ""
    times = f"{_spread(ours['ms'], ' ms')}"
    return f"`{row['case']}`", row["size"], times, rival, speed, memory, floor, share


def _every(row: dict[str, Any]) -> str:
    """All implementations of a case in one line."""
    found = []
    for name, kind in row["implementations"].items():
        remark = f", computes something else: {kind['differs']}" if "differs" in kind else ""
        remark += f", value only: {kind['values_only']}" if "values_only" in kind else ""
        found.append(f"{name} {_number(kind['ms'][1])} ms{remark}")
    found += [f"{name} left out ({reason})" for name, reason in row.get("left_out", {}).items()]
    return f"- `{row['case']}` ({row['loss']}, {row['rounds']} rounds): {'; '.join(found)}"


def page(result: dict[str, Any]) -> str:
    """The text of docs/benchmarks.md."""
    header = ("case", "size", "detloss", "fastest peer", "times as fast", "memory, detloss / peer", "floor", "share")
    lines = [_line(row) for row in result["rows"]]
    peers = ", ".join(f"{n} {v}" for n, v in result["versions"].items() if n not in ("python", "torch", "detloss"))
    copied, settings = result["copy"], result["settings"]
    environment = ", ".join(f"`{n}={v}`" for n, v in settings["environment"].items()) or "none"
    parts = [
        NOTE,
        "# Benchmarks\n",
        f"Every loss and assigner beside every installed package that has it, measured on {result['date']} with "
        f"`{COMMANDS[result['size']]}` on {_where(result)}.\n",
        "![Times as fast and less memory than the fastest peer, by case](images/speed-all.svg)\n",
        _table(header, lines) + "\n",
        METHOD,
        f"A copy of 100 MiB ran at {_spread(copied['warm_gb_s'], ' GB/s')} into memory that was there and at "
        f"{_spread(copied['fresh_gb_s'], ' GB/s')} into fresh memory, read and written bytes together. "
        f"detloss {result['versions']['detloss']} ({settings['kernels']}); {peers}; environment: {environment}.\n",
        "## All implementations\n",
        "\n".join(_every(row) for row in result["rows"]) + "\n",
    ]
    if result.get("no_peer"):
        names = ", ".join(f"`{name}`" for name in result["no_peer"])
        parts += ["## Losses that no installed package has\n", f"{names}.\n"]
    if result.get("crowds"):
        lines = [
            (f"`{c['assigner']}`", f"{c['objects']}, {c['where']}", f"{c['peak_mib']} MiB", f"{c['budget_mib']:.0f} MiB",
             f"{_number(c['ms'])} ms")
            for c in result["crowds"]
        ]  # fmt: skip
        crowded = _table(("assigner", "objects in one image", "peak", "budget", "time"), lines)
        parts += ["## Assigners in a crowd\n", crowded + "\n"]
    return "\n".join(parts)


def summary(result: dict[str, Any]) -> str:
    """The lines of README.md between their marks."""
    rows = {row["case"]: row for row in result["rows"] if "ratio" in row}
    lines = []
    for name in (name for name in HEADLINES if name in rows):
        row = rows[name]
        rival = f"{row['against']}{'' if row['has_peer'] else ' (no peer)'}"
        less = f"{_number(row['memory_ratio'])}×" if "memory_ratio" in row else ""
        lines.append((f"`{row['loss']}`", row["size"], f"{_spread(row['ratio'], '×')}", less, rival))
    table = _table(("loss or assigner", "size", "times as fast", "less memory", "than"), lines)
    picture = "![Times as fast and less memory than the fastest peer, by case](docs/images/speed.svg)"
    words = (
        f"Measured on {result['date']} with `{COMMANDS[result['size']]}` on {_where(result)}; `make bench` repeats it. "
        "All cases, the method and the floor: [docs/benchmarks.md](docs/benchmarks.md)."
    )
    wrapped = textwrap.fill(words, 125, break_on_hyphens=False)
    return f"{START}\n{picture}\n\n{table}\n\n{wrapped}\n{END}"


def with_summary(text: str, result: dict[str, Any]) -> str:
    """README.md with the lines of a result.

    Raises:
        ValueError: the marks are missing.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md: expected the marks {START} and {END} around the measurements")
    return f"{before}{summary(result)}{after}"


def main() -> None:
    """Write the page and the lines of README.md from the committed result."""
    result = committed()
    (ROOT / "docs" / "benchmarks.md").write_text(page(result), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(with_summary(readme.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
