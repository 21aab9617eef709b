"""Checks of metadata and of values: what they say, and where they must not look."""

from __future__ import annotations

import runpy

import pytest
import torch

import detloss
from detloss import functional as F
from detloss import values
from detloss.checks import check_non_negative, check_option, check_positive, did_you_mean, upcast
from detloss.values import check_unit_interval, value_checks_enabled


def test_options() -> None:
    check_option("f", "mode", "log", ("log", "linear"))
    with pytest.raises(ValueError, match=r"f: mode must be one of 'log', 'linear'; got 'liner'\. Did you mean 'linear'\?"):
        check_option("f", "mode", "liner", ("log", "linear"))
    with pytest.raises(ValueError, match=r"got None\.$"):
        check_option("f", "mode", None, ("log", "linear"))
    assert did_you_mean("CIOULOSS", ["CIoULoss", "L1Loss"]) == " Did you mean 'CIoULoss'?"
    assert did_you_mean("zebra", ["CIoULoss"]) == ""


def test_numbers() -> None:
    check_non_negative("f", gamma=0, beta=2.5)
    check_positive("f", gamma=1e-9)
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="f: gamma must be a finite number >= 0"):
            check_non_negative("f", gamma=value)
    for value in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="f: gamma must be a finite number > 0"):
            check_positive("f", gamma=value)
    for value in ("1", None, True, torch.tensor(1.0)):
        with pytest.raises(TypeError, match="f: gamma must be a number"):
            check_non_negative("f", gamma=value)


def test_upcast() -> None:
    for dtype, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert upcast(torch.zeros(1, dtype=dtype)).dtype == expected


def test_another_device_is_an_error() -> None:
    with pytest.raises(ValueError, match="target must be on the device of pred, cpu; got meta"):
        F.l1_loss(torch.zeros(2, 4), torch.zeros(2, 4, device="meta"))
    with pytest.raises(ValueError, match="weight must be on the device of pred"):
        detloss.reduce_loss(torch.zeros(2, 4), weight=torch.zeros(2, device="meta"))
    with pytest.raises(ValueError, match="target must be on the device of pred"):
        F.sigmoid_focal_loss(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long, device="meta"))


def test_values_are_read_on_the_cpu_only() -> None:
    assert value_checks_enabled(torch.zeros(1))
    assert value_checks_enabled()
    assert not value_checks_enabled(torch.zeros(1, device="meta"))
    assert not value_checks_enabled(torch.zeros(1), torch.zeros(1, device="meta"))
    seen: list[bool] = []
    torch.func.vmap(lambda x: seen.append(value_checks_enabled(x)) or x)(torch.zeros(2))
    torch.func.grad(lambda x: seen.append(value_checks_enabled(x)) or x)(torch.zeros(()))
    with torch._subclasses.FakeTensorMode():
        seen.append(value_checks_enabled(torch.zeros(1)))
    assert seen == [False, False, False]
    check_unit_interval("f", "x", torch.full((2,), 7.0, device="meta"))


class Accelerator(torch.Tensor):
    """Stands in for a tensor on an accelerator."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def test_on_an_accelerator_values_are_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_state", {"accelerator": False})
    tensor = torch.zeros(1).as_subclass(Accelerator)
    assert not value_checks_enabled(tensor)
    detloss.set_value_checks(True)
    assert value_checks_enabled(tensor)
    detloss.set_value_checks(False)
    assert not value_checks_enabled(tensor)


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_environment_variable(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("DETLOSS_VALUE_CHECKS", value)
    assert runpy.run_path(str(values.__file__))["_state"] == {"accelerator": expected}


def test_compiled_code_does_not_check_values() -> None:
    torch.compiler.reset()

    def loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.centerness_loss(pred, target)

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(2), torch.tensor([0.0, 2.0])).isfinite()
    with pytest.raises(ValueError, match=r"dense targets must lie in \[0, 1\]; got 2 at \[1\]"):
        loss(torch.zeros(2), torch.tensor([0.0, 2.0]))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:FutureWarning")
def test_a_traced_loss_does_not_check_values() -> None:
    traced = torch.jit.trace(lambda pred, target: F.giou_loss(pred, target, avg_factor=pred.sum()), (torch.ones(2, 4),) * 2)
    assert traced(torch.ones(3, 4), torch.ones(3, 4)) == 0


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("inf"), float("-inf")])
def test_a_value_out_of_range_is_found_beside_nan(bad: float) -> None:
    check_unit_interval("f", "scores", torch.tensor([0.0, float("nan"), 1.0]))
    check_unit_interval("f", "scores", torch.tensor([False, True]))
    for x in (torch.tensor([0.0, bad, 1.0]), torch.tensor([float("nan"), bad]), torch.tensor([bad, float("nan")])):
        with pytest.raises(ValueError, match=r"f: scores must lie in \[0, 1\]; got .* at \[\d\]"):
            check_unit_interval("f", "scores", x)
