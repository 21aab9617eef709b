"""Gaussian heat maps of object centres: the targets of CenterNet and its relatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detloss.checks import check_float, check_positive, shape_of

__all__ = ["gaussian_heatmap", "gaussian_radius"]

HEATMAP_BUDGET = 64 * 2**20
TEMPORARIES = 4  # maps per object that are alive at once


def gaussian_radius(height: Tensor, width: Tensor, min_overlap: float = 0.7, *, official: bool = False) -> Tensor:
    """How far both corners of a box may move along both axes so that it still has an IoU of ``min_overlap`` with itself.

    The least of three: the moved box is as large (r² − (h + w) r + h w (1 − o)/(1 + o) = 0), smaller
    (4 r² − 2 (h + w) r + (1 − o) h w = 0) or larger (4 o r² + 2 o (h + w) r − (1 − o) h w = 0).
    Source: CornerNet, Law and Deng 2018, arXiv:1808.01244; the roots as mended in its repository later.

    Args:
        height: ``[...]`` heights in cells, at least 0.
        width: ``[...]`` widths, of the same shape.
        min_overlap: IoU o in (0, 1).
        official: the roots as the code of CornerNet and CenterNet has them, (b + √(b² − 4ac))/2 in all three cases: larger
            than they should be.

    Returns:
        ``[...]`` radius in cells, not rounded; 0 for boxes without extent.

    >>> gaussian_radius(torch.tensor([10.0]), torch.tensor([10.0]), 0.7)  # 10 (1 − √0.7) / 2 for the smaller box
    tensor([0.8167])
    """
    check_float("gaussian_radius", "height", height)
    check_float("gaussian_radius", "width", width)
    if height.shape != width.shape:
        raise ValueError(
            f"gaussian_radius: height and width must have the same shape; got {shape_of(height)} and {shape_of(width)}"
        )
    check_positive("gaussian_radius", min_overlap=min_overlap)
    if min_overlap >= 1:
        raise ValueError(f"gaussian_radius: min_overlap must lie in (0, 1); got {min_overlap}")
    both, area = height + width, height * width
    same = (both, area * (1 - min_overlap) / (1 + min_overlap), 1.0)
    smaller = (2 * both, (1 - min_overlap) * area, 4.0)
    larger = (-2 * min_overlap * both, (min_overlap - 1) * area, 4 * min_overlap)
    cases = []
    for b, c, a in (same, smaller, larger):
        root = (b * b - 4 * a * c).clamp(min=0).sqrt()
        total = b.abs() + root  # the root wanted is 2|c|/(|b| + √(b² − 4ac)) in all three cases: nothing cancels
        exact = torch.where(total > 0, 2 * c.abs() / torch.where(total > 0, total, 1.0), 0.0)
        cases.append((b + root) / 2 if official else exact)
    return torch.minimum(torch.minimum(cases[0], cases[1]), cases[2])


def gaussian_heatmap(
    cells: Tensor,
    radius: Tensor,
    labels: Tensor,
    drawn: Tensor,
    size: Sequence[int],
    num_classes: int,
    memory_budget: int = HEATMAP_BUDGET,
) -> Tensor:
    """Heat maps ``[B, C, H, W]``: per class the largest of exp(−(dx² + dy²)/(2σ²)) over its objects, σ = (2r + 1)/6.

    A Gaussian ends where |dx| or |dy| exceeds its radius r. Its cell is exactly 1 and all other cells are below 1, however
    large r is. All objects are drawn together, in chunks within ``memory_budget``; a maximum does not depend on their order.
    Source: CenterNet, Zhou et al. 2019, arXiv:1904.07850.

    Args:
        cells: ``[B, G, 2]`` int64 (column, row) of every object.
        radius: ``[B, G]`` whole numbers of cells, at least 0.
        labels: ``[B, G]`` classes in 0…C−1.
        drawn: ``[B, G]`` bool, ``False`` for objects that are not drawn; their cells may lie anywhere.
        size: (H, W).
        num_classes: C.
        memory_budget: bytes that the temporaries of one chunk of objects may take.
    """
    (images, count), (height, width) = labels.shape, size
    heat = radius.new_zeros(images, num_classes, height * width)
    along_x, along_y = (
        _profile(cells[..., axis], radius, length) * drawn.unsqueeze(-1) for axis, length in ((0, width), (1, height))
    )
    step = max(1, memory_budget // max(1, images * height * width * TEMPORARIES * radius.element_size()))
    for start in range(0, count if height * width else 0, step):
        part = slice(start, start + step)
        bumps = (along_y[:, part, :, None] * along_x[:, part, None, :]).clamp(max=_below_1(radius.dtype)).flatten(2)
        heat.scatter_reduce_(1, labels[:, part, None].expand_as(bumps), bumps, "amax")
    return _mark_centres(heat, cells, labels, drawn, height, width).unflatten(2, (height, width))


def _profile(at: Tensor, radius: Tensor, length: int) -> Tensor:
    """``[B, G, length]`` one factor of a Gaussian around ``at``, 0 beyond the radius."""
    sigma = ((2 * radius + 1) / 6).unsqueeze(-1)
    distance = (torch.arange(length, device=at.device) - at.unsqueeze(-1)).to(radius.dtype)
    return torch.where(distance.abs() <= radius.unsqueeze(-1), (-(distance / sigma).square() / 2).exp(), 0.0)


def _below_1(dtype: torch.dtype) -> float:
    return 1 - torch.finfo(dtype).eps / 2


def _mark_centres(heat: Tensor, cells: Tensor, labels: Tensor, drawn: Tensor, height: int, width: int) -> Tensor:
    """``heat [B, C, H·W]`` with exactly 1 in the cell of every object that is drawn and on the map."""
    column, row = cells.unbind(-1)
    on_map = drawn & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    where = torch.where(on_map, labels * (height * width) + row * width + column, heat.shape[1] * height * width)
    flat = torch.cat((heat.flatten(1), heat.new_zeros(len(heat), 1)), dim=1)  # one more for those that are not
    return flat.scatter(1, where, 1.0)[:, :-1].unflatten(1, heat.shape[1:])
