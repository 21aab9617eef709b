"""The Triton back-end without a GPU: its kernels in the interpreter, and compiled ahead of time for two kinds of GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import kernel_calls
import pytest
import torch
from prototype_cases import some_masks
from repository import ROOT
from torch import Tensor

import detloss

triton = pytest.importorskip("triton", reason="the kernels are written in Triton: install triton")
runtime = pytest.importorskip("triton.runtime.jit")
compiler = pytest.importorskip("triton.compiler")
targets = pytest.importorskip("triton.backends.compiler")
HERE = Path(__file__).parent
NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
INEXACT = re.compile(r"\b(?:fma\.|cvt\.f64\.|div\.full|(?:div|sqrt|rcp)\.approx|\w+\.[\w.]*ftz)\S*")
LAUNCHES = {"task alignment": 6, "task alignment of IoU bf16": 5}  # of kernels, for the one part that the objects make up
LAUNCHES |= {"atss": 5, "atss of proposals": 5, "atss of many candidates": 4, "atss of one object": 3}  # one a level, and two
REGISTERS = {"prototype_maps": 192}  # a thread, where it is more than 128
INTERPRETED = ["in_the_interpreter.py", *sorted(path.name for path in HERE.glob("interpreter_*.py"))]


@pytest.mark.slow
@pytest.mark.parametrize("file", INTERPRETED)
def test_kernels_in_the_interpreter(file: str) -> None:
    """Triton chooses between compiling and interpreting when it is imported, so this takes a process of its own."""
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(detloss.__file__).parents[1]), str(HERE.parent)]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-o", "addopts=", "-x"]
    done = subprocess.run([*command, str(HERE / file)], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


class Recorder:
    """Takes the place of the launch of a kernel and keeps what it was given."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        self.launches.append((kernel, dict(zip(kernel.arg_names, arguments, strict=False)) | options))


def compiled(kernel: Any, arguments: dict[str, Any], capability: int) -> Any:
    """The kernel compiled for a GPU of that capability as this launch would have it."""
    signature, constants, attributes = {}, {}, {}
    parameters = {parameter.name: parameter for parameter in kernel.params}
    for place, (name, value) in enumerate((name, arguments[name]) for name in kernel.arg_names):
        varies = parameters[name].do_not_specialize
        if parameters[name].is_constexpr or value is None or (isinstance(value, int) and value == 1 and not varies):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0 and not varies):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = compiler.ASTSource(kernel, signature, constants, attributes)
    options = {name: value for name, value in arguments.items() if name not in kernel.arg_names}
    return triton.compile(source, target=targets.GPUTarget("cuda", capability, 32), options=options)


