"""The picture of a result: how many times faster and smaller than the fastest peer, on a card that suits light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw"]

INK, SOFT, GRID, CARD = "#1f2933", "#52606d", "#d9e2ec", "#ffffff"
PEER, FORMULA, SLOWER = "#2f6fb0", "#9fb8d0", "#c8553d"
ERROR = {"ecolor": INK, "elinewidth": 0.8, "capsize": 1.5}
ROW = 0.21  # inches
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def _colour(row: dict[str, Any], value: float) -> str:
    if value < 1:
        return SLOWER
    return PEER if row["has_peer"] else FORMULA


def _number(value: float) -> str:
    return f"{value:.0f}×" if value >= 10 else f"{value:.1f}×"


def _bars(axes: Any, rows: list[dict[str, Any]], key: str) -> None:
    """A bar from 1 for every row that has the figure, or its quartiles."""
    for place, row in enumerate(rows):
        if key in row:
            found = row[key]
            low, middle, high = found if isinstance(found, list) else [found] * 3
            error = {"xerr": [[middle - low], [high - middle]], "error_kw": ERROR} if high > low else {}
            axes.barh(place, middle - 1, left=1, height=0.68, color=_colour(row, middle), **error)
            axes.text(max(high, 1) * 1.08, place, _number(middle), va="center", fontsize=7, color=INK)


def _style(axes: Any, title: str, largest: float) -> None:
    axes.set_xscale("log")
    low, high = min(0.5, axes.get_xlim()[0]), largest * 2.2
    axes.set_xticks([tick for tick in TICKS if low <= tick <= high], [f"{tick:g}×" for tick in TICKS if low <= tick <= high])
    axes.set_xlim(low, high)
    axes.axvline(1, color=SOFT, linewidth=0.9)
    axes.set_title(title, loc="left", fontsize=9, color=INK, pad=8)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=7.5, colors=SOFT)
    axes.minorticks_off()
    for side in axes.spines.values():
        side.set_visible(False)


def draw(result: dict[str, Any], path: Path, only: tuple[str, ...] = ()) -> None:
    """Write the picture of the rows that have something to compare with, all or those of ``only``, in the suffix's format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    rows = [row for row in result["rows"] if "ratio" in row and (not only or row["case"] in only)]
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "detloss", "font.family": "sans-serif"}):
        figure, (time, memory) = pyplot.subplots(
            1, 2, figsize=(9.5, 1.5 + ROW * len(rows)), width_ratios=(3, 2), sharey=True, facecolor=CARD
        )
        _bars(time, rows, "ratio")
        _bars(memory, rows, "memory_ratio")
        _style(time, "times as fast as the fastest peer (named; quartiles of the rounds)", max(r["ratio"][2] for r in rows))
        _style(memory, "times less peak memory", max(row.get("memory_ratio", 1.0) for row in rows))
        time.set_yticks(range(len(rows)), [f"{row['case']}  ·  {row['against']}" for row in rows])
        time.set_ylim(len(rows) - 0.4, -0.6)
        time.tick_params(axis="y", labelcolor=INK)
        kinds = {PEER: "a peer has it", FORMULA: "no peer: against a formula", SLOWER: "slower, or more memory"}
        figure.legend(handles=[Patch(color=c, label=text) for c, text in kinds.items()], loc="lower left", ncols=3,
                      fontsize=7.5, frameon=False, labelcolor=SOFT)  # fmt: skip
        machine, settings = result["machine"], result["settings"]
        where = (
            f"{machine['processor']}, {settings['threads']} threads · PyTorch {result['versions']['torch']} · {result['date']}"
        )
        figure.text(0.99, 0.008, where, ha="right", va="bottom", fontsize=7, color=SOFT)
        figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
        pyplot.close(figure)
