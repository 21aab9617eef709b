"""`import detloss` needs PyTorch and nothing else: checked in a fresh interpreter where everything else is blocked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import pytest

# Run first: an import of anything but the standard library, torch with its own requirements, and detloss fails.
BLOCK = """
import sys
allowed = set(sys.argv[1].split(","))

class OnlyTorch:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in allowed or root in sys.stdlib_module_names:
            return None
        raise ModuleNotFoundError(f"{name} is blocked: the core may import torch only", name=name)

sys.meta_path.insert(0, OnlyTorch())
"""

TRAIN_STEP = """
import torch
import detloss

missing = [name for name in detloss.__all__ if not hasattr(detloss, name)]
assert not missing, missing

logits = torch.randn(6, 3, requires_grad=True)
detloss.FocalLoss()(logits, torch.tensor([0, 1, 2, 3, 3, 3])).backward()
assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0

criterion = detloss.FCOSLoss(num_classes=2, strides=(8, 16))
shapes = [(4, 4), (2, 2)]
maps = [[torch.randn(1, c, *hw, requires_grad=True) for hw in shapes] for c in (2, 4, 1)]
boxes = [m.exp() for m in maps[1]]
targets = [{"boxes": torch.tensor([[2.0, 3.0, 20.0, 28.0]]), "labels": torch.tensor([1])}]
losses = criterion(maps[0], boxes, maps[2], targets)
losses.total_loss.backward()
assert set(losses) == {"loss_cls", "loss_box", "loss_centerness"}, set(losses)
assert all(torch.isfinite(m.grad).all() for group in maps for m in group)
print("ok")
"""

NEW_MODULES = """
import torch
before = set(sys.modules)
import detloss
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(root for root in roots if root not in sys.stdlib_module_names))
"""


WITH_OPERATORS = """
import sys
import torch
import detloss

logits, boxes = torch.randn(2, 9, 4, requires_grad=True), torch.rand(2, 9, 4).sort(-1).values
objects = [{"boxes": boxes[i, :2], "labels": torch.tensor([0, 2])} for i in (0, 1)]
assert detloss.HungarianAssigner()(None, objects, logits, boxes).positive.any()
labels, qualities = torch.tensor([0, 1, 2, 3]), torch.tensor([0.9, 0.5, 0.7, 0.0])
detloss.build("RankSortLoss")(logits[0, :4, :3], (labels, qualities)).backward()
print("torch._dynamo" in sys.modules)
"""


def closure(distribution: str) -> set[str]:
    """The distribution and, recursively, what it requires here (extras and other platforms left out)."""
    seen: set[str] = set()
    todo = [distribution]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in seen:
            seen.add(name)
            todo += [re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0] for line in requires if "extra ==" not in line]
    return seen


@pytest.fixture(scope="module")
def allowed() -> str:
    """Import names of torch, what torch itself requires, and detloss; triton and NumPy are optional for the core."""
    wanted = closure("torch") - {"triton", "numpy"}
    names = {
        package
        for package, owners in metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in wanted for owner in owners)
    }
    return ",".join(sorted(names | {"torch", "detloss"}))


def run_python(code: str, *args: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code, *args], capture_output=True, text=True, timeout=120)


def test_import_and_a_training_step_with_everything_else_blocked(allowed: str) -> None:
    done = run_python(BLOCK + TRAIN_STEP, allowed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "ok"


def test_the_block_blocks(allowed: str) -> None:
    assert "numpy is blocked" in run_python(BLOCK + "import torch, detloss, numpy", allowed).stderr
    assert "torchvision" not in allowed


def test_import_loads_only_detloss_torch_and_the_standard_library(allowed: str) -> None:
    done = run_python(BLOCK + NEW_MODULES, allowed)
    assert done.returncode == 0, done.stderr
    assert set(ast.literal_eval(done.stdout)) <= {"detloss", "torch"}


def test_import_does_not_load_the_trainer() -> None:
    code = "import sys, detloss; print('detloss.losses' in sys.modules, 'detloss.train' in sys.modules)"
    assert run_python(code).stdout.split() == ["True", "False"]


def test_import_cost_beyond_torch(record_property: Callable[[str, object], None]) -> None:
    """Records the milliseconds of `import detloss` after `import torch`; the bound is only there to catch a blunder."""
    done = run_python("import torch, detloss", flags=("-X", "importtime"))
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    cost = next(int(cumulative) / 1000 for _, cumulative, name in lines if name.strip() == "detloss")
    print(f"import detloss beyond torch: {cost:.0f} ms")
    record_property("import_ms", round(cost))
    assert cost < 5000


def test_what_is_an_operator_for_the_compiler_does_not_load_it() -> None:
    """Seconds and 100 MiB, for those who do not compile."""
    pytest.importorskip("scipy")
    done = run_python(WITH_OPERATORS)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
