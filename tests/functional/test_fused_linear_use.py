"""Fused classifier and loss in use: mixed precision, gradient scaling, compilation, memory, the module, errors."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detloss
from detloss import FusedLinearFocalLoss
from detloss import functional as F
from detloss.functional.linear_losses import Options, Rows
from detloss.functional.linear_sums import fused_sum

call = F.fused_linear_sigmoid_loss


def classifier(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of 40 rows, weight and bias of 9 classes over 16 features, labels with background."""
    generator = torch.Generator().manual_seed(1)
    features, weight = torch.randn(40, 16, generator=generator), torch.randn(9, 16, generator=generator) * 0.3
    leaves = [x.to(dtype).requires_grad_() for x in (features, weight, torch.zeros(9) - 2)]
    return leaves[0], leaves[1], leaves[2], torch.randint(0, 10, (40,), generator=generator)


def exact(*leaves: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Value and gradients in float64."""
    *inputs, label = leaves
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    loss = F.sigmoid_focal_loss(nn.functional.linear(*doubles), label)
    return loss, torch.autograd.grad(loss, doubles)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found.double() - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_low_precision_input_is_computed_in_single_precision(dtype: torch.dtype, tolerance: float) -> None:
    features, weight, bias, label = classifier(dtype)
    expected, gradients = exact(features, weight, bias, label)
    loss = call(features, weight, bias, label)
    loss.backward()
    assert loss.dtype == torch.float32 and close(loss, expected, 1e-6)
    for leaf, gradient in zip((features, weight, bias), gradients, strict=True):
        assert leaf.grad is not None and leaf.grad.dtype == dtype
        assert close(leaf.grad, gradient, tolerance)


def test_autocast_with_weights_in_single_precision() -> None:
    features, weight, bias, label = classifier()
    features = features.detach().bfloat16().requires_grad_()
    expected, gradients = exact(features, weight, bias, label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = call(features, weight, bias, label)
    loss.backward()
    assert close(loss, expected, 1e-6)
    assert features.grad is not None and features.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert close(weight.grad, gradients[1], 1e-6)
    with pytest.raises(TypeError, match=r"weight must have the dtype of features, torch\.bfloat16; got torch\.float32"):
        call(features, weight, bias, label)


def test_products_in_bfloat16_sum_in_single_precision() -> None:
    """What an accelerator does under autocast: rounded factors, but no sum that stalls at 8 bits."""
    features, weight, bias, label = classifier()
    repeated = [x.detach().repeat(50, *(1,) * (x.ndim - 1)) for x in (features, label)]
    options, rows = Options("focal", 2.0, 0.25, 0.75, -100), Rows(repeated[1], None, None, None, None)
    loss = fused_sum(repeated[0], weight, bias, rows, options, (False, True, True), torch.bfloat16, 4096)
    gradient, _ = torch.autograd.grad(loss, (weight, bias))
    expected, gradients = exact(repeated[0], weight, bias, repeated[1])
    assert gradient.dtype == torch.float32
    assert close(loss, expected * 2000 * 9, 0.01)
    assert close(gradient, gradients[1] * 2000 * 9, 0.02)


def test_gradient_scaling() -> None:
    features, weight, bias, label = classifier(torch.float16)
    (call(features, weight, bias, label) * 2.0**14).backward()
    _, gradients = exact(features, weight, bias, label)
    assert weight.grad is not None and close(weight.grad, gradients[1] * 2.0**14, 2**-11)


def test_backward_twice_gives_the_same_again() -> None:
    features, weight, bias, label = classifier()
    loss = call(features, weight, bias, label)
    once, again = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert torch.equal(once, torch.autograd.grad(call(features, weight, bias, label), weight)[0])


@pytest.mark.parametrize("maps", [False, True], ids=["rows", "maps"])
def test_compiles_as_one_graph(maps: bool) -> None:
    torch._dynamo.reset()

    def step(features: Tensor, weight: Tensor, bias: Tensor, label: Tensor) -> Tensor:
        return call(features * 1.5, weight, bias, label, alpha=None, avg_factor=label.numel()) * 2

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    features, weight, bias, label = classifier()
    for size in (40, 24, 32):
        x, y = features.detach()[:size], label[:size]
        if maps:
            x, y = x.t().reshape(1, 16, 2, -1), y.reshape(1, 2, -1)
        leaves = [x.requires_grad_(), weight, bias]
        found, expected = compiled(*leaves, y), step(*leaves, y)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), rtol=1e-5, atol=1e-7
        )


def test_operator_is_registered_as_it_behaves() -> None:
    features, weight, bias, label = (x.detach() for x in classifier())
    arguments = (label, None, torch.rand(40), torch.rand(9), None, "focal", 2.0, 1.0, 1.0, -100)
    for needs in ([True, True, True], [False, True, False]):
        torch.library.opcheck(
            torch.ops.detloss.linear_sigmoid_sum.default,
            (features, weight, bias, *arguments, needs, torch.float32, 1000),
        )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark of memory is read from Linux")
def test_memory_does_not_grow_with_the_number_of_logits() -> None:
    import subprocess

    script = """
import torch
from detloss import functional as F
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
features, weight = torch.randn(4000, 16, requires_grad=True), torch.randn(4000, 16, requires_grad=True)
label = torch.randint(0, 4001, (4000,))
F.fused_linear_sigmoid_loss(features[:9], weight[:9], None, label[:9].clamp(max=9), memory_budget=2**20).backward()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
F.fused_linear_sigmoid_loss(features, weight, None, label, memory_budget=2**20).backward()
print(status("VmHWM") - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 4000 * 4000 * 4 / 4  # a quarter of one copy of the logits; the plain form holds about ten


def test_module_is_the_function_with_options() -> None:
    features, weight, bias, label = classifier()
    alpha, class_weight = [0.1 * i for i in range(1, 10)], [1.0] * 8 + [2.0]
    loss = FusedLinearFocalLoss(gamma=1.5, alpha=alpha, class_weight=class_weight, ignore_index=3, loss_weight=2.0)
    expected = 2 * call(features, weight, bias, label, gamma=1.5, alpha=alpha, class_weight=class_weight, ignore_index=3)
    torch.testing.assert_close(loss(features, weight, bias, label), expected, rtol=0, atol=0)
    same = detloss.FocalLoss(gamma=1.5, alpha=alpha, class_weight=class_weight, ignore_index=3, loss_weight=2.0)
    logits = nn.functional.linear(features, weight, bias)
    torch.testing.assert_close(loss(features, weight, bias, label), same(logits, label), rtol=1e-5, atol=0)
    weights = torch.rand(40)
    found = loss(features, weight, bias, label, weights, 7.0, ignore_index=4)
    torch.testing.assert_close(found, same(logits, label, weights, 7.0, ignore_index=4), rtol=1e-5, atol=0)
    summed = loss(features, weight, bias, label, reduction_override="sum")
    torch.testing.assert_close(summed, same(logits, label, reduction_override="sum"), rtol=1e-5, atol=0)


def test_module_copies_and_says_its_options() -> None:
    loss = FusedLinearFocalLoss(alpha=[0.5] * 9, reduction="sum", memory_budget=2**20)
    inputs = classifier()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), FusedLinearFocalLoss(**without_type(loss))):
        assert torch.equal(other(*inputs), loss(*inputs)) and repr(other) == repr(loss)
    assert not loss.state_dict()
    assert "FusedLinearFocalLoss" not in detloss.LOSSES


