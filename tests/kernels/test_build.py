"""The package installs without a compiler and says that it has no kernels; its archives hold what others need to build them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from repository import ROOT

pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools 77 or newer")

STEP = """
import torch, detloss, detloss.kernels
x = torch.randn(4, 3, requires_grad=True)
detloss.FocalLoss()(x, torch.tensor([0, 1, 2, 3])).backward()
assert x.grad.abs().sum() > 0
print(detloss.__file__)
print(detloss.kernels.backend("FocalLoss", x))
"""


def run(folder: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "DETLOSS_KERNELS": "auto", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, without any library that was built already."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("_kernels*", "__pycache__", "*.egg-info"))
    return folder


def build(sources: Path, hook: str, **environment: str) -> Path:
    """The archive that the build back-end of pyproject.toml makes."""
    out = sources / "dist"
    out.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; print('made', build_meta.{hook}({str(out)!r}))"
    return out / run(sources, sys.executable, "-c", code, **environment).strip().rpartition("made ")[2]


def test_without_a_compiler_the_reference_runs_and_says_so(sources: Path, tmp_path: Path) -> None:
    none = str(shutil.which("false"))
    wheel = build(sources, "build_wheel", CC=none, CXX=none)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert not [name for name in names if name.startswith("detloss/kernels/native/_kernels")]
    assert {"detloss/kernels/native/library.cpp", "detloss/kernels/native/kernels.h"} <= set(names)
    said = run(tmp_path, sys.executable, "-c", STEP, PYTHONPATH=str(tmp_path)).splitlines()
    assert Path(said[0]).is_relative_to(tmp_path)
    assert said[1].startswith("reference: detloss was installed without a C++ compiler")


def test_the_source_archive_holds_everything_that_is_compiled(sources: Path) -> None:
    with tarfile.open(build(sources, "build_sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src/detloss/kernels/native").iterdir()}
    wanted = {name for name in native if name.endswith((".cpp", ".h", ".py"))} | {"setup.py"}
    assert wanted <= names, wanted - names


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")
def test_with_a_compiler_the_wheel_has_the_kernels(sources: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build(sources, "build_wheel")) as archive:
        archive.extractall(tmp_path)
    said = run(tmp_path, sys.executable, "-c", STEP, PYTHONPATH=str(tmp_path)).splitlines()
    assert Path(said[0]).is_relative_to(tmp_path)
    assert said[1] == "native: sigmoid_focal on cpu"
