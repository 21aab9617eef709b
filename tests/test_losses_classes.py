"""What losses of classes promise: legal indices and scores, ignored positions, background, maps and flat rows."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from cases import CASES, Case, cases
from samples import CLASSES, Sample

from detloss import functional as F

INDEXED_IDS = ("ce-softmax", "ce-softmax-options", "ce-sigmoid", "ce-sigmoid-options", "focal-sigmoid", "focal-options",
               "focal-softmax", "focal-softmax-options", "qfl", "vfl-scored")  # fmt: skip
DENSE_IDS = ("ce-softmax-dense", "ce-sigmoid-dense", "focal-dense", "focal-softmax-dense", "qfl-dense", "vfl", "gaussian",
             "centerness", "mask-bce", "ce-mask", "dice", "tversky")  # fmt: skip
MAP_IDS = ("ce-softmax-map", "ce-sigmoid-map", "focal-map", "focal-softmax-map", "qfl-map", "vfl-map")
IGNORED = -100


def named(ids: tuple[str, ...]) -> Any:
    """Parametrise over these rows."""
    return cases(lambda case: case.id in ids)


def with_label(sample: Sample, row: int, value: int) -> Sample:
    """The sample with the class index of one row replaced."""
    pair = isinstance(sample.target, tuple)
    label = (sample.target[0] if pair else sample.target).clone()
    label[row] = value
    return Sample(sample.pred, (label, sample.target[1]) if pair else label, sample.extras)


def test_the_rows_named_here_exist() -> None:
    assert {*INDEXED_IDS, *DENSE_IDS, *MAP_IDS} <= {case.id for case in CASES}


@named(INDEXED_IDS)
def test_an_index_out_of_range_is_an_error_that_says_where(case: Case) -> None:
    background = "softmax" not in case.id
    for value in (-1, -2, CLASSES + 1, 255) + (() if background else (CLASSES,)):
        with pytest.raises(ValueError, match=rf"class indices must be 0…3 .*got {value} at \[2\]"):
            case.call(with_label(case.sample(5), 2, value))
    assert case.call(with_label(case.sample(5), 2, CLASSES if background else CLASSES - 1)).isfinite()


@named(INDEXED_IDS)
def test_indices_of_any_integer_dtype(case: Case) -> None:
    sample = case.sample(6)
    expected = case.call(sample)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(case.call(sample.map(lambda x, d=dtype: x if x.is_floating_point() else x.to(d))), expected)
    with pytest.raises(TypeError, match="integer dtype"):
        case.call(sample.map(lambda x: x if x.is_floating_point() else x.double()))


@named(INDEXED_IDS)
def test_ignored_positions_count_neither_way(case: Case) -> None:
    clean = case.sample(5)
    others = torch.tensor([0, 1, 3, 4])
    for value, arguments in ((IGNORED, {}), (-1, {"ignore_index": -1}), (255, {"ignore_index": 255}), (1, {"ignore_index": 1})):
        for poison in (0.5, float("nan"), float("inf")):
            sample = with_label(case.sample(5), 2, value)
            if value == 1:  # a class of its own that is ignored wherever it stands
                for row in others.tolist():
                    sample = with_label(sample, row, 0)
                clean = sample
            sample.pred[2] = poison
            parts, gradient = case.value_and_grad(sample, reduction="none", **arguments)
            assert (parts[2] == 0).all()
            assert (gradient[2] == 0).all()
            expected, expected_gradient = case.value_and_grad(clean.rows(others), reduction="none")
            torch.testing.assert_close(parts[others], expected, rtol=1e-12, atol=0)
            torch.testing.assert_close(gradient[others], expected_gradient, rtol=1e-12, atol=0)
            mean = case.call(sample, **arguments)
            torch.testing.assert_close(mean, parts.sum() / parts.numel(), rtol=1e-12, atol=0)


@named(INDEXED_IDS)
def test_ignore_index_of_the_constructor_and_of_the_call(case: Case) -> None:
    sample = with_label(case.sample(5), 2, 255)
    expected = case.call(sample, ignore_index=255)
    assert torch.equal(case.build(ignore_index=255)(sample.pred, sample.target), expected)
    assert torch.equal(case.build()(sample.pred, sample.target, ignore_index=255), expected)
    assert torch.equal(case.build(ignore_index=7)(sample.pred, sample.target, ignore_index=255), expected)
    with pytest.raises(ValueError, match="ignore_index=7"):
        case.build(ignore_index=7)(sample.pred, sample.target)


@named(INDEXED_IDS)
def test_everything_ignored_gives_a_connected_0(case: Case) -> None:
    sample = case.sample(3)
    for row in range(3):
        sample = with_label(sample, row, IGNORED)
    for fill in (0.3, float("inf"), float("nan")):
        sample.pred.fill_(fill)
        for arguments in ({}, {"avg_factor": 0}, {"avg_factor": 3.0}, {"weight": torch.ones(3)}):
            loss, gradient = case.value_and_grad(sample, **arguments)
            assert loss == 0
            assert (gradient == 0).all()


@pytest.mark.parametrize("function", [F.cross_entropy_loss, F.binary_cross_entropy_loss])
def test_avg_non_ignore_divides_by_what_is_not_ignored(function: Any) -> None:
    torch.manual_seed(3)
    pred, target = torch.randn(6, 4).double(), torch.tensor([0, IGNORED, 2, IGNORED, 3, 1])
    kept = target != IGNORED
    mean = function(pred, target, avg_non_ignore=True)
    torch.testing.assert_close(mean, function(pred[kept], target[kept]), rtol=1e-12, atol=0)
    torch.testing.assert_close(function(pred, target), mean * 4 / 6, rtol=1e-12, atol=0)
    torch.testing.assert_close(function(pred, target, avg_non_ignore=True, avg_factor=6), function(pred, target, avg_factor=6))
    none = function(pred, torch.full((6,), IGNORED), avg_non_ignore=True)
    assert none == 0
    assert torch.equal(function(pred, target, avg_non_ignore=True, reduction="sum"), function(pred, target, reduction="sum"))


@named(DENSE_IDS)
def test_dense_targets_outside_0_to_1_are_errors(case: Case) -> None:
    for value in (-1e-3, 1.001, 2.0, 255.0, float("inf")):
        sample = case.sample(3)
        sample.target[1].view(-1)[:1] = value
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; got .* at \[1"):
            case.call(sample)
    for integers in (torch.zeros_like(case.sample(3).target).long(), torch.ones_like(case.sample(3).target).bool()):
        sample = case.sample(3)
        given = Sample(sample.pred, integers, sample.extras)
        expected = case.call(Sample(sample.pred, integers.double(), sample.extras))
        assert torch.equal(case.call(given), expected)
        assert expected.dtype == torch.float64


@pytest.mark.parametrize("function", [F.quality_focal_loss, F.varifocal_loss])
def test_scores_outside_0_to_1_and_other_bad_pairs(function: Any) -> None:
    pred, label, score = torch.zeros(3, 4), torch.tensor([0, 4, 2]), torch.tensor([0.5, 0.0, 1.0])
    assert function(pred, [label, score]).isfinite()
    if os.environ.get("DETLOSS_KERNELS") != "triton":  # kernels for an accelerator do not make the host wait for values
        for wrong in (1.5, -0.5):
            with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
                function(pred, (label, torch.full((3,), wrong)))
    with pytest.raises(ValueError, match=r"the same shape; got \[3\] and \[2\]"):
        function(pred, (label, score[:2]))
    for target in ((label,), (label, score, score), "label", None):
        with pytest.raises(TypeError, match=r"\(label, score\)"):
            function(pred, target)
    with pytest.raises(TypeError, match="integer dtype"):
        function(pred, (score, score))
    with pytest.raises(ValueError, match="shape"):
        function(pred, label)


@named(MAP_IDS)
def test_a_map_is_its_positions_in_rows(case: Case) -> None:
    sample = case.sample(2, seed=4)

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, -1).reshape(-1, CLASSES) if x.ndim == 4 else x.reshape(-1)

    loss, gradient = case.value_and_grad(sample, reduction="none")
    expected, expected_gradient = case.value_and_grad(sample.map(flat), reduction="none")
    torch.testing.assert_close(flat(loss), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(flat(gradient), expected_gradient, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(case.call(sample), case.call(sample.map(flat)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"alpha": [0.25, 0.5, 0.75, 0.125], "gamma": 1.5}, {"class_weight": [1, 2, 0.5, 4]}])
def test_indices_are_dense_targets_without_their_zeros(options: dict[str, Any]) -> None:
    pred, label = torch.randn(7, 4).double(), torch.tensor([0, 1, 2, 3, 4, 4, 1])
    one_hot = torch.nn.functional.one_hot(label, 5)[:, :4].double()
    score = torch.rand(7).double()
    pairs: list[tuple[Any, Any, Any]] = [(F.sigmoid_focal_loss, label, one_hot)]
    if not {"alpha"} & options.keys():
        pairs += [(F.binary_cross_entropy_loss, label, one_hot)]
        pairs += [(F.cross_entropy_loss, label.clamp(max=3), torch.nn.functional.one_hot(label.clamp(max=3), 4).double())]
    if not options:
        pairs += [(f, (label, score), one_hot * score[:, None]) for f in (F.quality_focal_loss, F.varifocal_loss)]
    for function, indexed, dense in pairs:
        left, right = (function(pred, target, reduction="none", **options) for target in (indexed, dense))
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-15)


def test_options_out_of_range_are_errors() -> None:
    pred, target = torch.zeros(2, 4), torch.tensor([0, 1])
    for name, value in (("alpha", 1.5), ("alpha", -1.0), ("alpha", [0.5, 2.0, 0.5, 0.5]), ("gamma", -1), ("label_smoothing", 1)):
        with pytest.raises(ValueError, match=name):
            F.sigmoid_focal_loss(pred, target, **{name: value})  # type: ignore[arg-type]
    for weights in ([1.0, 2.0], torch.ones(2, 4), 2.0):
        with pytest.raises(ValueError, match=r"class_weight must hold one number per class"):
            F.cross_entropy_loss(pred, target, class_weight=weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label_smoothing"):
        F.binary_cross_entropy_loss(pred, target, label_smoothing=-0.1)


def test_no_dense_target_is_made_of_indices() -> None:
    # A 0/1 tensor of N × C would be as large as the logits: of all saved tensors only the logits' own kind may be so.
    pred, target = torch.randn(50, 40, requires_grad=True), torch.randint(41, (50,))
    large: list[torch.dtype] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.numel() >= pred.numel() and not x.is_floating_point() and x.element_size() > 1:
            large.append(x.dtype)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        for function in (F.sigmoid_focal_loss, F.binary_cross_entropy_loss):
            function(pred, target).backward()
    assert large == []