def without_type(loss: FusedLinearFocalLoss) -> dict[str, Any]:
    return {name: value for name, value in loss.to_config().items() if name != "type"}


FEATURES, WEIGHT, BIAS, LABEL = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((FEATURES[0], WEIGHT, BIAS, LABEL), {}, ValueError, r"expected features \[N, D\].*got features \[4\]"),
        ((FEATURES, WEIGHT[:, :3], BIAS, LABEL), {}, ValueError, r"weight \[5, 3\]"),
        ((FEATURES, WEIGHT[..., None, None], BIAS, LABEL), {}, ValueError, r"weight \[5, 4, 1, 1\]"),
        ((torch.zeros(1, 4, 3, 1), torch.zeros(5, 4, 3, 3), BIAS, LABEL), {}, ValueError, r"weight \[5, 4, 3, 3\]"),
        ((FEATURES, WEIGHT, BIAS[:4], LABEL), {}, ValueError, r"bias must be \[C\]; got \[4\]"),
        ((FEATURES, WEIGHT.double(), BIAS, LABEL), {}, TypeError, "weight must have the dtype of features"),
        ((FEATURES.long(), WEIGHT, BIAS, LABEL), {}, TypeError, "features must have a floating-point dtype"),
        ((FEATURES, WEIGHT, BIAS, LABEL[:2]), {}, ValueError, r"pred \[3, 5\] and target \[2\]"),
        ((FEATURES, WEIGHT, BIAS, torch.zeros(3, 5)), {}, ValueError, "target must hold class indices"),
        ((FEATURES, WEIGHT, BIAS, LABEL.float()), {}, TypeError, "integer dtype"),
        ((FEATURES, WEIGHT, BIAS, LABEL + 6), {}, ValueError, "5 for background"),
        ((FEATURES, WEIGHT, BIAS, (LABEL, LABEL)), {}, TypeError, r"target must be a torch\.Tensor"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"loss": "qfl"}, TypeError, r"\(label, score\)"),
        ((FEATURES, WEIGHT, BIAS, (LABEL, torch.full((3,), 2.0))), {"loss": "qfl"}, ValueError, "scores must lie in"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"loss": "focl"}, ValueError, "Did you mean 'focal'"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"reduction": "none"}, ValueError, "as large as the logits"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"reduction": "avg"}, ValueError, "reduction must be one of"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"reduction": "sum", "avg_factor": 2}, ValueError, "avg_factor"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"gamma": -1.0}, ValueError, "gamma"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"alpha": 2.0}, ValueError, "alpha"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"class_weight": [1.0]}, ValueError, "class_weight must hold one number per class"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"memory_budget": 0}, ValueError, "memory_budget"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"sample_weight": torch.ones(3, 5)}, ValueError, "shape of the labels"),
        ((FEATURES, WEIGHT, BIAS, LABEL), {"sample_weight": torch.ones(3, requires_grad=True)}, ValueError, "detach it"),
    ],
)
def test_errors(arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(*arguments, **options)


@pytest.mark.parametrize("options", [{"reduction": "none"}, {"gamma": -1}, {"alpha": 1.5}, {"memory_budget": 0}])
def test_module_checks_its_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FusedLinearFocalLoss(**options)
