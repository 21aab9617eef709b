"""Which implementation runs: what was asked for, what this process has, what a call allows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from detloss.checks import check_option
from detloss.kernels.contract import OPS, Backend, Call, Request
from detloss.kernels.matches import MATCH_OPS
from detloss.kernels.means import BinMeans
from detloss.kernels.prototypes import PrototypeMasks
from detloss.values import value_checks_enabled

__all__ = [
    "Choice",
    "backend",
    "choose",
    "constant_while_compiling",
    "fused_backend",
    "match_backend",
    "operation_of",
    "recorded",
    "use",
]

Function = TypeVar("Function", bound=Callable[..., Any])
Mode: TypeAlias = Literal["auto", "reference", "native", "triton"]
MODES = ("auto", "reference", "native", "triton")
NAMES = ("native", "triton")
FOR_DEVICE = {"cpu": "native", "cuda": "triton"}
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # since torch 2.7
PLAIN = (Tensor, torch.nn.Parameter)
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Losses whose operation is not the name of their function without "_loss", modules, and assigners.
_OP_OF = {
    "GIoULoss": "giou", "DIoULoss": "diou", "CIoULoss": "ciou", "EIoULoss": "eiou", "SIoULoss": "siou", "IoULoss": "iou",
    "QualityFocalLoss": "quality_focal", "VarifocalLoss": "varifocal", "DistributionFocalLoss": "distribution_focal",
    "L1Loss": "l1", "MSELoss": "mse", "SmoothL1Loss": "smooth_l1", "HuberLoss": "huber",
    "FocalLoss": "sigmoid_focal",
    "CrossEntropyLoss": "cross_entropy", "CenternessLoss": "binary_cross_entropy", "centerness": "binary_cross_entropy",
    "MaskBCELoss": "binary_cross_entropy", "mask_bce": "binary_cross_entropy",
    "MaskFocalLoss": "sigmoid_focal", "mask_focal": "sigmoid_focal",
    "KnowledgeDistillationKLDivLoss": "kl_divergence", "kl_distillation": "kl_divergence",
    "DiceLoss": "tversky", "dice": "tversky", "TverskyLoss": "tversky", "ProbIoULoss": "probiou",
    "LocalizationDistillationLoss": "kl_divergence", "localization_distillation": "kl_divergence",
    "MaxIoUAssigner": "max_iou", "ATSSAssigner": "atss", "TaskAlignedAssigner": "task_aligned",
    "HungarianAssigner": "pair_cost",
}  # fmt: skip
_TORCH_ONLY = {("pair_cost", "diou"), ("pair_cost", "ciou")}  # operations and measures of overlap
_WITH_SIGMOID = {
    ("FocalLoss", False): "softmax_focal",
    ("CrossEntropyLoss", True): "binary_cross_entropy",
}


@dataclass(frozen=True)
class Choice:
    """What runs and why.

    Attributes:
        name: ``"native"``, ``"triton"`` or ``"reference"``.
        reason: why it was chosen.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def _mode_of_environment() -> str:
    mode = os.environ.get("DETLOSS_KERNELS", "auto").strip().lower() or "auto"
    check_option("DETLOSS_KERNELS", "environment variable", mode, MODES)
    return mode


_state: dict[str, Any] = {"mode": _mode_of_environment()}


