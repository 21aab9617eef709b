"""Fused classifier and loss: equal to the loss of the logits, in value and gradients, whatever the tiles are."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as torch_f
from torch import Tensor

import detloss.kernels
from detloss import functional as F
from detloss.kernels.linear_cells import BUFFERS

ROWS, CLASSES, DEPTH = 11, 7, 5
IGNORED = -7
LOSSES = ("focal", "bce", "qfl")
ALPHAS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


class Problem(NamedTuple):
    """A classifier with its input and targets."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    label: Tensor
    score: Tensor
    sample_weight: Tensor

    def leaves(self) -> list[Tensor]:
        return [x for x in (self.features, self.weight, self.bias) if x is not None and x.requires_grad]

    def to(self, dtype: torch.dtype) -> Problem:
        leaves = (None if x is None else x.detach().to(dtype).requires_grad_(x.requires_grad) for x in self[:3])
        return Problem(*leaves, *self[3:])  # type: ignore[arg-type]


def problem(maps: bool = False, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> Problem:
    generator = torch.Generator().manual_seed(3)
    places, pixels = ((2, 3, rows), (1, 1)) if maps else ((rows,), ())
    shape = (places[0], DEPTH, *places[1:])
    label = torch.randint(0, CLASSES + 1, places, generator=generator)
    sample_weight = torch.rand(places, generator=generator)
    if label.numel():
        label.view(-1)[1], sample_weight.view(-1)[2] = IGNORED, 0.0
    return Problem(
        torch.randn(shape, dtype=dtype, generator=generator).requires_grad_(),
        torch.randn((CLASSES, DEPTH, *pixels), dtype=dtype, generator=generator).requires_grad_(),
        torch.randn(CLASSES, dtype=dtype, generator=generator).requires_grad_(),
        label,
        torch.rand(places, generator=generator),
        sample_weight,
    )


def fused(p: Problem, loss: str = "focal", **options: Any) -> Tensor:
    target = (p.label, p.score) if loss == "qfl" else p.label
    options = {"sample_weight": p.sample_weight, "ignore_index": IGNORED, **options}
    return F.fused_linear_sigmoid_loss(p.features, p.weight, p.bias, target, loss=loss, **options)  # type: ignore[arg-type]


def plain(p: Problem, loss: str = "focal", **options: Any) -> Tensor:
    """The classifier, then the loss of its logits."""
    rows = p.features.movedim(1, -1).reshape(-1, p.features.shape[1])
    logits = torch_f.linear(rows, p.weight.flatten(1), p.bias)
    options = {"weight": p.sample_weight.flatten(), "ignore_index": IGNORED, **options}
    if loss == "qfl":
        gamma = options.pop("gamma", 2.0)
        return F.quality_focal_loss(logits, (p.label.flatten(), p.score.flatten()), beta=gamma, **options)
    if loss == "bce":
        options.pop("gamma", None)
        return F.binary_cross_entropy_loss(logits, p.label.flatten(), **options)
    return F.sigmoid_focal_loss(logits, p.label.flatten(), **options)


def check(p: Problem, loss: str, tolerance: float, tile: dict[str, Any], **options: Any) -> None:
    """Value and gradients, the upstream gradient being 3, against the plain form."""
    found, expected = fused(p, loss, **tile, **options), plain(p, loss, **options)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    gradients = torch.autograd.grad(found * 3, p.leaves()), torch.autograd.grad(expected * 3, p.leaves())
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("maps", [False, True], ids=["rows", "maps"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_equals_the_loss_of_the_logits_for_every_tile(maps: bool, loss: str, gamma: float) -> None:
    p = problem(maps)
    for budget in (1, BUFFERS * 8 * 3, BUFFERS * 8 * 4 * CLASSES, None):
        check(p, loss, 1e-12, {"memory_budget": budget}, gamma=gamma)


@pytest.mark.parametrize(
    "options",
    [{"alpha": None}, {"alpha": 1.0}, {"alpha": 0.0}, {"alpha": ALPHAS}, {"class_weight": ALPHAS}, {"reduction": "sum"},
     {"avg_factor": 3.5}, {"avg_factor": torch.tensor(2.0)}, {"avg_factor": 0}, {"alpha": ALPHAS, "class_weight": ALPHAS}],
)  # fmt: skip
def test_options(options: dict[str, Any]) -> None:
    check(problem(), "focal", 1e-12, {"memory_budget": 500}, **options)


@pytest.mark.parametrize("mode", ["reference", "auto"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("maps", [False, True], ids=["rows", "maps"])
def test_single_precision_by_tensor_operations_and_by_kernels(mode: Any, loss: str, maps: bool) -> None:
    exact = problem(maps)
    p = exact.to(torch.float32)
    options: dict[str, Any] = {} if loss == "qfl" else {"class_weight": ALPHAS}
    options |= {"alpha": ALPHAS} if loss == "focal" else {}
    for ignored in (IGNORED, 2):  # 2 is also the number of a column, in tiles of other classes
        label = torch.where(p.label == IGNORED, ignored, p.label)
        with detloss.kernels.use(mode):
            found = fused(p._replace(label=label), loss, memory_budget=150, ignore_index=ignored, **options)
        expected = plain(exact._replace(label=label), loss, ignore_index=ignored, **options)
        assert found.dtype == torch.float32
        assert abs(found.item() / expected.item() - 1) < 1e-6
        gradients = torch.autograd.grad(found, p.leaves()), torch.autograd.grad(expected, exact.leaves())
        for one, other in zip(*gradients, strict=True):
            assert (one - other).abs().max() <= 2e-6 * other.abs().max()


@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_memory_formats(layout: str) -> None:
    p = problem(maps=True)
    features = p.features.detach()
    if layout == "channels_last":
        features = features.contiguous(memory_format=torch.channels_last)
    else:
        features = torch.stack((features, features), dim=-1)[..., 0]
    check(p._replace(features=features.requires_grad_()), "focal", 1e-12, {"memory_budget": 300})


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (1, 2), ()])
def test_only_the_gradients_that_are_needed(needed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem()
    frozen = [x.detach().requires_grad_(i in needed) for i, x in enumerate(p[:3]) if isinstance(x, Tensor)]
    made = []
    from detloss.functional import linear_sums

    tiles = linear_sums.linear_tiles
    monkeypatch.setattr(linear_sums, "linear_tiles", lambda *a, **k: made.append(tiles(*a, **k)) or made[-1])
    loss = fused(Problem(*frozen, *p[3:]))
    assert [gradient is not None for gradient in made[0][1]] == [i in needed for i in range(3)]
    torch.testing.assert_close(loss, plain(p), rtol=1e-12, atol=0)
    assert loss.requires_grad is bool(needed)
    if needed:
        expected = torch.autograd.grad(plain(p), [p[i] for i in needed])  # type: ignore[misc]
        torch.testing.assert_close(torch.autograd.grad(loss, [frozen[i] for i in needed]), expected, rtol=1e-12, atol=1e-15)
    with torch.no_grad():
        assert not fused(p).requires_grad
    assert all(gradient is None for gradient in made[-1][1])


def test_without_bias() -> None:
    check(problem()._replace(bias=None), "focal", 1e-12, {})


def test_gradcheck_and_second_derivatives() -> None:
    p = problem(rows=4)
    leaves = tuple(p.leaves())

    def call(*leaves: Tensor) -> Tensor:
        return fused(Problem(*leaves, *p[3:]), memory_budget=200)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


def test_function_transforms() -> None:
    p = problem()
    found = torch.func.grad(lambda w: fused(p._replace(weight=w)))(p.weight.detach())
    torch.testing.assert_close(found, torch.autograd.grad(plain(p), p.weight)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("rows", "classes"), [(0, CLASSES), (ROWS, 0), (0, 0)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empty_input_is_a_connected_zero(rows: int, classes: int, reduction: str) -> None:
    features, weight = torch.randn(rows, DEPTH, requires_grad=True), torch.randn(classes, DEPTH, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    target = torch.full((rows,), classes)
    loss = F.fused_linear_sigmoid_loss(features, weight, bias, target, reduction=reduction)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0
    assert all(x.grad is not None and not x.grad.any() for x in (features, weight, bias))


def test_rows_that_do_not_count_change_nothing_even_when_not_finite() -> None:
    p = problem()
    features = p.features.detach().clone()
    features[1], features[2] = torch.nan, torch.inf
    bad = p._replace(features=features.requires_grad_())
    torch.testing.assert_close(fused(bad), fused(p), rtol=0, atol=0)
    found, expected = torch.autograd.grad(fused(bad), bad.leaves()), torch.autograd.grad(fused(p), p.leaves())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not found[0][1:3].any()


def test_extreme_logits_have_the_loss_and_gradient_of_the_plain_form() -> None:
    features = torch.tensor([[-1e4], [-90.0], [90.0], [1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [1.0]], requires_grad=True)
    p = Problem(features, weight, None, torch.tensor([0, 1, 0, 3]), torch.tensor([0.0, 0.5, 1.0, 0.0]), torch.ones(4))
    for loss in LOSSES:
        found, expected = fused(p, loss, reduction="sum"), plain(p, loss, reduction="sum")
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        for one, other in zip(torch.autograd.grad(found, p.leaves()), torch.autograd.grad(expected, p.leaves()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-30)
