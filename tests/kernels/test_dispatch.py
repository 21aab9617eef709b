"""Which implementation runs, and that every way to call a loss takes a correct one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import detloss
from detloss import functional as F
from detloss import kernels
from detloss.kernels.native.library import problem

needs_library = pytest.mark.skipif(problem() is not None, reason=f"no native library: {problem()}")
BOXES = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 5.0, 9.0], [3.0, 3.0, 4.0, 8.0]])
LABELS = torch.tensor([0, 3, 1])
TEACHER = torch.tensor([[0.0, 1.0, -2.0, 0.5, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0], [-4.0, 9.0, 0.0, 2.0, 2.0]])

# One loss of each family: predictions to a scalar or element-wise loss.
Function = Callable[..., Tensor]
FAMILIES: dict[str, tuple[Callable[[], Tensor], Function]] = {
    "focal": (lambda: torch.randn(3, 3), lambda x, **o: F.sigmoid_focal_loss(x, LABELS, **o)),
    "qfl": (lambda: torch.randn(3, 3), lambda x, **o: F.quality_focal_loss(x, (LABELS, torch.tensor([0.2, 0.0, 1.0])), **o)),
    "ce": (lambda: torch.randn(3, 4), lambda x, **o: F.cross_entropy_loss(x, LABELS, **o)),
    "dfl": (lambda: torch.randn(3, 5), lambda x, **o: F.distribution_focal_loss(x, torch.tensor([0.0, 1.3, 4.0]), **o)),
    "kl": (lambda: torch.randn(3, 5), lambda x, **o: F.kl_distillation_loss(x, TEACHER, temperature=2.0, **o)),
    "giou": (lambda: BOXES + torch.rand(3, 4), lambda x, **o: F.giou_loss(x, BOXES, **o)),
    "smooth-l1": (lambda: torch.randn(3, 4), lambda x, **o: F.smooth_l1_loss(x, BOXES, **o)),
    "huber": (lambda: torch.randn(3, 4), lambda x, **o: F.huber_loss(x, BOXES, **o)),
}
families = pytest.mark.parametrize("family", FAMILIES)
reductions = pytest.mark.parametrize("reduction", ["none", "sum", "mean"])


@pytest.fixture(autouse=True)
def native() -> Any:
    """Tests here ask for the native kernels, where there are any, whatever the environment says."""
    with kernels.use("auto" if problem() else "native"):
        yield


def gradient(function: Callable[[Tensor], Tensor], pred: Tensor) -> Tensor:
    leaf = pred.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


@needs_library
def test_backend_says_what_runs_and_why() -> None:
    with kernels.use("auto"):
        assert str(kernels.backend()) == "native: tensors on cpu"
        for loss in (detloss.FocalLoss(), detloss.GIoULoss, "giou_loss", "FocalLoss", F.quality_focal_loss, F.l1_loss):
            assert kernels.backend(loss, torch.zeros(2, 4)).name == "native", loss
        assert str(kernels.backend("giou_loss", torch.zeros(2, 4))) == "native: giou on cpu"
        assert str(kernels.backend("giou_loss", torch.zeros(2, 4).double())) == "reference: float64 predictions"
        assert str(kernels.backend("giou_loss", torch.zeros(0, 4))) == "reference: empty predictions"
        assert str(kernels.backend(detloss.DiceLoss(), torch.zeros(2, 9))) == "native: tversky on cpu"
        assert str(kernels.backend(detloss.DiceLoss(activated=True))) == "reference: DiceLoss has no kernel"
        assert str(kernels.backend(detloss.LovaszHingeLoss())) == "reference: LovaszHingeLoss has no kernel"
        assert str(kernels.backend("giou", torch.zeros(2, 4, device="meta"))) == "reference: no kernels for device 'meta'"
    with kernels.use("reference"):
        assert str(kernels.backend()) == "reference: asked for"
    assert str(kernels.backend()) == "native: asked for"


def test_backend_knows_the_functions_that_the_options_of_a_module_choose() -> None:
    from detloss.kernels.selection import operation_of

    expected = {
        detloss.FocalLoss(): "sigmoid_focal", detloss.FocalLoss(use_sigmoid=False): "softmax_focal",
        detloss.CrossEntropyLoss(): "cross_entropy", detloss.CrossEntropyLoss(use_sigmoid=True): "binary_cross_entropy",
        detloss.IoULoss(): "iou", detloss.SmoothL1Loss(): "smooth_l1", detloss.DistributionFocalLoss(): "distribution_focal",
        detloss.KnowledgeDistillationKLDivLoss(): "kl_divergence", detloss.LocalizationDistillationLoss(): "kl_divergence",
        detloss.VarifocalLoss(): "varifocal", detloss.HuberLoss(): "huber", detloss.BalancedL1Loss(): "",
        detloss.DiceLoss(): "tversky", detloss.TverskyLoss(): "tversky", detloss.TverskyLoss(activated=True): "",
        F.dice_loss: "tversky", detloss.ProbIoULoss(): "probiou", detloss.KLDLoss(): "",
    }  # fmt: skip
    assert {loss: operation_of(loss) for loss in expected} == expected
    functions = {F.sigmoid_focal_loss: "sigmoid_focal", F.ciou_loss: "ciou", F.centerness_loss: "binary_cross_entropy"}
    functions |= {F.kl_distillation_loss: "kl_divergence", F.localization_distillation_loss: "kl_divergence"}
    assert {function: operation_of(function) for function in functions} == functions


def test_an_unknown_mode_is_an_error_that_names_the_modes() -> None:
    with pytest.raises(ValueError, match="'native'"), kernels.use("natvie"):  # type: ignore[arg-type]
        pass


def test_what_is_used_inside_is_undone_after_an_error() -> None:
    before = kernels.backend()
    with pytest.raises(KeyError), kernels.use("reference"):
        raise KeyError
    assert kernels.backend() == before


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_environment_variable() -> None:
    show = "import detloss.kernels as k; print(k.backend().name)"
    assert run_python(show, DETLOSS_KERNELS="reference").stdout.strip() == "reference"
    assert run_python(show, DETLOSS_KERNELS="auto").stdout.strip() == ("reference" if problem() else "native")
    assert "'auto', 'reference', 'native', 'triton'" in run_python(show, DETLOSS_KERNELS="fast").stderr


def test_a_back_end_asked_for_that_is_not_there_is_an_error_and_without_asking_the_reference() -> None:
    hide = "import detloss.kernels.native.library as l; l._candidates = lambda: []; import detloss.kernels as k\n"
    asked = run_python(hide + "k.backend()", DETLOSS_KERNELS="native")
    assert (
        "RuntimeError: detloss.kernels: the native kernels were asked for but cannot run: detloss was installed" in asked.stderr
    )
    step = "import torch, detloss; x = torch.randn(3, 2, requires_grad=True)\n"
    step += "detloss.FocalLoss()(x, torch.tensor([0, 1, 2])).backward(); print(k.backend('FocalLoss', x))"
    shown = run_python(hide + step, DETLOSS_KERNELS="auto").stdout
    assert shown.startswith("reference: detloss was installed without a C++ compiler")


@families
@reductions
def test_equals_the_reference(family: str, reduction: str) -> None:
    make, function = FAMILIES[family]
    pred, weight = make(), torch.tensor([0.5, 0.0, 2.0])
    for options in ({}, {"weight": weight}, {"weight": weight, "avg_factor": 3.0}, {"avg_factor": torch.tensor(0)}):
        if reduction != "mean" and "avg_factor" in options:
            continue
        loss = partial(function, reduction=reduction, **options)
        found, slope = loss(pred), gradient(lambda x, f=loss: f(x).sum(), pred)
        with kernels.use("reference"):
            torch.testing.assert_close(found, loss(pred))
            torch.testing.assert_close(slope, gradient(lambda x, f=loss: f(x).sum(), pred))


@families
@reductions
def test_double_backward(family: str, reduction: str) -> None:
    make, function = FAMILIES[family]
    pred = make()

    def penalty(x: Tensor) -> Tensor:
        loss = function(x, reduction=reduction).square().sum()
        return torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()

    found = gradient(penalty, pred)
    torch.testing.assert_close(found, gradient(penalty, pred.double()).float(), rtol=1e-3, atol=1e-4)


@families
def test_a_graph_that_is_kept_gives_its_gradient_again(family: str) -> None:
    make, function = FAMILIES[family]
    pred = make().requires_grad_()
    for reduction in ("sum", "none"):
        loss = function(pred, reduction=reduction).sum()
        scaled = 2.5 * loss
        first = torch.autograd.grad(scaled, pred, retain_graph=True)[0]
        kept = first.clone()
        plain = torch.autograd.grad(loss, pred, retain_graph=True)[0]
        last = torch.autograd.grad(scaled, pred)[0]
        assert torch.equal(first, kept) and torch.equal(last, kept)
        torch.testing.assert_close(plain * 2.5, kept)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, pred)


@families
def test_predictions_changed_in_place_before_the_backward_pass_are_an_error(family: str) -> None:
    make, function = FAMILIES[family]
    pred = make().requires_grad_() * 1
    loss = function(pred, reduction="sum")
    pred.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@families
def test_functorch_transforms(family: str) -> None:
    make, function = FAMILIES[family]
    pred = make()
    expected = gradient(lambda x: function(x, reduction="sum"), pred)
    torch.testing.assert_close(torch.func.grad(lambda x: function(x, reduction="sum"))(pred), expected)
    several = torch.stack((pred, pred * 0.5))
    mapped = torch.func.vmap(torch.func.grad(lambda x: function(x, reduction="sum")))(several)
    torch.testing.assert_close(mapped[0], expected)
    _, tangent = torch.func.jvp(lambda x: function(x, reduction="sum"), (pred,), (torch.ones_like(pred),))
    torch.testing.assert_close(tangent, expected.sum(), rtol=1e-4, atol=1e-5)


@families
def test_autocast_and_low_precision(family: str) -> None:
    make, function = FAMILIES[family]
    pred = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = function(pred.bfloat16(), reduction="sum")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, function(pred.bfloat16().float(), reduction="sum"))
    assert gradient(lambda x: function(x, reduction="sum"), pred.bfloat16()).dtype == torch.bfloat16


def test_targets_and_weights_that_need_a_gradient_get_one() -> None:
    pred, score = torch.randn(2, 3), torch.rand(2, requires_grad=True)
    F.quality_focal_loss(pred, (torch.tensor([0, 2]), score)).backward()
    weight = torch.rand(2, requires_grad=True)
    F.giou_loss(BOXES[:2] + 1, BOXES[:2], weight=weight).backward()
    average = torch.tensor(2.0, requires_grad=True)
    F.giou_loss(BOXES[:2] + 1, BOXES[:2], avg_factor=average).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (score, weight, average))


@families
def test_without_gradient_there_is_none(family: str) -> None:
    make, function = FAMILIES[family]
    pred = make().requires_grad_()
    for reduction in ("none", "sum"):
        with torch.no_grad():
            assert not function(pred, reduction=reduction).requires_grad
        with torch.inference_mode():
            function(pred, reduction=reduction)
        assert not function(pred.detach(), reduction=reduction).requires_grad


def test_errors_about_values_are_those_of_the_reference() -> None:
    pred = torch.randn(2, 3, requires_grad=True)
    for loss in (F.sigmoid_focal_loss, F.binary_cross_entropy_loss):
        with pytest.raises(ValueError, match=r"class indices must be 0…2 for the classes, 3 for background.*got 4 at \[1\]"):
            loss(pred, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]; got 1.5 at \[0\]"):
        F.varifocal_loss(pred, (torch.tensor([0, 1]), torch.tensor([1.5, 0.5])))
    with pytest.raises(ValueError, match=r"weight must have the leading dimensions"):
        F.sigmoid_focal_loss(pred, torch.tensor([0, 1]), weight=torch.ones(3))


VIEWS = {
    "giou": lambda x: F.giou_loss(x.view(-1, 4) + torch.tensor([0.0, 0.0, 2.0, 2.0]), BOXES[:3] + 0.3, reduction="sum"),
    "giou of a view": lambda x: F.giou_loss(x.view(-1, 4), BOXES[:3] + 0.3, reduction="sum"),
    "dice": lambda x: F.dice_loss(x.view(3, 2, 2), torch.eye(3, 4).view(3, 2, 2), reduction="sum"),
    "focal": lambda x: F.sigmoid_focal_loss(x.view(3, 4), torch.eye(3, 4), reduction="sum"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_kept_graph_gives_the_same_gradient_whatever_becomes_of_the_last_one(name: str) -> None:
    """Gradients of a leaf are changed in place: by the next pass, by zero_grad, by clipping."""
    x = torch.linspace(0.1, 3.0, 12).requires_grad_()
    expected = torch.autograd.grad(VIEWS[name](x), x)[0].clone()
    loss = VIEWS[name](x)
    for _ in range(3):
        loss.backward(retain_graph=True)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 3 * expected)
    x.grad.zero_()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(x.grad, expected)
    torch.autograd.grad(loss, x, retain_graph=True)[0].mul_(5)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@needs_library
def test_an_ignored_index_that_no_index_can_be() -> None:
    x, index = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    for loss in (F.cross_entropy_loss, F.sigmoid_focal_loss):
        for ignored, same in ((2**70, -100), (-(2**70), -100), (1.0, 1)):
            assert torch.equal(loss(x, index, ignore_index=ignored), loss(x, index, ignore_index=same))
