"""Crops of masks: by hand, against torchvision's RoIAlign, and what must not change them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detloss.geometry.mask_crop import crop_masks, sampling_weights

IMAGES = [(37, 53), (64, 64), (1, 7), (30, 6), (5, 5)]


def awkward_boxes(count: int, height: int, width: int) -> Tensor:
    """Random boxes, a third of them over the border; tiny, empty, inverted, giant ones and such that touch the border."""
    reach = torch.tensor([width, height])
    corners = (torch.rand(count, 2, 2) * 1.5 - 0.25) * reach
    boxes = torch.cat((corners.amin(1), corners.amax(1)), dim=1)
    boxes[:6, 2:] = boxes[:6, :2] + torch.rand(6, 2) * 0.7
    w, h = float(width), float(height)
    special = [
        (0, 0, w, h), (-w, -h, 2 * w, 2 * h), (0, 0, 0, 0), (w, h, w + 1, h + 1), (-1, -1, 1, 1), (w - 1, h - 1, w + 3, h + 3),
        (-1e3, -1e3, 1e3, 1e3), (3, 3, 1, 1), (5 * w, 5 * h, 6 * w, 6 * h), (0.5, 0.5, w - 0.5, h - 0.5), (-9, 0, -3, h),
    ]  # fmt: skip
    return torch.cat((boxes, torch.tensor(special)))


def test_a_box_of_whole_bins_averages_its_samples() -> None:
    """Box [0, 4] in 2 bins: samples at 0.5, 1.5 | 2.5, 3.5; the last pixel is 3, so 3.5 counts as 3."""
    got = sampling_weights(torch.tensor([0.0]), torch.tensor([4.0]), bins=2, length=4)
    assert got.tolist() == [[[0.25, 0.5, 0.25, 0.0], [0.0, 0.0, 0.25, 0.75]]]


def test_aligned_pixels_have_their_middle_at_half_coordinates() -> None:
    """The samples of [0, 4] lie in the middle of the pixels, so each counts with one half."""
    got = sampling_weights(torch.tensor([0.0]), torch.tensor([4.0]), bins=2, length=4, aligned=True)
    assert got.tolist() == [[[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]]


def test_a_box_of_less_than_a_pixel_counts_as_one_unless_aligned() -> None:
    """Box [2.2, 2.4]: as [2.2, 3.2] its sample is 2.7; aligned it is [1.7, 1.9], sample 1.8."""
    low, high = torch.tensor([2.2], dtype=torch.float64), torch.tensor([2.4], dtype=torch.float64)
    torch.testing.assert_close(sampling_weights(low, high, 1, 4), torch.tensor([[[0.0, 0, 0.3, 0.7]]], dtype=torch.float64))
    got = sampling_weights(low, high, 1, 4, aligned=True)
    torch.testing.assert_close(got, torch.tensor([[[0.0, 0.2, 0.8, 0.0]]], dtype=torch.float64))


def test_the_crop_of_a_rectangle_by_hand() -> None:
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[1, 2:4, 1:5] = True
    boxes = torch.tensor([[1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 5.0, 5.0]])
    crops = crop_masks(mask, boxes, torch.tensor([1, 0]), 4)
    # Samples at 1.5, 2.5, 3.5, 4.5: rows between (1, 2), (2, 3), (3, 4), (4, 5), columns likewise.
    rows, columns = torch.tensor([0.5, 1.0, 0.5, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.5])
    assert torch.equal(crops[0], rows[:, None] * columns)
    assert not crops[1].any()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("height", "width"), IMAGES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_equal_to_roi_align(height: int, width: int, aligned: bool, dtype: torch.dtype, tolerance: float) -> None:
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(height)
    masks = torch.cat((torch.rand(2, height, width) > 0.5, torch.ones(1, height, width))).to(dtype)
    masks = torch.cat((masks, torch.rand(1, height, width).to(dtype)))
    boxes = awkward_boxes(30, height, width).to(dtype)
    index = torch.randint(len(masks), (len(boxes),))
    rois = torch.cat((index[:, None].to(dtype), boxes), dim=1)
    for size in (1, 5, 28, (3, 14)):
        expected = ops.roi_align(masks[:, None], rois, size, 1.0, -1, aligned)[:, 0]
        torch.testing.assert_close(crop_masks(masks, boxes, index, size, aligned=aligned), expected, rtol=0, atol=tolerance)


def test_boxes_much_larger_than_the_image_are_exact_too() -> None:
    """A box of 10⁶ pixels has 35715 samples per bin, of which at most one bin's see the image."""
    mask = torch.ones(1, 20, 20, dtype=torch.bool)
    crop = crop_masks(mask, torch.tensor([[-4e5, -4e5, 6e5, 6e5]], dtype=torch.float64), torch.tensor([0]), 28)[0]
    assert int((crop > 0).sum()) == 1
    assert float(crop.max()) == pytest.approx((21 / (1e6 / 28)) ** 2, rel=0.1)


@pytest.mark.parametrize("mode", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_masks_of_any_dtype(mode: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = (torch.rand(2, 9, 9) > 0.5).to(mode)
    boxes, index = torch.rand(4, 4).cumsum(1) * 3, torch.tensor([0, 1, 1, 0])
    assert torch.equal(crop_masks(mask, boxes, index, 3), crop_masks(mask.float(), boxes, index, 3))


def test_chunks_change_nothing() -> None:
    torch.manual_seed(0)
    masks, boxes, index = torch.rand(3, 20, 30).double(), awkward_boxes(9, 20, 30).double(), torch.arange(20) % 3
    whole = crop_masks(masks, boxes, index, 7)
    for budget in (1, 50_000, 10**6):
        torch.testing.assert_close(crop_masks(masks, boxes, index, 7, memory_budget=budget), whole, rtol=0, atol=1e-15)


def test_autocast_does_not_lower_the_precision() -> None:
    torch.manual_seed(0)
    masks, boxes, index = torch.rand(3, 20, 30), awkward_boxes(9, 20, 30), torch.arange(20) % 3
    expected = crop_masks(masks, boxes, index, 7)
    with torch.autocast("cpu", torch.bfloat16):
        got = crop_masks(masks, boxes, index, 7)
    assert got.dtype == torch.float32 and torch.equal(got, expected)


@pytest.mark.parametrize(("objects", "boxes"), [(0, 0), (0, 2), (3, 0)])
def test_nothing_to_crop(objects: int, boxes: int) -> None:
    got = crop_masks(torch.ones(objects, 8, 8), torch.zeros(boxes, 4), torch.zeros(boxes, dtype=torch.long), (2, 3))
    assert got.shape == (boxes, 2, 3) and not got.any()


@pytest.mark.parametrize(
    ("masks", "boxes", "index", "words"),
    [
        ((8, 8), (1, 4), (1,), r"masks must have shape \[G, H, W\]; got \[8, 8\]"),
        ((1, 8, 8), (1, 5), (1,), r"boxes must have shape \[N, 4\]; got \[1, 5\]"),
        ((1, 8, 8), (2, 4), (1,), r"index must have shape \[2\], one mask per box; got \[1\]"),
    ],
)
def test_wrong_shapes_are_named(masks: tuple[int, ...], boxes: tuple[int, ...], index: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        crop_masks(torch.zeros(masks), torch.zeros(boxes), torch.zeros(index, dtype=torch.long), 2)
