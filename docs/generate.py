"""Writes the catalogue of losses, docs/losses/*.md, from the registry, the docstrings, losses.yml and peers.yml, and the
lists of docs/api/functional.md and losses.md.

Run it after a loss was added or changed: ``python docs/generate.py``. ``python docs/generate.py --curves DIR`` writes the
plots to a folder, to look at them without building the site; the site draws its own.
"""

from __future__ import annotations

import argparse
import html
import inspect
import re
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from docstrings import functions_of, option_meanings
from families import assigners_page, criteria_page
from measurements import committed
from measurements import page as measurements_page

import detloss
from detloss.registry import Entry, options

__all__ = ["HERE", "example", "formula", "pages", "peers", "stale_files", "words"]

HERE = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/generate.py from the registry, docs/losses.yml and docs/peers.yml. -->\n"
NOTE_FAMILIES = "<!-- Written by docs/generate.py from the registry and the docstrings. -->\n"
CRITERIA_TEXT = """A criterion assigns, counts, computes its terms and returns a [`LossDict`][detloss.types.LossDict].
[Criteria](../criteria.md) shows them at work, [Detector families](../families.md) lists their terms and presets."""
FULL, PART = "●", "◐"


@cache
def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return content


def words(name: str) -> dict[str, Any]:
    """The entry of a loss in losses.yml, completed by that of its kind; ``KeyError`` that says what is missing."""
    entry = _read("losses.yml")["losses"].get(name)
    if entry is None:
        raise KeyError(f"docs/losses.yml: no entry for {name}; add one with its kind and when to use it")
    kind = _read("losses.yml")["kinds"][entry["kind"]]
    return {**kind, **entry}


def peers(name: str) -> dict[str, str]:
    """Project → ``yes`` or what it has of a loss."""
    found: dict[str, str] = _read("peers.yml")["losses"].get(name, {})
    return found


def formula(text: str) -> str:
    """The one-line formula of a registry entry as HTML: ``_x`` and ``^x`` become subscripts and superscripts.

    It works without scripts, fonts or a network, and is written once, in the registry.

    >>> formula("−α_t (1 − p_t)^γ ln p_t")
    '−α<sub>t</sub> (1 − p<sub>t</sub>)<sup>γ</sup> ln p<sub>t</sub>'
    """
    part = r"\(([^()]*)\)|((?:[^\W_²³⁻¹]|[₊₋½])+(?:−\d)?)"
    text = html.escape(text, quote=False)
    text = re.sub(rf"\^(?:{part})", r"<sup>\1\2</sup>", text)
    return re.sub(rf"_(?:{part})", r"<sub>\1\2</sub>", text)


def _in_cell(text: str) -> str:
    """HTML in a cell of a table, where Markdown would read bars and stars."""
    return text.replace("|", "&#124;").replace("*", "&#42;")


def _paper(text: str) -> str:
    """A citation with links for arXiv and DOI."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi:(\S+)", r"[doi:\1](https://doi.org/\1)", text)


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _options(entry: Entry) -> str:
    meanings = {**option_meanings(entry.cls), **words(entry.name).get("options", {})}
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for name, default in options(entry.cls).items():
        if name not in meanings:
            raise KeyError(f"{entry.name}: option {name!r} is described nowhere; add it to the docstring or to docs/losses.yml")
        rows.append(f"| `{name}` | {_default(default)} | {meanings[name]} |")
    return "\n".join(rows)


def _run(statements: list[str], expression: str, scope: dict[str, Any]) -> list[str]:
    for line in statements:
        exec(line, scope)
    return [*(f">>> {line}" for line in statements), f">>> {expression}", repr(eval(expression, scope))]


def example(name: str) -> str:
    """A call with its result, run to get it, as an interactive session."""
    entry = words(name)
    arguments = ", ".join(f"{key}={value!r}" for key, value in entry.get("arguments", {}).items())
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    lines = _run(
        ["import torch, detloss", f"loss = detloss.{name}({arguments})", *entry["setup"]], f"loss({entry['call']})", scope
    )
    return "\n".join([*lines, *_run([], f'loss({entry["call"]}, reduction_override="none").shape', scope)])


def _known_as(name: str) -> str:
    """The projects that have a loss, with what differs."""
    found = peers(name)
    projects = _read("peers.yml")["projects"]
    texts = [f"{projects[key]}{'' if text == 'yes' else f' ({text})'}" for key, text in found.items() if key != "others"]
    return ", ".join([*texts, found["others"]] if "others" in found else texts) or "none of the projects compared here"


def _section(entry: Entry) -> str:
    told = words(entry.name)
    functions = ", ".join(f"[`{name}`][{name}]" for name in functions_of(entry.cls))
    none = told["none"] if "`" in told["none"] or "(" in told["none"] else f"`{told['none']}`"
    rows = {
        "prediction": told["pred"],
        "target": told["target"],
        '`reduction="none"` gives': none,
        "function": functions,
        "paper": _paper(entry.paper) or "none",
        "also in": _known_as(entry.name),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    caption = f" ({told['caption']})" if "caption" in told else ""
    return f"""## {entry.name} {{ #{entry.name} }}

<p class="formula">{formula(entry.formula)}</p>

{told["when"]}

|  |  |
|---|---|
{table}

{_options(entry)}

```pycon
{example(entry.name)}
```

![Value and gradient of {entry.name}](curves/{entry.name}.svg)

