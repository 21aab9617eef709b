"""README.md tells the truth: its examples run, its commands exist, its table of losses is the registry's."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from repository import ROOT

import detloss

README = (ROOT / "README.md").read_text(encoding="utf-8")
NO_RUN = "<!-- no-run"  # on the line above a block that needs a network or a long training, with the reason
MAX_NOT_RUN = 2


class Block(NamedTuple):
    """One fenced block of the README."""

    line: int
    language: str
    code: str
    runs: bool


def blocks(text: str) -> list[Block]:
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        above = text[: match.start()].rstrip().rpartition("\n")[2]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(line, match[1], match[2], not above.startswith(NO_RUN)))
    return found


PYTHON = [block for block in blocks(README) if block.language == "python"]
SHELL = [line for block in blocks(README) if block.language in ("bash", "console", "sh") for line in block.code.splitlines()]
INLINE = re.findall(r"`((?:make|detloss) [^`\n]+)`", README)
COMMANDS = [re.sub(r"^\$ ", "", line).partition(" #")[0].strip() for line in SHELL] + INLINE


@pytest.mark.parametrize("block", [b for b in PYTHON if b.runs], ids=lambda block: f"line-{block.line}")
def test_example_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile("\n" * block.line + block.code, "README.md", "exec")
    exec(code, {"__name__": "readme"})


def test_few_examples_are_left_out() -> None:
    assert len([b for b in PYTHON if b.runs]) >= 4
    assert len([b for b in PYTHON if not b.runs]) <= MAX_NOT_RUN


def test_the_two_set_up_commands_are_named() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if c.startswith("make ")}))
def test_make_target_exists(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in shlex.split(command)[1:] if "=" not in word]
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"{command!r}: no target {target!r}"


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if c.startswith("detloss ")}))
def test_detloss_command_and_its_options_exist(command: str) -> None:
    from detloss.train.commands import detloss as group

    name, *words = shlex.split(command)[1:]
    if name.startswith("-"):
        return
    assert name in group.commands, f"{command!r}: the commands are {sorted(group.commands)}"
    known = {o for p in group.commands[name].params for o in [*p.opts, *p.secondary_opts]} | {"--help"}
    unknown = [w for w in words if w.startswith("--") and w.partition("=")[0] not in known]
    assert not unknown, f"{command!r}: no option {unknown}; {name} has {sorted(known)}"


def default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    return f'="{value}"' if isinstance(value, str) else f"={value}"


def losses_table() -> str:
    """The table of losses as the registry knows them."""
    rows = ["| family | loss | options (defaults) |", "|---|---|---|"]
    for name in sorted(detloss.list_losses(), key=lambda n: (detloss.LOSSES.entry(n).family, n)):
        entry = detloss.LOSSES.entry(name)
        own = {k: v for k, v in detloss.registry.options(entry.cls).items() if k not in ("reduction", "loss_weight")}
        options = ", ".join(f"{key}{default(value)}" for key, value in own.items())
        rows.append(f"| {entry.family} | `{name}` | {f'`{options}`' if options else ''} |")
    return "\n".join(rows)


def test_table_of_losses_is_the_registry() -> None:
    table = losses_table()
    assert table in README, f"the table of losses in README.md is stale; it should be\n\n{table}\n"


def criteria_table() -> str:
    """The table of criteria as the registry knows them."""
    rows = ["| criterion | terms | presets |", "|---|---|---|"]
    for name in detloss.CRITERIA:
        cls = detloss.CRITERIA.get(name)
        terms = ", ".join(f"`{term.name}`" for term in cls.TERMS)
        rows.append(f"| `{name}` | {terms} | {', '.join(cls.PRESETS)} |")
    return "\n".join(rows)


def test_table_of_criteria_and_names_of_assigners_are_those_of_the_registries() -> None:
    table = criteria_table()
    assert table in README, f"the table of criteria in README.md is stale; it should be\n\n{table}\n"
    missing = [name for name in detloss.ASSIGNERS if f"`{name}`" not in README]
    assert not missing, f"README.md does not name the assigners {missing}"
