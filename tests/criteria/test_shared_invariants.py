"""What must hold for every criterion, whatever its family: one row in tests/criteria_cases*.py and it is tested here."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from criteria_all import CASES
from criteria_cases import EXTENT, NUM_CLASSES, Case, fresh, gradients, leaves, map_tree
from torch import Tensor

from detloss import CRITERIA, LossDict

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_assigning_case = pytest.mark.parametrize("case", [case for case in CASES if case.assigns], ids=lambda case: case.name)


def equal(a: LossDict, b: LossDict, rtol: float = 1e-12) -> None:
    """The same terms, up to the order of additions in float64."""
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=1e-15)


def batch(case: Case, counts: tuple[int, ...] = (4, 0, 3), dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    """Criterion, predictions and targets, always the same ones."""
    torch.manual_seed(0)
    return case.make(), case.predict(len(counts), dtype), case.targets(counts)


def test_every_registered_criterion_has_a_row() -> None:
    rows = {type(case.make()).__name__ for case in CASES}
    assert set(CRITERIA) == rows


@every_case
def test_terms_are_named_finite_scalars_that_sum_to_the_total(case: Case) -> None:
    criterion, predictions, targets = batch(case)
    losses = case.call(criterion, predictions, targets)
    assert isinstance(losses, LossDict)
    assert all(value.shape == () and torch.isfinite(value) and value.dtype == torch.float64 for value in losses.values())
    torch.testing.assert_close(losses.total_loss, sum(losses.values()), rtol=1e-12, atol=0)
    assert losses.metrics["num_pos"] > 0 and not losses.metrics["num_pos"].requires_grad
    assert all(torch.isfinite(g).all() for g in gradients(losses.total_loss, predictions))


@every_case
def test_train_and_eval_mode_are_alike(case: Case) -> None:
    criterion, predictions, targets = batch(case)
    equal(case.call(criterion.eval(), predictions, targets), case.call(criterion.train(), predictions, targets))


@every_case
def test_a_call_changes_neither_inputs_nor_the_next_call(case: Case) -> None:
    criterion, predictions, targets = batch(case)
    before = [leaf.detach().clone() for leaf in leaves(predictions)], [{k: v.clone() for k, v in t.items()} for t in targets]
    first = case.call(criterion, predictions, targets)
    equal(case.call(criterion, predictions, targets), first)
    assert all(torch.equal(a, b) for a, b in zip(before[0], leaves(predictions), strict=True))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(before[1], targets, strict=True) for k in a)


@every_case
@pytest.mark.parametrize("counts", [(0, 0), (0,), ()])
def test_no_objects_at_all(case: Case, counts: tuple[int, ...]) -> None:
    """Every term is finite and connected, and only the background pays."""
    criterion, predictions, targets = batch(case, counts)
    losses = case.call(criterion, predictions, targets)
    assert losses.metrics["num_pos"] == 0
    for name in case.box_terms:
        assert losses[name] == 0, name
    assert all(torch.isfinite(g).all() for g in gradients(losses.total_loss, predictions))


@every_case
def test_duplicating_the_batch_changes_no_term_and_halves_each_gradient(case: Case) -> None:
    criterion, predictions, targets = batch(case)
    twice = fresh(predictions, lambda x: torch.cat((x, x)))
    once, doubled = case.call(criterion, predictions, targets), case.call(criterion, twice, targets + targets)
    equal(doubled, once, rtol=1e-11)
    for a, b in zip(gradients(once.total_loss, predictions), gradients(doubled.total_loss, twice), strict=True):
        torch.testing.assert_close(torch.cat((a, a)) / 2, b, rtol=1e-9, atol=1e-15)


@every_case
def test_the_order_of_images(case: Case) -> None:
    criterion, predictions, targets = batch(case)
    order = [2, 0, 1]
    again = case.call(criterion, fresh(predictions, lambda x: x[order]), [targets[i] for i in order])
    equal(again, case.call(criterion, predictions, targets), rtol=1e-11)


@every_assigning_case
def test_the_order_of_objects(case: Case) -> None:
    criterion, predictions, targets = batch(case)
    expected = case.call(criterion, predictions, targets)
    for _ in range(3):
        shuffles = [torch.randperm(len(t["labels"])) for t in targets]
        permuted = [
            {key: value[order] if len(value) == len(order) else value for key, value in t.items()}
            for t, order in zip(targets, shuffles, strict=True)
        ]
        equal(case.call(criterion, predictions, permuted), expected, rtol=1e-11)


@every_assigning_case
@pytest.mark.parametrize("kind", ["crowd", "region"])
def test_an_ignored_object_never_becomes_a_positive(case: Case, kind: str) -> None:
    """It may take background away; what positives pay stays the same."""
    criterion, predictions, targets = batch(case)
    expected = case.call(criterion, predictions, targets)
    extra = torch.tensor([[0.0, 0.0, EXTENT * 0.75, EXTENT * 0.75]], dtype=targets[0]["boxes"].dtype)
    count, first = len(targets[0]["labels"]), targets[0]
    with_crowd = {
        **first,
        "boxes": torch.cat((extra, first["boxes"])),
        "labels": torch.cat((torch.zeros(1, dtype=torch.long), first["labels"])),
        "iscrowd": torch.tensor([1] + [0] * count),
    }
    if "masks" in first:
        with_crowd["masks"] = torch.cat((torch.ones_like(first["masks"][:1]), first["masks"]))
    changed = with_crowd if kind == "crowd" else {**first, "ignore_boxes": extra}
    got = case.call(criterion, predictions, [changed, *targets[1:]])
    for name in case.box_terms:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-11, atol=1e-15)
    assert got.metrics["num_pos"] == expected.metrics["num_pos"]


@every_case
def test_a_nan_in_one_image_leaves_the_gradients_of_the_others_finite(case: Case) -> None:
    criterion, predictions, targets = batch(case, (3, 2, 3))
    for index in range(len(leaves(predictions))):
        seen = iter(range(len(leaves(predictions))))

        def poison(x: Tensor, hit: int = index, number=seen) -> Tensor:  # type: ignore[no-untyped-def]
            x = x.clone()
            if next(number) == hit:
                x[1].view(-1)[:: max(1, x[1].numel() // 7)] = float("nan")
            return x

        poisoned = fresh(predictions, poison)
        losses = case.call(criterion, poisoned, targets)
        for grad, leaf in zip(gradients(losses.total_loss, poisoned), leaves(poisoned), strict=True):
            assert torch.isfinite(grad[[0, 2]]).all(), (index, leaf.shape)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    criterion, predictions, targets = batch(case, dtype=torch.float32)
    low = fresh(predictions, lambda x: x.to(dtype))
    exact = fresh(low, lambda x: x.float())
    got, want = case.call(criterion, low, targets), case.call(criterion, exact, targets)
    for name in want:
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-7)
    assert all(g.dtype == dtype and torch.isfinite(g).all() for g in gradients(got.total_loss, low))


@every_case
def test_weights_by_name_and_by_the_loss(case: Case) -> None:
    criterion, predictions, targets = batch(case)
    plain = case.call(criterion, predictions, targets)
    for name in criterion.term_names:
        doubled = case.call(case.make(weights={name: 2 * criterion.weights[name]}), predictions, targets)
        for term in plain:
            if term == name:
                torch.testing.assert_close(doubled[term], 2 * plain[term], rtol=1e-12, atol=0)
                torch.testing.assert_close(doubled.unweighted[term], plain.unweighted[term], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="no term 'loss_bux'"):
        case.make(weights={"loss_bux": 1.0})


@every_case
def test_describe_says_what_each_term_is(case: Case) -> None:
    criterion = case.make()
    text = criterion.describe()
    for name in criterion.term_names:
        assert f"{name} = " in text
    for fact in ("formula:", "divided by:", "eps:", "background:", "paper:", "preset:"):
        assert text.count(fact) >= len(criterion.term_names)


@every_assigning_case
def test_explain_counts_every_object_once_and_gives_reasons(case: Case) -> None:
    criterion, predictions, targets = batch(case, (5, 0, 3))
    targets[0]["boxes"][0] = torch.tensor([900.0, 900.0, 904.0, 904.0])  # off the image
    explained = case.call(criterion.explain, predictions, targets)
    losses = case.call(criterion, predictions, targets)
    assert len(explained.objects) == 8
    assert sum(r.positives for r in explained.objects) == losses.metrics["num_pos"] == sum(explained.level_histogram)
    assert all(sum(r.per_level) == r.positives for r in explained.objects)
    assert all((r.reason is None) == (r.positives > 0) for r in explained.objects)
    assert str(explained).count("\n") == 2 + 8
    assert sum(explained.reasons.values()) == len(explained.unassigned)


@every_assigning_case
def test_explain_draws_a_picture(case: Case) -> None:
    pytest.importorskip("matplotlib")
    criterion, predictions, targets = batch(case)
    figure = case.call(criterion.explain, predictions, targets).plot(0, torch.rand(3, 64, 64))
    assert len(figure.axes[0].texts) == 4 and figure.axes[0].images


@every_case
def test_micro_batches_add_up_to_the_whole_batch(case: Case) -> None:
    criterion, predictions, targets = batch(case, (4, 0, 1, 3))
    whole = case.call(criterion, predictions, targets)
    expected = gradients(whole.total_loss, predictions)
    parts = [(fresh(predictions, lambda x, i=i: x[2 * i : 2 * i + 2]), targets[2 * i : 2 * i + 2]) for i in (0, 1)]
    counts = [case.call(criterion.count, part, own) for part, own in parts]
    with criterion.accumulate(counts):
        losses = [case.call(criterion, part, own) for part, own in parts]
    for name in whole:
        torch.testing.assert_close(losses[0][name] + losses[1][name], whole[name], rtol=1e-11, atol=1e-15)
    got = [gradients(one.total_loss, part) for one, (part, _) in zip(losses, parts, strict=True)]
    for a, b, want in zip(*got, expected, strict=True):
        torch.testing.assert_close(torch.cat((a, b)), want, rtol=1e-9, atol=1e-15)
    equal(case.call(criterion, predictions, targets), whole)  # and is over after the context


@every_case
def test_state_dict_round_trip_with_a_moving_average(case: Case) -> None:
    _, predictions, targets = batch(case)
    averaged = case.make(normalizer={"mode": "ema", "momentum": 0.5, "initial": 8.0})
    first, second = (case.call(averaged, predictions, targets) for _ in range(2))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    resumed = case.make(normalizer={"mode": "ema", "momentum": 0.5, "initial": 8.0})
    resumed.load_state_dict(averaged.state_dict())
    equal(case.call(resumed, predictions, targets), case.call(averaged, predictions, targets))
    frozen = case.call(averaged.eval(), predictions, targets)
    equal(case.call(averaged, predictions, targets), frozen)  # validation does not move the average


FIRST_OF_CLASS = list({type(case.make()).__name__: case for case in reversed(CASES)}.values())  # tracing one takes seconds


@pytest.mark.parametrize("case", FIRST_OF_CLASS, ids=lambda case: case.name)
def test_torch_compile_inside_a_model_step(case: Case) -> None:
    if not case.compiles:
        pytest.skip(case.note)
    criterion, predictions, targets = batch(case, (3, 0), dtype=torch.float32)

    def step(scale: Tensor, tree, truth):  # type: ignore[no-untyped-def]
        return case.call(criterion, map_tree(lambda x: x * scale, tree), truth).total_loss

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    scale, other = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    expected, got = step(scale, predictions, targets), compiled(other, predictions, targets)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    want, found = torch.autograd.grad(expected, scale), torch.autograd.grad(got, other)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@every_assigning_case
def test_wrong_targets_are_named(case: Case) -> None:
    criterion, predictions, targets = batch(case, (2, 2))
    bad = [targets[0], {**targets[1], "labels": torch.tensor([0, NUM_CLASSES])}]
    with pytest.raises(ValueError, match=r"targets\[1\]\['labels'\]\[1\] must be in 0…2"):
        case.call(criterion, predictions, bad)
    with pytest.raises(ValueError, match="one target per image"):
        case.call(criterion, predictions, targets[:1])
    with pytest.raises(TypeError, match="list of dicts"), suppress(AttributeError):
        case.call(criterion, predictions, targets[0])
