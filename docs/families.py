"""The pages of criteria and assigners, made from their registries, docstrings, terms and presets."""

from __future__ import annotations

import inspect
from typing import Any

from docstrings import markdown, option_meanings

import detloss
from detloss.criteria.base import Criterion
from detloss.registry import Entry, options

__all__ = ["assigners_page", "criteria_page"]

INTRODUCTION = """Every criterion is called with predictions and targets and returns a [`LossDict`](criteria.md#what-comes-back).
All take `weights` by name of the term, `normalizer` (`"sync"`, `"local"`, `"ema"`), `Criterion.preset(name)`, `explain`,
`count` and `accumulate`; [Criteria](criteria.md) shows them at work.
"""
ASSIGNERS = """An assigner decides which location, anchor, proposal or query is responsible for which object:
`assignment = assigner(priors, targets, scores=None, boxes=None)` gives, for the whole batch, `gt_index [B, P]` (−1 for
negatives), `ignore [B, P]` and `quality [B, P]`. All work without gradient, batched over images, within `memory_budget` bytes
and with the same result for every size of chunks; predictions that are not finite never match; ignore boxes and crowds count
neither way. A criterion takes another assigner as `assigner=` (object, configuration or name). On the CPU max-IoU, ATSS and
task alignment run [native kernels](kernels.md#assigners) with the same results.
"""


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _options(entry: Entry) -> list[str]:
    meanings = option_meanings(entry.cls)
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for name, default in options(entry.cls).items():
        if name not in meanings:
            raise KeyError(f"{entry.name}: option {name!r} is not described in its docstring")
        meaning = meanings[name].replace("|", "\\|")
        rows.append(f"| `{name}` | {_default(default)} | {meaning} |")
    return rows


def _first_sentence(cls: type) -> str:
    return markdown(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0])


def _criterion(entry: Entry, formula: Any, paper: Any) -> list[str]:
    required = [name for name, value in options(entry.cls).items() if value is inspect.Parameter.empty]
    criterion: Criterion = entry.cls(**dict.fromkeys(required, 3))
    lines = [
        f"## {entry.name} {{ #{entry.name} }}\n",
        f'<p class="formula">{formula(entry.formula)}</p>\n',
        f"{_first_sentence(entry.cls)}\n",
        "| term | default loss | weight | over | divided by |",
        "|---|---|---|---|---|",
    ]
    for term in criterion.TERMS:
        loss = getattr(criterion, term.name, None)
        own = getattr(loss, "loss_weight", 1.0)
        weight = criterion.weights[term.name] * own
        shown = type(loss).__name__ if loss is not None else "not used"
        lines.append(f"| `{term.name}` | {shown} | {weight:g} | {term.over} | {term.normalizer} |")
    presets = ", ".join(f'`"{name}"`' for name in entry.cls.PRESETS) or "none"
    lines += [
        "",
        f"Presets: {presets}. Paper: {paper(entry.paper) or 'none'}. "
        f"Reference: [`detloss.{entry.name}`][detloss.{entry.name}].\n",
        *_options(entry),
        "",
    ]
    return lines


def criteria_page(note: str, formula: Any, paper: Any) -> str:
    """All criteria: terms, presets and options."""
    entries = [detloss.CRITERIA.entry(name) for name in detloss.CRITERIA]
    listed = ["| criterion | terms | presets |", "|---|---|---|"]
    for entry in entries:
        terms = ", ".join(f"`{term.name}`" for term in entry.cls.TERMS)
        listed.append(f"| [{entry.name}](#{entry.name}) | {terms} | {', '.join(entry.cls.PRESETS) or 'none'} |")
    sections = [line for entry in entries for line in _criterion(entry, formula, paper)]
    return "\n".join([note, "# Detector families\n", INTRODUCTION, *listed, "", *sections])


def assigners_page(note: str, formula: Any, paper: Any) -> str:
    """All assigners: rule and options."""
    lines = [note, "# Assigners\n", ASSIGNERS]
    for name in detloss.ASSIGNERS:
        entry = detloss.ASSIGNERS.entry(name)
        lines += [
            f"## {name} {{ #{name} }}\n",
            f'<p class="formula">{formula(entry.formula)}</p>\n',
            f"{_first_sentence(entry.cls)}\n",
            f"Paper: {paper(entry.paper) or 'none'}. Reference: [`detloss.{name}`][detloss.{name}].\n",
            *_options(entry),
            "",
        ]
    return "\n".join(lines)