def resources(binary: bytes, folder: Path) -> dict[str, int]:
    """Registers of a thread and bytes of its stack and local memory, where registers that do not fit are spilled."""
    file = folder / "kernel.cubin"
    file.write_bytes(binary)
    command = [str(NVIDIA / "cuobjdump"), "--dump-resource-usage", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def means_of_bins() -> dict[str, Tensor]:
    """Logits as heads give them: maps, maps whose channels lie side by side, rows, many bins."""
    planes = torch.empty(2, 4, 16, 8400)
    return {
        "means of planes": planes,
        "means of planes, bf16": planes.bfloat16(),
        "means of channels last": planes.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "means of rows, fp16": torch.empty(99, 4, 17, 1).half(),
        "means of 100 bins": torch.empty(2, 4, 100, 99),
    }


def usual_calls() -> dict[str, Callable[[], object]]:
    """The calls that detectors make, one or more of each operation, in the sizes and dtypes they come in."""
    from detloss.kernels.contract import Call
    from detloss.kernels.means import BinMeans
    from detloss.kernels.triton_backend import BACKEND

    calls: dict[str, Callable[[], object]] = {}

    def add(name: str, call: Call) -> None:
        calls[name] = lambda: BACKEND.total(call, 1.0, torch.ones(1), True, True)

    rows, planes = torch.empty(64, 80), torch.empty(2, 80, 16, 16)
    of_rows, of_planes = torch.empty(64, dtype=torch.int64), torch.empty(2, 16, 16, dtype=torch.int64)
    focal = (2.0, 0.25, 0.75, 0.0)
    add("focal rows", Call("sigmoid_focal", rows, index=of_rows, numbers=focal))
    add("focal planes bf16", Call("sigmoid_focal", planes.bfloat16(), index=of_planes, numbers=focal))
    add(
        "focal dense, gamma 0.7", Call("sigmoid_focal", rows, target=rows, numbers=(0.7, 0.25, 0.75, 0.1), weight=torch.empty(64))
    )
    add("binary cross entropy fp16", Call("binary_cross_entropy", rows.half(), target=rows, numbers=(0.0,)))
    add("quality focal", Call("quality_focal", rows, index=of_rows, score=torch.empty(64), numbers=(2.0,)))
    add("varifocal", Call("varifocal", rows, target=rows, numbers=(0.75, 2.0, 1.0)))
    add("cross entropy", Call("cross_entropy", torch.empty(64, 81), index=of_rows, numbers=(0.0,)))
    add("cross entropy planes", Call("cross_entropy", planes, index=of_planes, numbers=(0.1,)))
    add("softmax focal", Call("softmax_focal", rows, index=of_rows, alpha=torch.empty(80), numbers=(2.0, 0.0)))
    add("distillation", Call("kl_divergence", rows, target=rows, weight=torch.empty(64), numbers=(4.0,)))
    add("distillation planes bf16", Call("kl_divergence", planes.bfloat16(), target=planes, numbers=(10.0,)))
    add("distribution focal", Call("distribution_focal", torch.empty(64, 17), target=torch.empty(64), weight=torch.empty(64)))
    for op, numbers in (("l1", ()), ("mse", ()), ("smooth_l1", (0.1,)), ("huber", (0.1,))):
        add(op, Call(op, torch.empty(64, 4), target=torch.empty(64, 4), numbers=numbers, weight=torch.empty(64)))
    for op, extra in (("iou", 2.0), ("giou", 0.0), ("diou", 0.0), ("ciou", -1.0), ("eiou", 0.0), ("siou", 4.0)):
        boxes = torch.empty(64, 4)
        add(op, Call(op, boxes, target=boxes, weight=torch.empty(64), numbers=(1e-6, 0.0, extra)))
    turned = torch.empty(64, 5)
    for name, boxes, form in (("probiou", turned, 0.0), ("probiou l2 bf16", turned.bfloat16(), 1.0)):
        add(name, Call("probiou", boxes, target=turned, weight=torch.empty(64), numbers=(1e-4, form)))
    masks = torch.empty(64, 784)
    add("dice", Call("tversky", masks, target=masks, numbers=(0.5, 0.5, 0.5, 0.0), weight=torch.empty(64)))
    add("dice squared bf16", Call("tversky", masks.bfloat16(), target=masks.bool(), numbers=(0.5, 0.5, 0.0, 1.0)))
    for name, logits in means_of_bins().items():
        calls[name] = partial(BACKEND.means, BinMeans(logits))
    for count, need_grad in ((32, True), (32, False), (1, True), (9, True), (64, True), (128, True), (256, True)):
        calls[f"masks of {count} prototypes" + ", no gradient" * (not need_grad)] = partial(
            BACKEND.masks, some_masks(count, True), need_grad
        )
    soft, numbered = some_masks(32, False), some_masks(32, True)
    calls["masks of targets"] = partial(BACKEND.masks, soft, True)
    calls["masks of bool"] = partial(BACKEND.masks, replace(soft, masks=soft.masks.bool()), True)
    calls["masks of bytes"] = partial(BACKEND.masks, replace(numbered, masks=numbered.masks.byte()), True)
    calls["rescale"] = lambda: BACKEND.rescale(rows, torch.ones(()), True)
    return calls | usual_matches() | matches_of_anchors()


def matches_of_anchors() -> dict[str, Callable[[], object]]:
    """Matches with 3 and 5 objects of 2 images, and with one of one: launches have other constants."""
    from detloss.kernels.matches import ATSSMatch, Match, MaxIoUMatch
    from detloss.kernels.triton_backend import BACKEND

    anchors, objects, present = torch.zeros(300, 4), torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    per_image, valid = torch.zeros(2, 300, 4), torch.ones(2, 300, dtype=torch.bool)
    one = torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    iou_rule, levels = (0.5, (0.0, 0.4), 0.0), ((200, 80, 20), 9, 0.01)
    matches: dict[str, Match] = {
        "max iou": MaxIoUMatch(anchors, None, objects, present, *iou_rule, True, True),
        "max iou of proposals": MaxIoUMatch(per_image, valid, objects, present, 0.5, (0.1, 0.5), 0.3, True, False),
        "max iou without claims": MaxIoUMatch(anchors, valid[:1], objects[:, :3], present[:, :3], *iou_rule, False, False),
        "max iou of one object": MaxIoUMatch(anchors, None, *one, *iou_rule, True, True),
        "atss": ATSSMatch(anchors, None, objects, present, *levels, 2**20),
        "atss of proposals": ATSSMatch(per_image, valid, objects, present, *levels, 2**20),
        "atss of one object": ATSSMatch(anchors[:200], None, *one, (200,), 1, 0.01, 2**20),
        "atss of many candidates": ATSSMatch(per_image, valid, objects, present, (150, 150), 64, 0.01, 2**20),
    }
    return {name: partial(BACKEND.match, match) for name, match in matches.items()}


def usual_matches() -> dict[str, Callable[[], object]]:
    """The matches of detectors: 2 images, 3 objects each, 70 priors or queries."""
    from detloss.kernels.matches import AlignedMatch, PairCostMatch
    from detloss.kernels.triton_backend import BACKEND

    boxes, objects, yes = torch.zeros(2, 70, 4), torch.zeros(2, 3, 4), torch.ones(2, 70, dtype=torch.bool)
    rows, labels, scores = objects.flatten(0, 1), torch.zeros(6, dtype=torch.int64), torch.zeros(2, 70, 5)
    given = boxes[0, :, :2], yes, rows, rows, labels
    complete = AlignedMatch(boxes, scores, *given, 10, 0.5, 6.0, "ciou", 1e-9, 2**20)
    plain = AlignedMatch(boxes, scores.bfloat16(), *given, 13, 1.0, 6.0, "iou", 1e-9, 2**20)
    costs = [PairCostMatch(boxes, objects, boxes[:, 0, :2], yes, yes[:, :3], torch.zeros(2, 3, 70), 5.0, 2.0, iou, 1e30)
             for iou in ("giou", "iou")]  # fmt: skip
    matches = {"task alignment": complete, "task alignment of IoU bf16": plain, "costs": costs[0], "costs of IoU": costs[1]}
    return {name: lambda match=match: BACKEND.match(match) for name, match in matches.items()}  # type: ignore[misc]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_ahead_of_time_without_spilling(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (NVIDIA / "cuobjdump").is_file():
        pytest.skip("this build of triton has no tools for NVIDIA GPUs")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter does not compile")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    recorder = Recorder()
    monkeypatch.setattr(runtime.JITFunction, "run", lambda self, *a, **k: recorder(self, *a, **k))
    done = set()
    for name, call in usual_calls().items():
        recorder.launches.clear()
        call()
        most = LAUNCHES.get(name, 3 if "masks" in name else 2)
        assert len(recorder.launches) <= most, "one kernel for loss and gradient, one for the total; masks: one for each gradient"
        for kernel, arguments in recorder.launches:
            if kernel.__name__ == "finish" and "finish" in done:
                continue
            done.add(kernel.__name__)
            code = compiled(kernel, arguments, capability).asm
            used = resources(code["cubin"], tmp_path)
            print(f"sm_{capability} {name}: {kernel.__name__} {used}")
            assert used["STACK"] == used["LOCAL"] == 0, f"{name}: {used}"
            assert used["REG"] <= REGISTERS.get(kernel.__name__, 128), f"{name}: {used}"
            if arguments.get("enable_fp_fusion") is False:
                assert not INEXACT.findall(code["ptx"]), f"{name}: a kernel that decides rounds as torch does"


def test_every_operation_has_a_kernel_and_is_tested() -> None:
    from detloss.kernels.contract import OPS
    from detloss.kernels.triton_backend import (
        BACKEND,
        boxes,
        coordinates,
        distribution,
        divergence,
        masks,
        rotated,
        sigmoid,
        softmax,
    )

    families = (boxes, coordinates, distribution, divergence, masks, rotated, sigmoid, softmax)
    assert set().union(*(family.OPS for family in families)) == OPS
    assert {pair.call.op for pair in kernel_calls.pairs()} == OPS
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        assert BACKEND.unavailable() == "PyTorch finds no CUDA device"
        with pytest.raises(RuntimeError, match="no CUDA device"), detloss.kernels.use("triton"):
            pass
