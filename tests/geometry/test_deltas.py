"""Box deltas are torchvision's, and encoding and decoding undo each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detloss.geometry import box_to_delta, delta_to_box
from detloss.geometry.deltas import MAX_LOG_RATIO

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)]


def boxes(count: int, dtype: torch.dtype = torch.float64, scale: float = 100.0) -> Tensor:
    low = torch.rand(count, 2, dtype=dtype) * scale
    return torch.cat((low, low + (0.05 + torch.rand(count, 2, dtype=dtype)) * scale), dim=1)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_equal_torchvisions_both_ways(weights: tuple[float, float, float, float]) -> None:
    coder = pytest.importorskip("torchvision.models.detection._utils").BoxCoder(weights)
    torch.manual_seed(0)
    anchors, targets, deltas = boxes(200), boxes(200), torch.randn(200, 4, dtype=torch.float64) * 3
    deltas[:20, 2:] *= 10  # some above the clip
    torch.testing.assert_close(
        box_to_delta(anchors, targets, weights), coder.encode_single(targets, anchors), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        delta_to_box(anchors, deltas, weights), coder.decode_single(deltas, anchors), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_decoding_undoes_encoding(scale: float, weights: tuple[float, float, float, float]) -> None:
    torch.manual_seed(0)
    anchors, targets = boxes(300, scale=scale), boxes(300, scale=scale)
    back = delta_to_box(anchors, box_to_delta(anchors, targets, weights), weights)
    torch.testing.assert_close(back, targets, rtol=1e-12, atol=1e-12 * scale)


def test_by_hand() -> None:
    anchor, target = torch.tensor([0.0, 0, 10, 20]), torch.tensor([10.0, 0, 30, 10])
    expected = torch.tensor([(20 - 5) / 10, (5 - 10) / 20, math.log(2), math.log(0.5)])
    torch.testing.assert_close(box_to_delta(anchor, target), expected)
    torch.testing.assert_close(delta_to_box(anchor, expected), target)
    torch.testing.assert_close(box_to_delta(anchor, target, (2, 4, 1, 10)), expected * torch.tensor([2.0, 4.0, 1.0, 10.0]))


def test_a_shift_moves_and_nothing_else() -> None:
    assert delta_to_box(torch.tensor([0.0, 0, 8, 4]), torch.tensor([0.5, -1.0, 0, 0])).tolist() == [4, -4, 12, 0]
    assert box_to_delta(boxes(5), boxes(5)).shape == (5, 4)
    own = boxes(5)
    assert not bool(box_to_delta(own, own).any())


def test_shapes_broadcast() -> None:
    torch.manual_seed(0)
    anchors, targets = boxes(6), torch.stack((boxes(6), boxes(6)))
    deltas = box_to_delta(anchors, targets)
    assert deltas.shape == (2, 6, 4) and torch.equal(deltas[1], box_to_delta(anchors, targets[1]))
    torch.testing.assert_close(delta_to_box(anchors, deltas), targets)
    assert delta_to_box(boxes(0), boxes(0)).shape == (0, 4)
    per_class = delta_to_box(anchors[:, None], torch.zeros(6, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(per_class, anchors[:, None].expand(6, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_degenerate_boxes_have_finite_deltas(dtype: torch.dtype) -> None:
    point, line = torch.tensor([5.0, 5, 5, 5], dtype=dtype), torch.tensor([5.0, 0, 5, 9], dtype=dtype)
    inverted, whole = torch.tensor([9.0, 9, 1, 1], dtype=dtype), torch.tensor([0.0, 0, 10, 10], dtype=dtype)
    for anchor in (point, line, inverted, whole):
        for target in (point, line, inverted, whole):
            assert bool(torch.isfinite(box_to_delta(anchor, target)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_is_clipped_so_that_size_and_gradient_stay_finite(dtype: torch.dtype) -> None:
    anchor = torch.tensor([0.0, 0, 16, 16], dtype=dtype)
    deltas = torch.tensor([0.0, 0, 1e4, MAX_LOG_RATIO + 1], dtype=dtype, requires_grad=True)
    box = delta_to_box(anchor, deltas)
    torch.testing.assert_close(box[2:] - box[:2], torch.full((2,), 1000.0, dtype=dtype))
    (gradient,) = torch.autograd.grad(box.sum(), deltas)
    assert bool(torch.isfinite(gradient).all())
    wide = delta_to_box(anchor, deltas.detach().new_tensor([0, 0, 1.0, 1.0]), max_log_ratio=0.5)
    torch.testing.assert_close(wide[2:] - wide[:2], torch.full((2,), 16 * math.exp(0.5), dtype=dtype))


def test_gradients() -> None:
    torch.manual_seed(0)
    anchors, deltas = boxes(4), torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: delta_to_box(anchors, d, WEIGHTS[1]), (deltas,))
    targets = boxes(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: box_to_delta(anchors, t, WEIGHTS[1]), (targets,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_only_that_of_the_input(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    anchors, targets = boxes(50).to(dtype), boxes(50).to(dtype)
    deltas = box_to_delta(anchors, targets, WEIGHTS[1])
    torch.testing.assert_close(deltas, box_to_delta(anchors.float(), targets.float(), WEIGHTS[1]), rtol=0, atol=0)
    low = deltas.to(dtype)
    torch.testing.assert_close(delta_to_box(anchors, low), delta_to_box(anchors.float(), low.float()), rtol=0, atol=0)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"box_to_delta: anchors must have shape \[\.\.\., 4\]; got \[3\]"):
        box_to_delta(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"delta_to_box: deltas must have shape \[\.\.\., 4\]; got \[2, 8\]"):
        delta_to_box(torch.zeros(2, 4), torch.zeros(2, 8))
    with pytest.raises(TypeError, match=r"box_to_delta: boxes must be a torch\.Tensor; got list"):
        box_to_delta(torch.zeros(4), [0, 0, 1, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"box_to_delta: expected four weights \(wx, wy, ww, wh\); got \(1.0,\)"):
        box_to_delta(torch.zeros(4), torch.zeros(4), (1.0,))
