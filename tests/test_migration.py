"""The page about moving from other packages: its figures are those of the recorded benchmark, and what it promises exists."""

from __future__ import annotations

import importlib
import json
import re
import sys
from types import ModuleType
from typing import Any

from repository import ROOT

import detloss
from detloss.compat.patches import FRAMEWORKS


def load(name: str) -> ModuleType:
    """A module beside the benchmarks."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


page = load("patched_page")
TEXT: str = page.PAGE.read_text(encoding="utf-8")


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    return found


def test_the_table_is_that_of_the_recorded_figures() -> None:
    assert page.measured(TEXT) == page.table(recorded()), "run: python benchmarks/patched_models.py --record"


def test_a_row_by_hand() -> None:
    row = {
        "case": "some model", "images": 2, "side": 64, "step_ms": {"before": [9, 100, 110], "after": [8, 80, 90]},
        "step_ratio": [1.1, 1.25, 1.3], "losses_ms": {"before": [9, 30, 31], "after": [4, 10, 11]}, "losses_ratio": [2, 3, 4],
        "share_percent": {"before": [29, 30, 31], "after": [12, 12.5, 13]}, "peak_mib": {"before": 700, "after": 500},
    }  # fmt: skip
    expected = "| some model | 2 × 64 px | 100 → 80 ms, 1.25× | 30 → 10 ms, 3.00× | 30.0 → 12.5 % | 700 → 500 MiB |\n"
    assert page.line(row) == expected


def test_recorded_models_have_a_case_of_that_size() -> None:
    cases = load("patched_cases").CASES
    for row in recorded()["rows"]:
        size = cases[row["case"]].size
        assert (row["images"], row["side"]) == (size.images, size.side)


def test_every_peer_has_a_section_and_every_patch_exists() -> None:
    sections = set(re.findall(r"^## (.+)$", TEXT, re.MULTILINE))
    peers = {"torchvision", "ultralytics", "transformers", "mmdetection and visdet", "autotimm", "fvcore and detectron2"}
    assert peers | {"kornia", "effdet"} <= sections
    assert {name for name in re.findall(r'detloss\.patch\("(\w+)"\)', TEXT)} <= set(FRAMEWORKS)
    for name, preset in re.findall(r'`(\w+)\.preset\("(\w+)"', TEXT):
        assert preset in detloss.CRITERIA.get(name).PRESETS