*Value and gradient{caption}. Module: [`detloss.{entry.name}`][detloss.{entry.name}].*
"""


def _entries(family: str) -> list[Entry]:
    return [detloss.LOSSES.entry(name) for name in detloss.list_losses(family)]


def _family_page(family: str) -> str:
    about = _read("losses.yml")["families"][family]
    return "\n".join([NOTE, f"# {about['title']}\n", f"{about['text']}\n", *(_section(entry) for entry in _entries(family))])


def _index_page(families: list[str]) -> str:
    about, projects = _read("losses.yml")["families"], _read("peers.yml")["projects"]
    listed = ["| loss | formula | paper |", "|---|---|---|"]
    owned = [f"| loss | {' | '.join(projects.values())} |", f"|---|{':-:|' * len(projects)}"]
    for family in families:
        listed.append(f"| **[{about[family]['title']}]({family}.md)** |  |  |")
        for entry in _entries(family):
            link = f"[{entry.name}]({family}.md#{entry.name})"
            listed.append(f"| {link} | {_in_cell(formula(entry.formula))} | {_paper(entry.paper)} |")
            marks = {"": "", "yes": FULL}
            has = peers(entry.name)
            owned.append(f"| {link} | {' | '.join(marks.get(has.get(key, ''), PART) for key in projects)} |")
    return f"""{NOTE}
# Losses

{sum(len(_entries(family)) for family in families)} losses in {len(families)} families. Every loss is called
`loss(pred, target, weight=None, avg_factor=None, reduction_override=None)`, is built by name
(`detloss.build(dict(type="CIoULoss", loss_weight=2.0))`), and has a function in `detloss.functional`. The rules that all of
them keep are in [Conventions](../conventions.md); which one to take is in [Choosing a loss](../choosing.md).

{chr(10).join(listed)}

## Who else has them

{FULL} the same loss, {PART} a part of it or another form; the section of the loss says which. How the numbers compare is in
[Conformance](../conformance.md).

{chr(10).join(owned)}
"""


def _reference_page(title: str, text: str, objects: dict[str, Any]) -> str:
    """Directives for the reference of ``objects`` by the modules that define them."""
    modules: dict[str, list[str]] = {}
    for name, value in objects.items():
        modules.setdefault(value.__module__, []).append(name)
    blocks = [f"::: {module}\n    options:\n      members: [{', '.join(names)}]\n" for module, names in sorted(modules.items())]
    return "\n".join([NOTE, f"# {title}\n", f"{text}\n", *blocks])


def _settings_page() -> str:
    """Every setting of ``detloss train``, with the defaults of the two recipes where they decide."""
    from detloss.train.config import RECIPES, SETTINGS, TrainConfig

    defaults = {field.name: field.default for field in fields(TrainConfig)}
    rows = ["| setting | default | accepted | what |", "|---|---|---|---|"]
    for name, (kind, meaning) in SETTINGS.items():
        value = defaults[name]
        default = "none" if value is None or value is MISSING else f"`{value}`"
        if name in RECIPES["digits"]:
            default = ", ".join(f"{recipe} `{values[name]}`" for recipe, values in RECIPES.items())
        rows.append(f"| `{name}` | {default} | {kind.accepts} | {meaning} |")
    text = """Names for YAML files and `detloss.train.fit`; options of the command line have hyphens (`--image-size`), and
`weights` and `criterion` are repeated `--weight KEY=VALUE` and `--criterion KEY=VALUE`. `digits` is the embedded data set, `coco`
any folder in the COCO layout. [Training](training.md) shows them at work.
"""
    return "\n".join([NOTE, "# Settings\n", text, *rows]) + "\n"


def pages() -> dict[str, str]:
    """Every page that is written here, by its path in docs/."""
    known = _read("losses.yml")
    unknown = sorted((set(known["losses"]) | set(_read("peers.yml")["losses"])) - set(detloss.LOSSES))
    if unknown:
        raise KeyError(f"docs/losses.yml or docs/peers.yml describe losses that are not registered: {', '.join(unknown)}")
    registered = {detloss.LOSSES.entry(name).family for name in detloss.LOSSES}
    missing = sorted(registered - set(known["families"]))
    if missing:
        raise KeyError(f"docs/losses.yml: no family {', '.join(missing)}; add its title and text")
    families = [family for family in known["families"] if family in registered]
    classes = {name: detloss.LOSSES.get(name) for name in detloss.LOSSES}
    functions = {name: getattr(detloss.functional, name) for name in detloss.functional.__all__}
    return {
        "losses/index.md": _index_page(families),
        **{f"losses/{family}.md": _family_page(family) for family in families},
        "api/functional.md": _reference_page("Functions", "`x_loss(pred, target, *, …)`, one for every loss.", functions),
        "settings.md": _settings_page(),
        "benchmarks.md": measurements_page(committed()),
        "families.md": criteria_page(NOTE_FAMILIES, formula, _paper),
        "assigners.md": assigners_page(NOTE_FAMILIES, formula, _paper),
        "api/losses.md": _reference_page("Loss modules", "Shells over the functions.", {"Loss": detloss.Loss, **classes}),
        "api/criteria.md": _reference_page("Criteria and assigners", CRITERIA_TEXT, _families()),
    }


def _families() -> dict[str, Any]:
    """What criteria and assigners are made of, by public name."""
    from detloss import assigners, criteria

    return {name: getattr(module, name) for module in (criteria, assigners) for name in module.__all__}


def stale_files(current: dict[str, str]) -> list[Path]:
    """Pages of the catalogue that are no longer written."""
    return sorted(set((HERE / "losses").glob("*.md")) - {HERE / name for name in current})


def main() -> None:
    """Write the pages, or with ``--curves`` the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", metavar="DIR", type=Path, help="write the plots there instead of the pages")
    folder: Path | None = parser.parse_args().curves
    if folder is not None:
        from curves import svg

        folder.mkdir(parents=True, exist_ok=True)
        for name in detloss.LOSSES:
            (folder / f"{name}.svg").write_bytes(svg(name, words(name)))
        return
    current = pages()
    for old in stale_files(current):
        old.unlink()
    for name, text in current.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
