"""COCO-format data: items, classes, sizes, and what is kept in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from train.coco_checks import check_refused, load, refusal

from detloss.train.data import BoxReport, boxes_in_original
from detloss.train.data.images import fitted_size

# what a good file gives


def test_items_classes_and_targets(coco: Any) -> None:
    data = load(coco)
    assert len(data) == 2 and data.max_objects == 2
    assert data.class_names == ("crowd of cells", "cell") and data.categories == {2: "crowd of cells", 5: "cell"}
    image, target = data[0]
    assert image.shape == (3, 20, 40) and image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[4, 2, 14, 10], [20, 6, 32, 16]] and target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1, 0] and target["iscrowd"].tolist() == [0, 1]
    assert target["area"].tolist() == [80, 120]
    assert target["image_id"].item() == 7 and target["orig_size"].tolist() == [20, 40] and target["scale"].tolist() == [1, 1]
    assert data.report == BoxReport("instances_train.json", total=2, crowd=1)


def test_an_image_without_objects_is_kept(coco: Any) -> None:
    image, target = load(coco)[1]
    assert image.shape == (3, 40, 40) and target["image_id"].item() == 3
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == target["iscrowd"].shape == (0,)


def test_pixels_are_those_of_the_file(coco: Any) -> None:
    expected = np.asarray(Image.open(coco.images / "a.png")).transpose(2, 0, 1)
    assert np.array_equal(load(coco)[0][0].numpy(), expected)


def test_area_of_the_file_is_used_where_it_can_be(coco: Any) -> None:
    def areas(*stated: object) -> list[float]:
        for annotation, value in zip(coco.content["annotations"], stated, strict=True):
            annotation["area"] = value
        coco.write()
        return load(coco)[0][1]["area"].tolist()

    assert areas(55.5, 120) == [55.5, 120]
    assert areas(float("nan"), "big") == [80, 120]
    assert areas(0, 1e9) == [80, 120]


@pytest.mark.parametrize("size", [20, 64, 77, (10, 64), (100, 30)])
def test_aspect_ratio_is_kept_and_boxes_map_back(coco: Any, size: int | tuple[int, int]) -> None:
    image, target = load(coco, image_size=size)[0]
    height, width = image.shape[1:]
    limit = (size, size) if isinstance(size, int) else size
    assert height <= limit[0] and width <= limit[1] and (height == limit[0] or width == limit[1])
    assert abs(width - 2 * height) <= 1
    torch.testing.assert_close(target["scale"], torch.tensor([width / 40, height / 20]))
    torch.testing.assert_close(boxes_in_original(target["boxes"], target), torch.tensor([[4.0, 2, 14, 10], [20, 6, 32, 16]]))
    beyond = boxes_in_original(torch.tensor([[-5.0, 1, 1000, 1000]]), target)
    torch.testing.assert_close(beyond, torch.tensor([[0.0, 20 / height, 40, 20]]))


def test_a_strip_keeps_a_positive_height() -> None:
    assert fitted_size((1, 5000), (256, 256)) == (4, 256)


def test_sizes_are_read_from_the_image_where_the_file_gives_none(coco: Any) -> None:
    coco.spoil(lambda c: c["images"][0].pop("width"))
    assert load(coco)[0][1]["boxes"].tolist() == [[4, 2, 14, 10], [20, 6, 32, 16]]


def test_a_class_name_that_occurs_twice_is_told_apart_by_its_id(coco: Any) -> None:
    coco.spoil(lambda c: c["categories"].append({"id": 9, "name": "cell"}))
    assert load(coco).class_names == ("crowd of cells", "cell (id 5)", "cell (id 9)")


def test_labels_follow_the_categories_of_the_training_file(coco: Any) -> None:
    coco.spoil(lambda c: c["categories"].remove({"id": 2, "name": "crowd of cells"}) or c["annotations"].pop())
    data = load(coco, categories={2: "crowd of cells", 5: "cell"})
    assert data.class_names == ("crowd of cells", "cell") and data[0][1]["labels"].tolist() == [1]
    check_refused(coco, "category 5 'cell' is not one of the training file's", "2: 'x'", categories={2: "x"})
    check_refused(coco, "category 5 'cell'", "5: 'cells'", categories={5: "cells"})


# memory


def test_images_are_decoded_once_within_the_budget(coco: Any) -> None:
    cached, uncached = load(coco), load(coco, cache_bytes=0)
    half = load(coco, cache_bytes=3 * 20 * 40)
    first = [cached[0][0], uncached[0][0], half[0][0]]
    half[1]
    first[0].zero_()
    for path in coco.images.iterdir():
        path.unlink()
    assert torch.equal(cached[0][0], first[1]) and torch.equal(half[0][0], first[1])
    assert "cannot read image 7" in refusal(lambda: uncached[0])
    assert "cannot read image 3" in refusal(lambda: half[1])
