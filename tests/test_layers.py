"""A module imports only from its own layer and those to its left, and only train/ imports more than PyTorch."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

import pytest
from repository import PACKAGE, ROOT, parse, source_files, within

LAYERS = (
    "types", "checks", "values", "reduction", "registry", "geometry", "kernels", "functional",
    "losses", "assigners", "criteria", "compat", "integrations", "diagnostics", "testing", "train",
)  # fmt: skip
ROOF = "__init__"  # detloss/__init__.py: collects the public names of every layer but those loaded on demand
ON_DEMAND = ("integrations", "testing", "train")
THIRD_PARTY = {"kernels": {"torch", "triton"}}  # train: what its extra declares; every other layer: torch
# Imported where they are used, inside a function, with an error that says what to install.
LAZILY = {
    "assigners/hungarian.py": {"scipy"},
    "compat/autotimm/__init__.py": {"autotimm"},
    "compat/configs/files.py": {"yaml"},
    "criteria/explain.py": {"matplotlib"},
}
LAZY_FOLDERS = {  # what they patch, or whose models they are given, is installed
    "compat/patches/": {"accelerate", "autotimm", "torchvision", "transformers", "ultralytics"},
    "integrations/": {"torchvision", "transformers", "ultralytics"},
}
BY_NAME = ("import_module", "importlib.import_module", "__import__")
DISTRIBUTIONS = {"huggingface_hub": "huggingface-hub", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def layer_of(module: str) -> str:
    """``losses/iou.py`` → ``losses``, ``types.py`` → ``types``, ``__init__.py`` → the roof."""
    return module.split("/")[0].removesuffix(".py")


def imported_names(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in the file, those inside functions and by name included."""
    package = ["detloss", *module.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME:
            yield node.lineno, _imported_by_name(node.args[0], ".".join(package)) if node.args else "<computed>"


def _imported_by_name(argument: ast.expr, package: str) -> str:
    """What ``import_module("x.y")`` or ``import_module(f"{__name__}.{...}")`` loads; the latter is in the package."""
    if isinstance(argument, ast.Constant):
        return str(argument.value)
    return f"{package}.<computed>" if ast.unparse(argument).startswith(("f'{__name__}.", 'f"{__name__}.')) else "<computed>"


def lazily(module: str) -> set[str]:
    """What the module may import inside its functions."""
    folders = [names for folder, names in LAZY_FOLDERS.items() if module.startswith(folder)]
    return LAZILY.get(module, set()).union(*folders)


def train_extra() -> set[str]:
    """Distributions that the extra ``train`` of pyproject.toml names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^train = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    return set(re.findall(r'"([A-Za-z0-9-]+)', block.group(1))) if block else set()


def violation(module: str, name: str, extra: set[str]) -> str | None:
    """Why ``module`` may not import ``name``, or ``None`` when it may."""
    layer, root = layer_of(module), name.split(".")[0]
    if root != "detloss":
        allowed = extra if layer == "train" else THIRD_PARTY.get(layer, {"torch"}) | lazily(module)
        if root in sys.stdlib_module_names or root == "torch" or {root, DISTRIBUTIONS.get(root, root)} & allowed:
            return None
        return f"imports {name}: layer {layer!r} may import only the standard library and {sorted(allowed)}"
    other = [*name.split("."), ROOF][1]
    if other not in LAYERS:  # a public name of the package, taken from its roof
        return None if layer == "train" else f"imports {name} from the package's roof; name the module it lives in"
    if layer == ROOF:
        return f"imports {name}: `import detloss` must not load {other}" if other in ON_DEMAND else None
    if layer not in LAYERS:
        return f"imports {name}: {layer!r} has no place in the layer order"
    if LAYERS.index(other) <= LAYERS.index(layer):
        return None
    return f"imports {name}: layer {other!r} is to the right of {layer!r}"


def violations(source: ast.Module, module: str, extra: set[str]) -> list[str]:
    found = [(line, violation(module, name, extra)) for line, name in imported_names(source, module)]
    return [f"{module}:{line} {problem}" for line, problem in found if problem]


def test_every_module_belongs_to_a_layer() -> None:
    strangers = {layer_of(within(path)) for path in source_files()} - set(LAYERS) - {ROOF}
    assert not strangers, f"give {sorted(strangers)} a place in the layer order"


def test_layer_order_holds_in_the_package() -> None:
    extra = train_extra()
    problems = [p for path in source_files() for p in violations(parse(path), within(path), extra)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("module", [within(path) for path in source_files() if lazily(within(path))])
def test_lazy_imports_are_inside_functions(module: str) -> None:
    tree = parse(PACKAGE / module)
    at_import = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [name.split(".")[0] for line in at_import for _, name in imported_names(ast.parse(line), module)]
    assert not lazily(module) & set(names)


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("losses/focal.py", "from detloss.functional import sigmoid_focal_loss", True),
        ("losses/focal.py", "from .base import Loss", True),
        ("losses/focal.py", "from ..criteria.fcos import FCOSLoss", False),
        ("losses/focal.py", "from .. import criteria", False),
        ("losses/focal.py", "from detloss import criteria", False),
        ("losses/focal.py", "from detloss import reduce_loss", False),
        ("losses/focal.py", "import detloss", False),
        ("checks.py", "from .types import Reduction", True),
        ("checks.py", "def f():\n    from detloss.values import check_unit_interval", False),
        ("checks.py", "import importlib\nimportlib.import_module('detloss.registry')", False),
        ("checks.py", "import importlib\nimportlib.import_module(name)", False),
        ("geometry/iou.py", "import math, torch.nn.functional", True),
        ("geometry/iou.py", "import numpy as np", False),
        ("criteria/fcos.py", "from torchvision.ops import box_iou", False),
        ("kernels/focal.py", "import triton", True),
        ("functional/focal.py", "import triton", False),
        ("__init__.py", "from detloss.criteria import FCOSLoss", True),
        ("__init__.py", "from . import train", False),
        ("train/__init__.py", "import importlib\nimportlib.import_module(f'{__name__}.{home}')", True),
        ("train/cli.py", "import yaml, click\nfrom PIL import Image\nfrom detloss import FCOSLoss", True),
        ("train/cli.py", "import pandas", False),
        ("integrations/torchvision.py", "from detloss.compat.patches.torchvision_dense import anchor_sides", True),
        ("compat/patches/torchvision_dense.py", "from detloss.integrations.attach import attach", False),
    ],
)
def test_the_rule_itself(module: str, source: str, allowed: bool) -> None:
    extra = {"click", "pyyaml", "pillow"}
    assert (violations(ast.parse(source), module, extra) == []) is allowed
