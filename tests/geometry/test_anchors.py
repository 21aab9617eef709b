"""Anchors are those of torchvision and detectron2, and know their levels."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from detloss.geometry import Anchors, base_anchors, grid_anchors

MAPS, STRIDES = [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)], (8, 16, 32, 64, 128)
RETINANET = [(x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)]
RPN = [(32,), (64,), (128,), (256,), (512,)]


def theirs(sizes: list[tuple[int, ...]], ratios: tuple[float, ...]) -> Tensor:
    """torchvision's anchors of one image; its strides are those of the padded image."""
    utils = pytest.importorskip("torchvision.models.detection.anchor_utils")
    generator = utils.AnchorGenerator(tuple(sizes), (ratios,) * len(sizes))
    levels = generator.grid_anchors(
        [list(shape) for shape in MAPS], [[torch.tensor(stride), torch.tensor(stride)] for stride in STRIDES]
    )
    return torch.cat(levels)


@pytest.mark.parametrize("sizes", [RETINANET, RPN], ids=["RetinaNet", "RPN"])
@pytest.mark.parametrize("ratios", [(0.5, 1.0, 2.0), (1.0,), (0.25, 3.0)], ids=str)
def test_equal_torchvisions(sizes: list[tuple[int, ...]], ratios: tuple[float, ...]) -> None:
    ours = grid_anchors(MAPS, STRIDES, sizes, ratios, rounded=True)
    assert torch.equal(ours.boxes, theirs(sizes, ratios))


def test_equal_those_of_torchvisions_whole_generator() -> None:
    utils = pytest.importorskip("torchvision.models.detection.anchor_utils")
    generator = utils.AnchorGenerator(tuple(RETINANET[:2]), ((0.5, 1.0, 2.0),) * 2)
    maps = [torch.zeros(2, 3, 16, 24), torch.zeros(2, 3, 8, 12)]
    images = SimpleNamespace(tensors=torch.zeros(2, 3, 128, 192), image_sizes=[(128, 192), (100, 150)])
    expected = generator(images, maps)
    ours = grid_anchors([(16, 24), (8, 12)], (8, 16), RETINANET[:2], rounded=True)
    assert all(torch.equal(ours.boxes, own) for own in expected)


def test_sides_have_the_area_of_the_size_and_the_ratio_of_height_to_width() -> None:
    boxes = base_anchors((16, 24), (0.5, 1.0, 2.0), dtype=torch.float64)
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    size, ratio = torch.tensor([16.0, 24.0] * 3).double(), torch.tensor([0.5, 1.0, 2.0]).double().repeat_interleave(2)
    torch.testing.assert_close(width * height, size**2)
    torch.testing.assert_close(height / width, ratio)
    assert torch.equal(boxes[:, :2], -boxes[:, 2:])


def test_the_order_within_a_cell() -> None:
    root = math.sqrt(2)
    tall = [-8 / root, -8 * root, 8 / root, 8 * root]
    by_ratio = [[-8.0, -8, 8, 8], [-16.0, -16, 16, 16], tall, [2 * x for x in tall]]
    torch.testing.assert_close(base_anchors((16, 32), (1.0, 2.0)), torch.tensor(by_ratio))
    by_size = torch.tensor([by_ratio[i] for i in (0, 2, 1, 3)])
    torch.testing.assert_close(base_anchors((16, 32), (1.0, 2.0), order="size"), by_size)


def test_cells_go_row_by_row_and_the_offset_moves_the_centre() -> None:
    at_corner = grid_anchors([(2, 2), (1, 1)], (4, 8), [(2,), (6,)], (1.0,))
    assert at_corner.xy.tolist() == [[0, 0], [4, 0], [0, 4], [4, 4], [0, 0]]
    assert at_corner.boxes[[1, 4]].tolist() == [[3, -1, 5, 1], [-3, -3, 3, 3]]
    in_middle = grid_anchors([(2, 2), (1, 1)], (4, 8), [(2,), (6,)], (1.0,), offset=0.5)
    assert in_middle.xy.tolist() == [[2, 2], [6, 2], [2, 6], [6, 6], [4, 4]]


def test_anchors_of_a_cell_stay_together() -> None:
    anchors = grid_anchors([(3, 5)], [8], [(16, 32)], (0.5, 2.0))
    assert anchors.counts == (3 * 5 * 4,)
    cells = anchors.xy.reshape(15, 4, 2)
    assert torch.equal(cells, cells[:, :1].expand_as(cells))
    shape = anchors.boxes.reshape(15, 4, 4) - cells.repeat(1, 1, 2)
    torch.testing.assert_close(shape, base_anchors((16, 32), (0.5, 2.0)).expand_as(shape))


def test_levels() -> None:
    anchors = grid_anchors([(2, 3), (1, 1), (0, 4)], (8, 16, 32), [(16, 20), (32, 40), (64, 80)], (0.5, 1.0))
    assert anchors.counts == (24, 4, 0) and anchors.strides == (8, 16, 32)
    assert anchors.stride.tolist() == [8.0] * 24 + [16.0] * 4
    assert anchors.per_level([0.5, 2.0, 3.0]).tolist() == [0.5] * 24 + [2.0] * 4
    assert anchors.boxes.shape == (28, 4) and anchors.valid is None


def test_proposals_of_every_image() -> None:
    boxes, valid = torch.rand(2, 7, 4), torch.rand(2, 7) < 0.5
    proposals = Anchors.of(boxes, valid=valid)
    assert proposals.xy.shape == (2, 7, 2) and proposals.counts == (7,) and proposals.strides == (1,)
    assert proposals.stride.tolist() == [1.0] * 7 and proposals.valid is valid
    torch.testing.assert_close(proposals.xy[..., 0], (boxes[..., 0] + boxes[..., 2]) / 2)


def test_dtype_device_and_no_levels() -> None:
    anchors = grid_anchors([(2, 2)], [8], [(16,)], dtype=torch.float64, device="meta")
    assert (anchors.boxes.dtype, anchors.boxes.device.type, anchors.stride.dtype) == (torch.float64, "meta", torch.float64)
    assert grid_anchors([], [], []).boxes.shape == (0, 4)
    assert Anchors.of(torch.zeros(0, 4)).stride.shape == (0,)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"Anchors: boxes must have shape \[P, 4\] or \[B, P, 4\]; got \[4\]"):
        Anchors.of(torch.zeros(4))
    with pytest.raises(ValueError, match=r"Anchors: counts must sum to the 5 boxes; got \(2, 2\)"):
        Anchors.of(torch.zeros(5, 4), counts=(2, 2))
    with pytest.raises(ValueError, match="Anchors: expected one stride per level, 2; got 1"):
        Anchors.of(torch.zeros(5, 4), counts=(2, 3), strides=(8,))
    with pytest.raises(ValueError, match="got 2 maps, 1 strides and 2 sizes"):
        grid_anchors([(1, 1), (1, 1)], [8], [(16,), (32,)])
    with pytest.raises(ValueError, match="base_anchors: order must be one of 'ratio', 'size'; got 'sizes'"):
        base_anchors((16,), order="sizes")  # type: ignore[arg-type]
