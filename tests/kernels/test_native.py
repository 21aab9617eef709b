"""The native kernels against the formulas in float64: every operation, option, layout, instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import kernel_calls as calls
import pytest
import torch
from torch import Tensor

from detloss import functional as F
from detloss import kernels
from detloss.kernels.contract import Call
from detloss.kernels.native import BACKEND
from detloss.kernels.native.library import problem

if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)


def taken(pair: calls.Pair) -> bool:
    return BACKEND.refuses(pair.call) is None


PAIRS = [pair for pair in calls.pairs() if taken(pair)]
ONE_OF_EACH = list({pair.call.op: pair for pair in reversed(PAIRS) if "0.001" not in pair.id}.values())


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors hold NaN, so that what is not written shows; the formulas are not computed by what is tested."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, calls.poisoned(getattr(torch, name)))
    with kernels.use("reference"):
        yield


def total(call: Call, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sum and gradient, which must both be there."""
    result = BACKEND.total(call, factor, None, True, True)
    assert result is not None and result[1] is not None
    return result[0], result[1]


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=lambda number: PAIRS[number].id)
def test_agrees_with_float64(number: int, instruction_set: str) -> None:
    calls.check(BACKEND, PAIRS[number], expand=number % 2 == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("pair", ONE_OF_EACH, ids=lambda pair: pair.id)
def test_low_precision_is_computed_in_single_precision(pair: calls.Pair, dtype: torch.dtype) -> None:
    calls.check(BACKEND, pair, dtype)


def test_every_operation_but_one_form_is_taken() -> None:
    refused = {pair.call.op for pair in calls.pairs() if not taken(pair)}
    assert refused == {"softmax_focal"}
    assert {pair.call.op for pair in PAIRS} == {pair.call.op for pair in calls.pairs()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_conversions_are_those_of_torch(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    pred = bits.view(dtype)
    pred = pred[torch.isfinite(pred)].contiguous()
    loss = BACKEND.elements(Call("l1", pred, target=torch.zeros_like(pred)), True)
    assert loss is not None and torch.equal(loss, pred.float().abs())
    upstream = torch.randn(len(pred)) * torch.logspace(-9, 5, len(pred))
    grad = BACKEND.gradient(Call("l1", pred, target=torch.full_like(pred, -torch.inf)), upstream)
    assert torch.equal(grad, upstream.to(dtype))


SIZES = [(1, 1), (2049, 1), (7, 2048), (3, 5000), (4097, 3), (900, 81)]


@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_any_number_of_rows_and_classes(rows: int, classes: int) -> None:
    pred = torch.randn(rows, classes) * 3
    index = torch.randint(0, classes, (rows,))
    for op, numbers, function in (
        ("sigmoid_focal", (2.0, 0.25, 0.75, 0.0), F.sigmoid_focal_loss),
        ("cross_entropy", (0.0,), F.cross_entropy_loss),
    ):
        call = Call(op, pred, index=index, numbers=numbers)
        calls.check(BACKEND, calls.Pair(op, call, lambda x, f=function: f(x, index, reduction="none")), tolerance=3e-6)
    score = torch.rand(rows)
    call = Call("quality_focal", pred, index=index, score=score, numbers=(2.0,))
    reference = calls.Pair("qfl", call, lambda x: F.quality_focal_loss(x, (index, score), reduction="none"))
    calls.check(BACKEND, reference, tolerance=3e-6)


@pytest.mark.parametrize("pixels", [(1, 2), (1, 2049), (50, 50)])
def test_any_number_of_pixels(pixels: tuple[int, int]) -> None:
    pred, index = torch.randn(2, 3, *pixels), torch.randint(0, 3, (2, *pixels))
    for op, numbers, function in (
        ("sigmoid_focal", (2.0, 0.25, 0.75, 0.0), F.sigmoid_focal_loss),
        ("cross_entropy", (0.0,), F.cross_entropy_loss),
    ):
        call = Call(op, pred, index=index, numbers=numbers)
        calls.check(BACKEND, calls.Pair(op, call, lambda x, f=function: f(x, index, reduction="none")), tolerance=3e-6)


@pytest.mark.parametrize(
    "shape", [(1, 1), (2049, 2), (7, 2048), (3, 5000), (900, 81), (5, 16), (1, 3, 1, 2), (2, 3, 50, 50)], ids=str
)
def test_divergence_from_a_teacher_of_any_size(shape: tuple[int, ...]) -> None:
    teacher = torch.randn(shape) * 3
    for pred, temperature in ((torch.randn(shape) * 3, 1.0), (teacher + 0.1 * torch.randn(shape), 10.0)):
        call = Call("kl_divergence", pred, target=teacher, numbers=(temperature,))
        reference = partial(F.kl_distillation_loss, target=teacher, temperature=temperature, reduction="none")
        calls.check(BACKEND, calls.Pair("kl", call, reference), tolerance=3e-6)


def test_divergence_keeps_the_digits_of_every_row_and_is_never_below_0(instruction_set: str) -> None:
    """Relative to the row, not to the largest: from almost equal to opposite, with a shift that cancels."""
    teacher, noise = torch.randn(300, 17) * 2, torch.randn(300, 17)
    for pred, temperature in (
        *((teacher + apart * noise, t) for apart in (1e-7, 1e-4, 1e-2, 1.0, 5.0) for t in (1.0, 10.0, 100.0)),
        (teacher + 1000 + 0.01 * noise, 4.0),
        (-1e4 * teacher, 1.0),
    ):
        call = Call("kl_divergence", pred, target=teacher, numbers=(temperature,))
        loss, exact = BACKEND.elements(call, True), pred.double().requires_grad_()
        expected = F.kl_distillation_loss(exact, teacher, temperature=temperature, reduction="none")
        (slope,) = torch.autograd.grad(expected.sum(), exact)
        assert loss is not None and (loss >= 0).all()
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=3e-6, atol=0.0)
        error = (total(call)[1] - slope).abs().amax(1)
        assert (error <= 1e-5 * slope.abs().amax(1)).all()


def test_divergence_of_values_that_are_not_finite_is_that_of_the_formula(instruction_set: str) -> None:
    plain, special = (0.3, -1.0, 2.0, 0.5), (0.3, torch.inf, -torch.inf, torch.nan, 1e4, -1e4, 1e30, -1e30)
    rows = [torch.tensor([[first, *plain[1:]], [-torch.inf] * 4, [*plain[:3], first]]) for first in special]
    students = torch.cat([row for row in rows for _ in special])
    teachers = torch.cat([row for _ in special for row in rows])
    for temperature in (1.0, 4.0):
        call = Call("kl_divergence", students, target=teachers, numbers=(temperature,))
        loss, exact = BACKEND.elements(call, True), students.double().requires_grad_()
        expected = F.kl_distillation_loss(exact, teachers, temperature=temperature, reduction="none")
        (slope,) = torch.autograd.grad(expected.sum(), exact)
        assert loss is not None
        torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-5, atol=1e-7, equal_nan=True)
        torch.testing.assert_close(total(call)[1].double(), slope, rtol=1e-5, atol=1e-6, equal_nan=True, check_dtype=False)


@pytest.mark.parametrize("shape", [(4, 5), (1, 5, 3, 8), (25, 5)], ids=str)
@pytest.mark.parametrize(("op", "numbers"), [
    ("sigmoid_focal", (2.0, 0.25, 0.75, 0.0)), ("sigmoid_focal", (1.5, 0.25, 0.75, 0.0)), ("binary_cross_entropy", (0.0,)),
    ("quality_focal", (2.0,)), ("varifocal", (0.75, 2.0, 1.0)),
])  # fmt: skip
def test_small_calls_have_the_bits_of_dense_targets(
    op: str, numbers: tuple[float, ...], shape: tuple[int, ...], instruction_set: str
) -> None:
    places = (*shape[:1], *shape[2:])
    generator = torch.Generator().manual_seed(0)
    pred = 3 * torch.randn(shape, generator=generator)
    index = torch.randint(0, 6, places, generator=generator)  # with background
    score = torch.rand(places, generator=generator) if op in ("quality_focal", "varifocal") else torch.ones(places)
    one_hot = torch.nn.functional.one_hot(index, 6).movedim(-1, 1)[:, :5] * score.unsqueeze(1)
    sparse = {"index": index, "score": score} if op in ("quality_focal", "varifocal") else {"index": index}
    of_position = op == "quality_focal"  # whose loss has no dimension of classes
    for weight in (None, torch.rand(places if of_position else shape, generator=generator)):
        found, expected = (
            total(Call(op, pred, weight=weight, numbers=numbers, **target)) for target in (sparse, {"target": one_hot})
        )
        # Dense targets of single numbers are added up in another order than planes are.
        close = 0.0 if of_position or len(shape) == 2 else 1e-6
        torch.testing.assert_close(found, expected, rtol=close, atol=close)
        ignored = {**sparse, "index": index.masked_fill(torch.arange(index.numel()).view_as(index) % 3 == 0, -100)}
        counted = (ignored["index"] != -100).float()
        counted = counted if of_position else counted.unsqueeze(1).expand(shape)
        rest = counted if weight is None else counted * weight
        found, expected = (
            total(Call(op, pred, weight=w, numbers=numbers, ignore_index=-100, **target))
            for w, target in ((weight, ignored), (rest, {"target": one_hot}))
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_layouts(layout: str) -> None:
    logits = torch.randn(2, 5, 3, 7)
    if layout == "channels_last":
        pred = logits.contiguous(memory_format=torch.channels_last)
    else:
        pred = torch.stack((logits, logits), -1)[..., 0] if layout == "sliced" else torch.randn(5, 42).t()
    index = torch.randint(0, 5, (2, 3, 7) if pred.ndim == 4 else (42,))
    weight = torch.rand(pred.shape).t().contiguous().t() if pred.ndim == 2 else torch.rand(pred.shape)
    for call in (
        Call("sigmoid_focal", pred, index=index, weight=weight, numbers=(2.0, 0.25, 0.75, 0.0)),
        Call("sigmoid_focal", pred, target=weight, numbers=(2.0, 0.25, 0.75, 0.0)),
        Call("binary_cross_entropy", pred, target=weight, weight=weight, numbers=(0.0,)),
        Call("cross_entropy", pred, index=index, numbers=(0.0,)),
        Call("smooth_l1", pred, target=weight, weight=weight, numbers=(0.5,)),
        Call("kl_divergence", pred, target=weight, weight=index.float(), numbers=(4.0,)),
    ):
        found, plain = total(call), total(replace(call, pred=pred.contiguous()))
        torch.testing.assert_close(found[0], plain[0])
        torch.testing.assert_close(found[1], plain[1])
        losses = [BACKEND.elements(replace(call, pred=x), True) for x in (pred, pred.contiguous())]
        torch.testing.assert_close(*losses)


@pytest.mark.parametrize("op", ["sigmoid_focal", "giou", "cross_entropy", "kl_divergence", "l1"])
def test_the_same_bits_for_every_number_of_threads(op: str) -> None:
    numbers = {"sigmoid_focal": (2.0, 0.25, 0.75, 0.0), "giou": (1e-6, 0.0), "cross_entropy": (0.0,), "kl_divergence": (4.0,)}
    pred = torch.rand(60000, 4) * 9
    target = (
        {"index": torch.randint(0, 4, (60000,))} if op in ("sigmoid_focal", "cross_entropy") else {"target": torch.rand(60000, 4)}
    )
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            found.append(total(Call(op, pred, numbers=numbers.get(op, ()), **target)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[0], found[0][0]) and torch.equal(one[1], found[0][1]) for one in found[1:])


def test_what_does_not_count_is_0_whatever_it_holds_and_what_counts_stays_nan() -> None:
    weighted = [
        pair for pair in PAIRS if pair.call.pred.ndim == 2 and pair.call.weight is not None and pair.call.weight.ndim == 1
    ]
    for pair in {pair.call.op: pair for pair in weighted}.values():
        call, pred = pair.call, pair.call.pred.clone()
        pred[0] = torch.nan  # its weight is 0
        sum_of_all, grad = total(replace(call, pred=pred))
        assert torch.isfinite(sum_of_all) and torch.isfinite(grad).all() and not grad[0].any(), pair.id
        pred[5] = torch.nan
        loss = BACKEND.elements(replace(call, pred=pred), True)
        sum_of_all, grad = total(replace(call, pred=pred))
        if call.index is None or call.index[5] < pred.shape[1]:
            assert torch.isnan(sum_of_all) and torch.isnan(grad[5]).any() and loss is not None and torch.isnan(loss[5]).any()
        assert torch.isfinite(grad[6:]).all() and loss is not None and torch.isfinite(loss[6:]).all(), pair.id


def test_a_target_out_of_range_is_left_to_the_reference_only_when_values_are_checked() -> None:
    pred = torch.randn(4, 3)
    for target in (
        {"index": torch.tensor([0, 1, 4, 2])},
        {"index": torch.tensor([0, -1, 1, 2])},
        {"target": torch.tensor([[0.0, 0.5, 1.5]] * 4)},
    ):
        call = Call("sigmoid_focal", pred, numbers=(2.0, 0.25, 0.75, 0.0), **target)
        assert BACKEND.total(call, 1.0, None, True, True) is None and BACKEND.elements(call, True) is None
        unchecked = BACKEND.total(call, 1.0, None, True, False)
        assert unchecked is not None and torch.isfinite(unchecked[0])
    scored = Call(
        "quality_focal", pred, index=torch.tensor([3, 3, 3, 3]), score=torch.tensor([0.0, 2.0, 0.0, 0.0]), numbers=(2.0,)
    )
    assert BACKEND.total(scored, 1.0, None, True, True) is None


def test_a_scale_of_0_gives_0_even_of_nan() -> None:
    for op, numbers, more in (
        ("sigmoid_focal", (2.0, 0.25, 0.75, 0.0), {"index": torch.tensor([0, 1, 2])}),
        ("cross_entropy", (0.0,), {"index": torch.tensor([0, 1, 2])}),
        ("giou", (1e-6, 0.0), {"target": torch.rand(3, 4)}),
        ("kl_divergence", (4.0,), {"target": torch.rand(3, 4)}),
    ):
        call = Call(op, torch.full((3, 4), torch.nan), numbers=numbers, **more)
        for factor, divisor in ((0.0, None), (1.0, torch.tensor(0)), (1.0, torch.tensor([0.0]))):
            result = BACKEND.total(call, factor, divisor, True, True)
            assert result is not None and result[1] is not None and result[0] == 0 and not result[1].any()


def test_a_scale_beyond_single_precision_is_an_infinity() -> None:
    call = Call("l1", torch.tensor([3.0, 1.0, 2.0]), target=torch.tensor([1.0, 1.0, 4.0]))
    found, grad = total(call, 1e39)
    assert found == torch.inf and grad.tolist()[::2] == [torch.inf, -torch.inf]