def constant_while_compiling(function: Function) -> Function:
    """``torch.compiler.assume_constant_result``, which would import the whole compiler here: call it once, while tracing."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_loaded: dict[str, Backend] = {}


@cache
def _load(name: str) -> str:
    """Load the back-end of that name; why this process has none, or an empty string."""
    candidate: Backend
    try:
        if name == "native":
            from detloss.kernels.native import BACKEND as candidate
        else:
            from detloss.kernels.triton_backend import BACKEND as candidate
    except ImportError as error:
        return f"{name} cannot be imported: {error}"
    problem = candidate.unavailable()
    if not problem:
        _loaded[name] = candidate
    return problem or ""


@constant_while_compiling
def _problem_of(name: str, forced: bool) -> str:
    """Why the back-end cannot run, an error when it was asked for by name; empty when it can. Constant while compiling."""
    problem = _load(name)
    if problem and forced:
        raise RuntimeError(f"detloss.kernels: the {name} kernels were asked for but cannot run: {problem}")
    return problem


@contextmanager
def use(mode: Mode) -> Iterator[None]:
    """Choose the implementation for the body of a ``with`` statement, in the whole process.

    ``"reference"`` is the readable formula, ``"native"`` and ``"triton"`` allow one back-end (calls that it does not take, such
    as those in float64, run the reference), ``"auto"`` picks by device. The environment variable ``DETLOSS_KERNELS`` sets
    what holds outside.

    Raises:
        ValueError: unknown mode.
        RuntimeError: the back-end named cannot run in this process.

    >>> with use("reference"):
    ...     print(backend("giou_loss", torch.zeros(2, 4)))
    reference: asked for
    """
    check_option("detloss.kernels.use", "mode", mode, MODES)
    if mode in NAMES:
        _problem_of(mode, True)
    before = _state["mode"]
    _state["mode"] = mode
    try:
        yield
    finally:
        _state["mode"] = before


def recorded(x: Tensor) -> bool:
    """Whether operations are recorded or transformed, or ``x`` has no values: what asks for them must be one operator.

    Called otherwise, an operator made in Python would first load the whole compiler: seconds, and 100 MiB.
    """
    return torch.compiler.is_compiling() or x.is_meta or _refusal_of_interpreter() is not None


def _refusal_of_interpreter() -> str | None:
    if torch._C._are_functorch_transforms_active():
        return "inside a functorch transform"
    if torch._C._is_tracing():
        return "while tracing"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    return "inside a dispatch mode" if torch._C._len_torch_dispatch_stack() > 0 else None


def _refusal_of_state(call: Request, compiling: bool) -> str | None:
    """Why the surroundings of a call (transforms, tracing, other inputs that need a gradient) want the reference."""
    if compiling:
        if _is_exporting():
            return "while exporting"
    elif problem := _refusal_of_interpreter():
        return problem
    for tensor in call.tensors():
        if tensor is not None and tensor.requires_grad:
            return "targets or weights that need a gradient"
    if not call.pred.is_cpu and value_checks_enabled(call.pred):
        return "checks of values on the accelerator are on"
    return None


def _refusal_of_tensor(pred: Tensor, compiling: bool) -> str | None:
    if pred.dtype not in FUSED_DTYPES:
        return f"{str(pred.dtype).removeprefix('torch.')} predictions"
    if not compiling and type(pred) not in PLAIN:
        return f"a {type(pred).__name__}, not a plain tensor"
    return "empty predictions" if pred.numel() == 0 else None


def _back_end_for(device: str) -> tuple[str, str | None]:
    """Name of the back-end that the mode in force has for a device, and why it cannot run."""
    mode = _state["mode"]
    if mode == "reference":
        return mode, "asked for"
    name = mode if mode in NAMES else FOR_DEVICE.get(device)
    return (name, _problem_of(name, mode == name) or None) if name else ("", f"no kernels for device {device!r}")


def choose(call: Request, compiling: bool) -> tuple[str, str | None]:
    """Name of the back-end for a call, and why it does not take it (``None`` when it does). Reads metadata only."""
    name, problem = _back_end_for("cpu" if call.pred.is_cpu else call.pred.device.type)  # the name of a device is made anew
    if problem is None:
        problem = _refusal_of_tensor(call.pred, compiling) or _refusal_of_state(call, compiling) or _loaded[name].refuses(call)
    return name, problem


def match_backend(match: Request) -> Backend | None:
    """The back-end that matches for an assigner, decodes, or compares masks; ``None``: operations of torch do, also compiled."""
    if torch.compiler.is_compiling():
        return None
    name, problem = choose(match, False)
    return None if problem else fused_backend(name)


def fused_backend(name: str) -> Backend:
    """The back-end that :func:`choose` named."""
    if name not in _loaded:
        _problem_of(name, True)
    return _loaded[name]


def operation_of(loss: Any) -> str:
    """Operation of a loss or an assigner, given as an object, a function or a name; empty when it has no kernel."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    if getattr(loss, "use_mask", False):
        return "binary_cross_entropy"
    if getattr(loss, "activated", False):  # masks of probabilities
        return ""
    by_module = _WITH_SIGMOID.get((name, bool(getattr(loss, "use_sigmoid", name == "FocalLoss"))))
    op = by_module or _OP_OF.get(name) or _OP_OF.get(name.removesuffix("_loss")) or name.removesuffix("_loss")
    return op if op in OPS | MATCH_OPS | {BinMeans.op, PrototypeMasks.op} else ""


def backend(loss: Any = None, tensor: Tensor | None = None) -> Choice:
    """Which implementation would run, and why.

    Args:
        loss: a loss module, a function of :mod:`detloss.functional`, an assigner, or the name of any of them; ``None`` for
            any fused loss.
        tensor: predictions, for an assigner the boxes that it matches; ``None`` for fp32 on the CPU.

    >>> str(backend("ap_loss"))
    'reference: ap_loss has no kernel'
    """
    op = "giou" if loss is None else operation_of(loss)
    if not op:
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        return Choice("reference", f"{name} has no kernel")
    device = "cpu" if tensor is None else tensor.device.type
    name, problem = _back_end_for(device)
    if problem is None and (op not in _loaded[name].ops or (op, getattr(loss, "iou", "")) in _TORCH_ONLY):
        problem = f"{op} has no {name} kernel" + (f" for iou={loss.iou!r}" if op in _loaded[name].ops else "")
    if tensor is not None and problem is None:
        problem = _refusal_of_tensor(tensor, False) or _refusal_of_state(Call(op, tensor), False)
    if problem:
        return Choice("reference", problem)
    if _state["mode"] == name:
        return Choice(name, "asked for")
    return Choice(name, f"{op} on {device}" if loss is not None else f"tensors on {device}")
