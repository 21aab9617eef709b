"""The rows of all families."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from criteria_cases import FCOS, MATCHED, Case

FAMILIES = ("rcnn", "detr", "centernet", "yolo", "retinanet", "atss")
CASES: list[Case] = [*FCOS, *MATCHED]
for family in FAMILIES:
    if find_spec(f"criteria_cases_{family}"):
        CASES += import_module(f"criteria_cases_{family}").CASES
