"""Radius and heat maps of CenterNet against the geometry they stand for and a loop over objects and pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detloss.geometry.gaussian import gaussian_heatmap, gaussian_radius


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.7, 0.95])
@pytest.mark.parametrize(("height", "width"), [(10.0, 10.0), (3.0, 40.0), (100.0, 7.5), (1e5, 2e5), (1e-3, 2e-3)])
def test_a_box_moved_by_the_radius_still_has_the_overlap_in_the_worst_case(height: float, width: float, overlap: float) -> None:
    r = gaussian_radius(torch.tensor(height, dtype=torch.float64), torch.tensor(width, dtype=torch.float64), overlap).item()
    box = (0.0, 0.0, width, height)
    moved = [(r, r, width + r, height + r), (r, r, width - r, height - r), (-r, -r, width + r, height + r)]
    assert min(iou(box, other) for other in moved) == pytest.approx(overlap, rel=1e-9)


def official_radius(height: float, width: float, o: float) -> float:
    """The three roots as the official code computes them, (b + √(b² − 4ac)) / 2 each."""
    cases = [
        (1, height + width, width * height * (1 - o) / (1 + o)),
        (4, 2 * (height + width), (1 - o) * width * height),
        (4 * o, -2 * o * (height + width), (o - 1) * width * height),
    ]
    return min((b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in cases)


def test_the_official_radius_is_wider() -> None:
    height, width = (torch.rand(2, 50, dtype=torch.float64) * 40).unbind()
    got = gaussian_radius(height, width, 0.7, official=True)
    want = [official_radius(h, w, 0.7) for h, w in zip(height.tolist(), width.tolist(), strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert (got > gaussian_radius(height, width, 0.7)).all()


def test_boxes_without_extent_have_radius_0_and_float32_agrees_with_float64() -> None:
    sides = torch.tensor([0.0, 0.0, 5.0, 1e6, 1e-6, 37.0])
    others = torch.tensor([0.0, 5.0, 0.0, 1e6, 1e-6, 11.0])
    low = gaussian_radius(sides, others)
    assert low[:3].tolist() == [0, 0, 0] and torch.isfinite(low).all()
    torch.testing.assert_close(low.double(), gaussian_radius(sides.double(), others.double()), rtol=1e-5, atol=0)


def test_errors_of_the_radius() -> None:
    with pytest.raises(ValueError, match=r"same shape; got \[2\] and \[3\]"):
        gaussian_radius(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"min_overlap must lie in \(0, 1\); got 1.0"):
        gaussian_radius(torch.ones(2), torch.ones(2), 1.0)
    with pytest.raises(ValueError, match=r"min_overlap must be a finite number > 0; got 0.0"):
        gaussian_radius(torch.ones(2), torch.ones(2), 0.0)
    with pytest.raises(TypeError, match=r"height must have a floating-point dtype; got torch.int64"):
        gaussian_radius(torch.ones(2).long(), torch.ones(2))


def by_loops(cells: Tensor, radius: Tensor, labels: Tensor, drawn: Tensor, size: tuple[int, int], classes: int) -> Tensor:
    """Pixel by pixel."""
    heat = torch.zeros(len(labels), classes, *size, dtype=torch.float64)
    for image in range(len(labels)):
        for obj in range(labels.shape[1]):
            (x, y), r = cells[image, obj].tolist(), radius[image, obj].item()
            sigma = (2 * r + 1) / 6
            for row in range(size[0]) if drawn[image, obj] else ():
                for column in range(size[1]):
                    if abs(column - x) <= r and abs(row - y) <= r:
                        value = math.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * sigma * sigma))
                        at = heat[image, labels[image, obj]]
                        at[row, column] = max(at[row, column].item(), value)
    return heat


def scene(images: int, objects: int, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    span = torch.tensor([size[1], size[0]])
    cells = (torch.rand(images, objects, 2, generator=generator, dtype=torch.float64) * span).long()
    radius = torch.randint(6, (images, objects), generator=generator).double()
    labels = torch.randint(2, (images, objects), generator=generator)
    return cells, radius, labels, torch.rand(images, objects, generator=generator) < 0.8


@pytest.mark.parametrize("seed", range(3))
def test_maps_are_those_of_a_loop_for_every_chunk_size(seed: int) -> None:
    size = (9, 13)
    objects = scene(3, 7, size, seed)
    got = gaussian_heatmap(*objects, size, 2)
    torch.testing.assert_close(got, by_loops(*objects, size, 2), rtol=1e-12, atol=0)
    for budget in (1, 3 * 9 * 13 * 8 * 4 * 2, 2**30):
        assert torch.equal(gaussian_heatmap(*objects, size, 2, memory_budget=budget), got)


def test_a_cell_of_an_object_is_1_and_no_other_however_large_the_radius() -> None:
    """In float32 a Gaussian of radius 1e6 rounds to 1 next to its centre too."""
    cells = torch.tensor([[[3, 2]]])
    heat = gaussian_heatmap(cells, torch.tensor([[1e6]]), torch.zeros(1, 1).long(), torch.ones(1, 1).bool(), (5, 6), 1)
    assert heat[0, 0, 2, 3] == 1 and (heat == 1).sum() == 1
    assert (heat > 0.999).all()


def test_radius_0_is_a_single_cell_and_nothing_is_drawn_of_what_is_off_the_map() -> None:
    cells = torch.tensor([[[1, 0], [50, -3]]])
    heat = gaussian_heatmap(cells, torch.zeros(1, 2), torch.tensor([[0, 1]]), torch.tensor([[True, True]]), (2, 3), 2)
    assert heat[0, 0].tolist() == [[0, 1, 0], [0, 0, 0]] and heat[0, 1].sum() == 0


@pytest.mark.parametrize(("images", "objects", "size"), [(0, 0, (4, 4)), (2, 0, (4, 4)), (2, 3, (0, 4))])
def test_nothing_to_draw(images: int, objects: int, size: tuple[int, int]) -> None:
    cells = torch.zeros(images, objects, 2).long()
    flags = torch.ones(images, objects).bool()
    heat = gaussian_heatmap(cells, torch.ones(images, objects), torch.zeros(images, objects).long(), flags, size, 3)
    assert heat.shape == (images, 3, *size) and heat.sum() == 0
