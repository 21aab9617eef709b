"""Rules over the files of the repository: no host sync in hot paths, small documented files, nothing of one machine."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import PACKAGE, ROOT, parse, source_files, within

import detloss

HOT_PATHS = ("functional", "losses", "assigners", "criteria", "geometry", "reduction.py")
SYNCING_METHODS = {"item", "tolist", "nonzero", "cpu", "numpy", "masked_select", "unique"}
VALUE_TESTS = {"any", "all", "equal", "allclose"}

# (file, function) -> why it may read values of tensors. An entry that no longer applies fails the test.
CHECKED_VALUES = "values of targets, read on the CPU and elsewhere only when asked: value_checks_enabled"
ALLOWED: dict[tuple[str, str], str] = {
    ("assigners/aligned.py", "inside_pairs"): "which priors lie in which object depends on values; a few reads per batch",
    ("assigners/hungarian.py", "least_cost_match"): "SciPy solves on the host: one copy there and back for the whole batch",
    ("criteria/roi_samples.py", "counts_on_host"): "features are cut out for as many proposals as were sampled",
    ("assigners/targets.py", "_check_corners"): CHECKED_VALUES,
    ("assigners/targets.py", "_check_corners_of"): CHECKED_VALUES,
    ("assigners/targets.py", "_labels"): CHECKED_VALUES,
    ("functional/prototype_masks.py", "_crops"): "without a kernel; every object is compared in a part of the image of its own",
    ("functional/ranked_sums.py", "missorted_sum"): "compares pairs of positives only, so it needs their number",
    ("functional/segmentation.py", "_check_binary"): CHECKED_VALUES,
    ("losses/base.py", "Loss.to_config"): "writes a configuration; not part of a step",
}

NOT_A_STEP = ("criteria/explain.py",)  # for people who ask, never part of a training step

TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".cfg", ".txt", ".typed", ".sh", ""}
NOT_SOURCE = {".git", ".venv", "runs", "build", "dist", ".hypothesis", "__pycache__", "lightning_logs"}
MAX_LINES = 300


def _asks_for_values(condition: ast.expr) -> Iterator[ast.Call]:
    """Calls such as ``x.any()`` or ``torch.equal(a, b)`` in a condition: the host must wait to know their truth."""
    for node in ast.walk(condition):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VALUE_TESTS:
            yield node


def _host_syncs_at(node: ast.AST) -> Iterator[str]:
    """What in this one node makes the host wait for the device (or is a bare assert)."""
    if isinstance(node, ast.Assert):
        yield "assert"
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield from (f"if …{ast.unparse(call)}" for call in _asks_for_values(node.test))
    elif isinstance(node, ast.comprehension):
        yield from (f"if …{ast.unparse(call)}" for test in node.ifs for call in _asks_for_values(test))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in SYNCING_METHODS:
            yield f".{node.func.attr}()"
        elif node.func.attr == "where" and len(node.args) + len(node.keywords) == 1:
            yield "torch.where(condition) alone"
        elif node.func.attr == "to" and any(isinstance(a, ast.Constant) and a.value == "cpu" for a in node.args):
            yield ".to('cpu')"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("bool", "float", "int"):
        yield from (f"{node.func.id}({ast.unparse(call)})" for a in node.args for call in _asks_for_values(a))


def host_syncs(tree: ast.AST, function: str = "<module>") -> Iterator[tuple[int, str, str]]:
    """(line, qualified name of the enclosing function, what was found)."""
    for node in ast.iter_child_nodes(tree):
        yield from ((getattr(node, "lineno", 0), function, found) for found in _host_syncs_at(node))
        inner = function
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = node.name if function == "<module>" else f"{function}.{node.name}"
        yield from host_syncs(node, inner)


def test_no_host_sync_in_hot_paths() -> None:
    files = [path for path in source_files(*HOT_PATHS) if within(path) not in NOT_A_STEP]
    found = [(within(path), *hit) for path in files for hit in host_syncs(parse(path))]
    problems = [f"{file}:{line} {what} in {name}" for file, line, name, what in found if (file, name) not in ALLOWED]
    assert not problems, "\n".join(problems)
    stale = set(ALLOWED) - {(file, name) for file, _, name, _ in found}
    assert not stale, f"exceptions that no longer apply: {sorted(stale)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x):\n    return x.item()", "f .item()"),
        ("class A:\n    def f(self, x):\n        return x.tolist()", "A.f .tolist()"),
        ("def f(x):\n    return torch.nonzero(x)", "f .nonzero()"),
        ("def f(x):\n    return x.cpu()", "f .cpu()"),
        ("def f(x):\n    return x.to('cpu')", "f .to('cpu')"),
        ("def f(x):\n    if (x > 0).any():\n        return x", "f if …(x > 0).any()"),
        ("def f(x):\n    return 1 if torch.isfinite(x).all() else 0", "f if …torch.isfinite(x).all()"),
        ("def f(x):\n    return bool(x.any())", "f bool(x.any())"),
        ("def f(x):\n    return torch.where(x > 0)", "f torch.where(condition) alone"),
        ("def f(x):\n    assert x is not None", "f assert"),
    ],
)
def test_the_host_sync_rule_finds(source: str, expected: str) -> None:
    assert expected in [f"{name} {what}" for _, name, what in host_syncs(ast.parse(source))]


def test_the_host_sync_rule_lets_pass() -> None:
    source = "def f(x):\n    keep = (x > 0).any(dim=1)\n    if x.ndim == 2:\n        return torch.where(keep, x, 0)"
    assert list(host_syncs(ast.parse(source))) == []


def test_no_bare_assert_in_the_package() -> None:
    found = [f"{within(p)}:{n.lineno}" for p in source_files() for n in ast.walk(parse(p)) if isinstance(n, ast.Assert)]
    assert not found, f"raise an exception that says expected and got: {found}"


def test_every_source_file_has_a_docstring_and_is_short() -> None:
    problems = []
    for path in source_files():
        if not ast.get_docstring(parse(path)):
            problems.append(f"{within(path)}: no module docstring")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES:
            problems.append(f"{within(path)}: {count} lines, at most {MAX_LINES}")
    assert not problems, "\n".join(problems)


def text_files(folder: Path = ROOT) -> Iterator[Path]:
    """Text files of the repository, without environments, results and caches."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in NOT_SOURCE and not path.name.endswith((".egg-info", "_cache")):
            yield from text_files(path)
        elif path.is_file() and path.suffix in TEXT_SUFFIXES:
            yield path


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of one machine", r"(?<![\w.])/(?:work|root|home|Users)/\w"),
        ("the address of a package registry", r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org"),
        ("an index option of pip", r"--(?:extra-)?index-url|--find-links"),
        ("unfinished work", r"\b(?:TODO|FIXME|XXX)\b"),
    ],
)
def test_no_file_holds(what: str, pattern: str) -> None:
    here = Path(__file__).resolve()
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}"
        for path in text_files()
        if path != here
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"{what}:\n" + "\n".join(found)


def test_every_registered_class_is_a_public_name() -> None:
    registered = {name for registry in (detloss.LOSSES, detloss.CRITERIA, detloss.ASSIGNERS) for name in registry}
    assert registered <= set(detloss.__all__), sorted(registered - set(detloss.__all__))
    assert all(hasattr(detloss, name) for name in detloss.__all__)


def test_changelog_has_the_current_version() -> None:
    assert f"## {detloss.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_package_is_typed_and_licensed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
