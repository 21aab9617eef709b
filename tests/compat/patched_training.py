"""The same training twice, with and without a patch: what the patch tests of all frameworks share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import detloss

Losses = dict[str, Tensor]


def train(
    build: Callable[[], nn.Module], step: Callable[[Any, int], Losses], steps: int, rate: float = 0.01
) -> list[dict[str, float]]:
    """The losses of every step of SGD with momentum. The seed is set once before the model is built and once after."""
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate, momentum=0.9)
    torch.manual_seed(1)
    history = []
    for index in range(steps):
        optimizer.zero_grad()
        losses = step(model, index)
        total = sum(losses.values(), torch.zeros(()))
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    return history


def compare(
    framework: str, build: Callable[[], nn.Module], step: Callable[[Any, int], Losses], steps: int, rate: float = 0.01
) -> list[dict[str, float]]:
    """Train without and with the patch, and check that all losses of all steps agree to 1e-4."""
    before = train(build, step, steps, rate)
    with detloss.patch(framework):
        after = train(build, step, steps, rate)
    assert len(before) == steps and before[0] != before[-1], "the model must learn"
    for index, (want, got) in enumerate(zip(before, after, strict=True)):
        assert set(got) == set(want)
        for name, value in want.items():
            assert abs(got[name] - value) <= 1e-4 * abs(value) + 1e-7, f"step {index}, {name}: {got[name]} and not {value}"
    return after


def compare_each_step(
    framework: str, build: Callable[[], nn.Module], step: Callable[[Any, int], Losses], steps: int, rate: float
) -> None:
    """Train without the patch, and check every step with it, from the same weights: losses and gradients to 1e-5.

    A training turns the rounding of one step into other weights in the next; this does not.
    """
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate, momentum=0.9)
    for index in range(steps):
        optimizer.zero_grad()
        patched = copy.deepcopy(model)
        with detloss.patch(framework):
            got = step(patched, index)
            sum(got.values(), torch.zeros(())).backward()
        want = step(model, index)
        sum(want.values(), torch.zeros(())).backward()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-7, msg=f"step {index}, {name}")
        slopes = [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in (patched, model)]
        assert (slopes[0] - slopes[1]).norm() <= 1e-5 * slopes[1].norm(), f"step {index}: the gradients differ"
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
