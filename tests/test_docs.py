"""The documentation tells the truth: generated pages are those of the registry, every example gives what it says."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from repository import ROOT

import detloss

yaml = pytest.importorskip("yaml", reason="the pages are made from YAML: install the extra 'train' or 'docs'")

DOCS = ROOT / "docs"
ALL = sorted(DOCS.rglob("*.md"))
WITH_SESSIONS = [path for path in ALL if "```pycon" in path.read_text(encoding="utf-8")]
PYCON = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?")


def load(name: str) -> ModuleType:
    """A module beside the pages."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    return importlib.import_module(name)


generate = load("generate")


@cache
def pages() -> dict[str, str]:
    """The generated pages as they should be, by path."""
    made: dict[str, str] = generate.pages()
    return made


class NearlyEqual(doctest.OutputChecker):
    """Numbers may differ in the last of four digits, as they do between versions of PyTorch and kinds of processor."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        numbers = [[float(x) for x in NUMBER.findall(text)] for text in (want, got)]
        texts = [NUMBER.sub("#", text) for text in (want, got)]
        same = len(numbers[0]) == len(numbers[1]) and all(
            abs(a - b) <= 2e-4 * max(1, abs(a)) for a, b in zip(*numbers, strict=True)
        )
        return (same and super().check_output(*texts, optionflags)) or super().check_output(want, got, optionflags)


def failures(text: str, name: str) -> str:
    """What the interactive examples of a page give that they do not say; all of a page run in one scope."""
    code = "\n".join(PYCON.findall(text))
    report: list[str] = []
    runner = doctest.DocTestRunner(NearlyEqual(), verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(doctest.DocTestParser().get_doctest(code, {}, name, name, 0), out=report.append)
    return "".join(report)


def without_results(text: str) -> str:
    """A page with the digits of its results masked: they are compared as numbers, by running the examples."""
    return PYCON.sub(lambda m: NUMBER.sub("#", m[0]), text)


def test_generated_pages_are_up_to_date() -> None:
    stale = []
    for name, text in pages().items():
        path = DOCS / name
        if not path.is_file() or without_results(path.read_text(encoding="utf-8")) != without_results(text):
            stale.append(name)
    stale += [path.name for path in generate.stale_files(pages())]
    assert not stale, f"these pages of docs/ are stale; run: python docs/generate.py ({', '.join(stale)})"


def test_every_loss_has_a_section_with_a_plot() -> None:
    text = "".join(page for name, page in pages().items() if name.startswith("losses/"))
    for name in detloss.LOSSES:
        assert f"{{ #{name} }}" in text and f"](curves/{name}.svg)" in text
    assert len(re.findall(r"\]\(curves/\w+\.svg\)", text)) == len(detloss.LOSSES)


@pytest.mark.parametrize("name", detloss.LOSSES)
def test_shape_of_the_element_wise_loss_is_the_one_told(name: str) -> None:
    told = generate.words(name)
    letters = re.match(r"\[([^\]]*)\]", told["none"])
    assert letters is not None
    shape = [int(told["sizes"].get(letter, letter)) if letter else 0 for letter in letters[1].split(", ")]
    assert generate.example(name).rstrip().endswith(f"torch.Size({shape})")


@pytest.mark.parametrize("path", WITH_SESSIONS, ids=lambda path: path.stem)
def test_interactive_examples(path: Path) -> None:
    assert failures(path.read_text(encoding="utf-8"), path.name) == ""


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        (">>> 0.12344\n0.12346\n", True),
        (">>> 0.1234\n0.1244\n", False),
        (">>> [0.5]\n[0.5, 0.5]\n", False),
        (">>> 'a 0.5'\n'b 0.5'\n", False),
    ],
)
def test_the_check_of_examples_finds(text: str, ok: bool) -> None:
    assert (failures(f"```pycon\n{text}```", "example") == "") is ok


def test_python_examples_compile_and_name_what_exists() -> None:
    blocks = [(path, code) for path in ALL for code in PYTHON.findall(path.read_text(encoding="utf-8"))]
    assert blocks
    for path, code in blocks:
        compile(code, path.name, "exec")
        for module, names in re.findall(r"^from (detloss[\w.]*) import (.+)$", code, re.MULTILINE):
            assert all(hasattr(importlib.import_module(module), name.strip()) for name in names.split(","))


def test_commands_and_their_options_exist() -> None:
    from detloss.train.commands import detloss as group

    for path in ALL:
        lines = "".join(BASH.findall(path.read_text(encoding="utf-8"))).splitlines()
        for command in [line.partition(" #")[0] for line in lines if line.startswith("detloss ")]:
            name, *words = command.split()[1:]
            known = {option for p in group.commands[name].params for option in [*p.opts, *p.secondary_opts]}
            assert {word for word in words if word.startswith("--")} <= known, f"{path.name}: {command}"


@pytest.mark.parametrize(
    "name", ["CIoULoss", "FocalLoss", "EQLv2Loss", "APLoss", "DistributionFocalLoss", "DiceLoss", "ProbIoULoss", "HuberLoss"]
)
def test_plot(name: str) -> None:
    pytest.importorskip("matplotlib")
    torch.set_num_threads(1)
    picture = load("curves").svg(name, generate.words(name))
    assert ElementTree.fromstring(picture).tag.endswith("svg")


def test_every_kind_of_loss_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    curves = load("curves")
    used = {generate.words(name)["kind"] for name in detloss.LOSSES if name not in curves.SPECIAL}
    assert used <= set(curves.KINDS)


def test_formulas_become_html() -> None:
    assert generate.formula("α_t (1 − p_t)^γ < J_k−1^(a + b)") == (
        "α<sub>t</sub> (1 − p<sub>t</sub>)<sup>γ</sup> &lt; J<sub>k−1</sub><sup>a + b</sup>"
    )
    left = [n for n in detloss.LOSSES if re.search(r"[_^]", generate.formula(detloss.LOSSES.entry(n).formula))]
    assert left == []


def test_an_undescribed_loss_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = generate._read("losses.yml")
    monkeypatch.setitem(known, "losses", {k: v for k, v in known["losses"].items() if k != "GIoULoss"})
    with pytest.raises(KeyError, match="no entry for GIoULoss"):
        generate.pages()


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path in ALL:
        for target in re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if not (path.parent / target).is_file():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def test_navigation_names_every_page() -> None:
    listed = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {path.relative_to(DOCS).as_posix() for path in ALL}


def test_sections_that_pages_include_are_there() -> None:
    """The site takes them from files at the root; a heading that was renamed would end its build."""
    asked = re.compile(r"<!-- include ([\w.]+): (.+?) -->")
    wanted = [
        found for page in sorted((ROOT / "docs").rglob("*.md")) for found in asked.findall(page.read_text(encoding="utf-8"))
    ]
    assert wanted
    for name, section in wanted:
        assert len(re.findall(rf"^#+ {re.escape(section)}$", (ROOT / name).read_text(encoding="utf-8"), re.M)) == 1, (
            name,
            section,
        )
