"""Augmentation: flips, scales and boxes as promised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from detloss.train.data.augment import Augmentation
from detloss.train.data.batch import PADDING
from detloss.train.data.seeding import torch_stream


def square(boxes: list[list[float]], size: tuple[int, int] = (64, 96)) -> tuple[Tensor, dict[str, Tensor]]:
    """A black image with white boxes, whose edges are then visible in the pixels."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[:, int(y1) : int(y2), int(x1) : int(x2)] = 255
    target = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.arange(len(boxes)),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        "image_id": torch.tensor(4),
    }
    return image, target


def augmented(count: int, flips: tuple[str, ...], boxes: list[list[float]]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    augmentation = Augmentation(flips)
    for k in range(count):
        with torch_stream("test", k):
            yield augmentation(*square(boxes))


def test_boxes_follow_the_pixels() -> None:
    cut = 0
    for image, target in augmented(100, ("horizontal", "vertical"), [[10, 8, 40, 50]]):
        assert image.shape == (3, 64, 96) and image.dtype == torch.uint8 and target["image_id"].item() == 4
        # the colour jitter and the padding stay below the white of the box
        white = image.float().mean(0) > (image.float().mean(0).amax() + PADDING[0]) / 2
        rows, columns = torch.where(white)
        extremes = torch.stack([columns.amin(), rows.amin(), columns.amax() + 1, rows.amax() + 1]).float()
        assert (target["boxes"][0] - extremes).abs().max() <= 1.5
        cut += bool((target["boxes"][0] == torch.tensor([0, 0, 96, 64])).any())
    assert cut > 3


def test_boxes_stay_valid_and_hardly_visible_objects_become_regions_to_ignore() -> None:
    boxes = [[0.0, 0, 5, 5], [90, 58, 96, 64], [30, 20, 60, 44], [0, 30, 1.5, 60], [40, 0, 44, 40]]
    counts, crowds, labels = set(), 0, set()
    for _, target in augmented(200, ("horizontal",), boxes):
        found = target["boxes"]
        assert (found[:, 2:] - found[:, :2] >= 1).all()
        assert (found >= 0).all() and (found <= torch.tensor([96, 64, 96, 64])).all()
        assert len(found) == len(target["labels"]) == len(target["iscrowd"])
        assert target["iscrowd"][target["labels"] == 2].sum() == 0  # the one in the middle is never cut to a quarter
        counts.add(len(found))
        crowds += int(target["iscrowd"].sum())
        labels |= set(target["labels"].tolist())
    assert len(counts) >= 3 and crowds > 5 and labels == set(range(5))


def test_an_image_without_objects_stays_one() -> None:
    for _, target in augmented(3, (), []):
        assert target["boxes"].shape == (0, 4) and target["labels"].shape == target["iscrowd"].shape == (0,)


@pytest.mark.parametrize(
    ("flips", "sides"), [((), {"lt"}), (("horizontal",), {"lt", "rt"}), (("horizontal", "vertical"), {"lt", "rt", "lb", "rb"})]
)
def test_flips_flip(flips: tuple[str, ...], sides: set[str]) -> None:
    """A small box beside a large one: on which side of it, tells how the image was mirrored."""
    seen = []
    for _, target in augmented(60, flips, [[30.0, 20, 60, 44], [20, 12, 28, 18]]):
        (x1, y1, x2, y2), *rest = target["boxes"].tolist()
        if target["labels"].tolist() == [0, 1]:
            small = rest[0]
            seen.append(("l" if small[0] + small[2] < x1 + x2 else "r") + ("t" if small[1] + small[3] < y1 + y2 else "b"))
    assert set(seen) == sides and len(seen) > 50
    assert all(abs(seen.count(side) / len(seen) - 1 / len(sides)) < 0.2 for side in sides)


def test_scale_and_position_vary_around_one() -> None:
    scales, centres = [], []
    for _, target in augmented(200, (), [[40.0, 26, 56, 38]]):
        x1, _, x2, _ = target["boxes"][0].tolist()
        scales.append((x2 - x1) / 16)
        centres.append((x1 + x2) / 2)
    assert 0.74 <= min(scales) < 0.8 and 1.2 < max(scales) <= 1.26
    assert max(centres) - min(centres) > 15


@pytest.mark.parametrize("size", [(4, 256), (256, 4), (33, 250)])
def test_odd_shapes(size: tuple[int, int]) -> None:
    image, target = Augmentation(())(*square([[1.0, 1, 3, 3]], size))
    assert image.shape[1] % 32 == image.shape[2] % 32 == 0 and len(target["boxes"]) <= 1
