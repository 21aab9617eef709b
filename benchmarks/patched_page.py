"""The table of gains in `docs/migration.md`, from the figures of `patched_models.py --record`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "patched-models.json"
PAGE = ROOT / "docs" / "migration.md"
FIRST, LAST = "<!-- measured: python benchmarks/patched_models.py --record -->\n", "<!-- end of measured -->\n"
HEAD = (
    "| model | batch | step | loss and assignment | share of the step | peak of a step |\n",
    "|---|---|---|---|---|---|\n",
)


def table(found: dict[str, Any]) -> str:
    """Figures as a table, with the machine they are from."""
    rows = "".join(line(row) for row in found["rows"])
    frameworks = ", ".join(sorted({row["framework"] for row in found["rows"]}))
    rounds = [row["rounds"] for row in found["rows"]]
    spread = " to ".join(map(str, sorted({min(rounds), max(rounds)})))
    return (
        f"{''.join(HEAD)}{rows}\nMeasured {found['date']} on {found['threads']} cores of a {found['machine']} machine with "
        f"torch {found['torch']}, {frameworks}; medians of {spread} rounds, the ratios being those of the same "
        "round.\n"
    )


def line(row: dict[str, Any]) -> str:
    """One model: before → after."""
    cells = [row["case"], f"{row['images']} × {row['side']} px"]
    for what in ("step", "losses"):
        before, after = (row[f"{what}_ms"][side][1] for side in ("before", "after"))
        cells.append(f"{before:.0f} → {after:.0f} ms, {row[f'{what}_ratio'][1]:.2f}×")
    before, after = (row["share_percent"][side][1] for side in ("before", "after"))
    cells.append(f"{before:.1f} → {after:.1f} %")
    peak = row.get("peak_mib")
    cells.append(f"{peak['before']} → {peak['after']} MiB" if peak else "")
    return f"| {' | '.join(cells)} |\n"


def measured(page: str) -> str:
    """What a page has between the two marks."""
    return page.split(FIRST)[1].split(LAST)[0]


def write(found: dict[str, Any]) -> None:
    """Put the figures into the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(FIRST + measured(page) + LAST, FIRST + table(found) + LAST), encoding="utf-8")
