"""The command lines of losses.py and assigners.py: one suite, printed, and written as JSON where asked."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import machine
import memory
import torch
from measure import Entry, Settings, cpu_seconds, measure, show

__all__ = ["BUDGET", "SUITES", "chosen", "main", "measured", "settings"]

SUITES = ("losses", "assigners")
# Seconds for the rounds of a case, least and most rounds, weighings.
BUDGET = {"tiny": (0.05, (2, 3), 1), "quick": (0.6, (5, 15), 1), "full": (6.0, (5, 25), 1)}


def chosen(suites: list[str], size: str, only: list[str]) -> list[tuple[str, Entry]]:
    """The cases of the suites whose names begin with one of ``only``, upper or lower case; all where there is none.

    Raises:
        SystemExit: a beginning that no case has.
    """
    every = [(suite, entry) for suite in suites for entry in importlib.import_module(suite).entries(size)]
    keys = [entry.key.lower() for _, entry in every]
    unknown = [word for word in only if not any(key.startswith(word.lower()) for key in keys)]
    if unknown:
        raise SystemExit(f"no case begins with {', '.join(unknown)}; there are {', '.join(entry.key for _, entry in every)}")
    beginnings = tuple(word.lower() for word in only)
    return [case for case, key in zip(every, keys, strict=True) if not only or key.startswith(beginnings)]


def settings(size: str, rounds: int | None, weigh: bool = True) -> Settings:
    """How cases are measured on the CPU."""
    budget, bounds, weighings = BUDGET[size]
    threads = torch.get_num_threads()

    def peak(suite: str, key: str, name: str) -> int | None:
        return memory.peak(suite, key, name, size, threads)

    return Settings(rounds, budget, bounds, cpu_seconds, peak if weigh else None, weighings)


def measured(cases: list[tuple[str, Entry]], how: Settings) -> list[dict[str, Any]]:
    """The rows of cases, printed one after the other."""
    rows = []
    for suite, entry in cases:
        torch.manual_seed(0)
        rows.append(measure(suite, entry, how))
        show(rows[-1])
    return rows


def main(suite: str, about: str | None) -> None:
    """Measure one suite."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the names of cases")
    parser.add_argument("--rounds", type=int, help="instead of as many as fit into the time of a case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", "--quick", action="store_true", help="sizes for a quick look")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    memory.start()
    torch.set_num_threads(given.threads)
    size = "quick" if given.small else "full"
    about_here = machine.description()
    print(f"detloss {about_here['versions']['detloss']}, torch {about_here['versions']['torch']}, {given.threads} threads")
    result = {**about_here, "rows": measured(chosen([suite], size, given.only), settings(size, given.rounds))}
    if suite == "assigners" and not given.only:
        result["crowds"] = importlib.import_module(suite).crowds(given.small, given.threads)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
