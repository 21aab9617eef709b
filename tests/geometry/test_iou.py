"""The overlap core, aligned and pairwise."""

from __future__ import annotations

import pytest
import torch
from extremes import BOX_PAIRS

from detloss.geometry import overlap, pairwise_iou
from detloss.geometry.iou import at_least_0, iou_of


def random_boxes(count: int, extent: float = 100.0) -> torch.Tensor:
    """``[count, 4]`` float64 corners."""
    corners = torch.rand(count, 2, 2, dtype=torch.float64) * extent
    return torch.cat((corners.amin(1), corners.amax(1)), dim=1)


def brute_force_iou(a: list[float], b: list[float]) -> float:
    """IoU of two boxes in plain Python."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_iou_against_plain_python() -> None:
    a, b = random_boxes(13), random_boxes(7)
    iou = pairwise_iou(a, b)
    assert iou.shape == (13, 7)
    expected = [[brute_force_iou(x, y) for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(iou, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(pairwise_iou(b, a), iou.T, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(overlap(a[:7], b).iou, iou[:7].diagonal(), rtol=1e-12, atol=0)
    assert torch.equal(pairwise_iou(a, a).diagonal(), torch.ones(13, dtype=torch.float64))


def test_batches_and_empty_sides() -> None:
    a, b = random_boxes(6).view(2, 3, 4), random_boxes(8).view(2, 4, 4)
    iou = pairwise_iou(a, b)
    assert iou.shape == (2, 3, 4)
    assert torch.equal(iou[1], pairwise_iou(a[1], b[1]))
    assert pairwise_iou(torch.zeros(0, 4), b[0].float()).shape == (0, 4)
    assert pairwise_iou(b[0], torch.zeros(0, 4)).shape == (4, 0)
    with pytest.raises(ValueError, match=r"boxes2 must have shape \[\.\.\., N, 4\]; got \[4\]"):
        pairwise_iou(a[0], torch.zeros(4))
    with pytest.raises(TypeError, match="boxes1"):
        pairwise_iou(torch.zeros(1, 4, dtype=torch.int64), b[0])


def test_overlap_by_hand() -> None:
    pair = overlap(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]]))
    torch.testing.assert_close(pair.iou, torch.tensor([1 / 7]))
    torch.testing.assert_close(pair.hollow, torch.tensor([2 / 9]))
    assert pair.inverted == 0
    assert [x.item() for x in (*pair.pred_size, *pair.target_size, *pair.enclosing_size, *pair.centre_offset)] == [
        2, 2, 2, 2, 3, 3, -1, -1,
    ]  # fmt: skip


def test_an_inverted_box_is_empty_and_knows_its_depth() -> None:
    pair = overlap(torch.tensor([[2.0, 0.0, 0.0, 3.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
    assert pair.iou == 0
    assert pair.inverted == 2 / 4
    assert pair.hollow == 0
    assert [x.item() for x in pair.pred_size] == [-2, 3]


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4, 1e18])
def test_shares_lie_in_0_to_1_for_any_pair(scale: float) -> None:
    for name, (p, t) in BOX_PAIRS.items():
        pair = overlap(torch.tensor([p], dtype=torch.float32) * scale, torch.tensor([t], dtype=torch.float32) * scale)
        assert 0 <= pair.iou <= 1, name
        assert 0 <= pair.hollow <= 1, name
        assert (pair.iou == 1) == (p == t and p[0] <= p[2]) or name == "almost identical", name


def test_a_huge_number_of_pixels_does_not_overflow() -> None:
    # The area of the enclosing box would be 4e38, more than fp32 holds.
    big, moved = torch.tensor([[0.0, 0.0, 1e19, 1e19]]), torch.tensor([[1e19, 1e19, 2e19, 2e19]])
    assert overlap(big, big).iou == 1
    assert overlap(big, moved).hollow == 0.5
    infinite = overlap(torch.tensor([[0.0, 0.0, torch.inf, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    assert infinite.iou.isfinite()
    assert overlap(torch.tensor([[torch.nan, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])).iou.isnan()


def test_half_precision_areas() -> None:
    # 300 × 300 px is more than fp16 holds; only the rounding of the corners may show.
    for dtype in (torch.float16, torch.bfloat16):
        a, b = torch.tensor([[0.0, 0.0, 320.0, 320.0]], dtype=dtype), torch.tensor([[0.0, 0.0, 640.0, 320.0]], dtype=dtype)
        assert overlap(a, b).iou == 0.5
        assert overlap(a, b.float()).iou == 0.5
        assert pairwise_iou(a, b).dtype == torch.float32


def test_boxes_that_touch_or_are_empty_can_grow_together() -> None:
    """The overlap of boxes that just touch, and a side of length 0, have the slope of what lies above 0, with every torch."""
    pred = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 0.0, 5.0, 2.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[2.0, 0.0, 4.0, 2.0], [4.0, 0.0, 6.0, 2.0]], dtype=torch.float64)
    (slope,) = torch.autograd.grad(overlap(pred, target).iou.sum(), pred)
    # Common over union: d common/dx2 = 2 of 8; the empty box grows by 2 per unit to either side, all of it common, of 4.
    assert slope[0, 2] == 0.25 and slope[1].tolist() == [-0.5, 0.0, 0.5, 0.0]
    x = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    assert torch.autograd.grad(at_least_0(x).sum(), x)[0].tolist() == [0.0, 1.0, 1.0]
    with torch.no_grad():
        assert at_least_0(x).tolist() == [0.0, 0.0, 1.0]


def test_the_iou_alone_and_without_gradient_is_that_of_the_overlap() -> None:
    boxes = torch.rand(40, 4, dtype=torch.float64) * 10
    boxes[::4, 2:] = boxes[::4, :2]
    boxes[-1] = torch.nan
    pair = overlap(boxes.unsqueeze(1), boxes)
    torch.testing.assert_close(iou_of(boxes.unsqueeze(1), boxes), pair.iou, rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        quiet = overlap(boxes[:-1].unsqueeze(1), boxes[:-1])
    for ours, same in zip(quiet[:3], pair[:3], strict=True):
        assert torch.equal(ours, same[:-1, :-1])
