"""Annotation files that are missing or have another shape: what is refused and how it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from train.coco_checks import SHAPE, check_refused, load, refusal

from detloss.train.data import CocoDataset

# files that are missing or have another shape


def test_missing_folder_and_file(coco: Any) -> None:
    gone = coco.root / "gone"
    message = refusal(lambda: CocoDataset(gone, coco.annotations, image_size=40))
    assert f"no such folder: {gone}" in message
    message = refusal(lambda: CocoDataset(coco.annotations, coco.annotations, image_size=40))
    assert f"is not a folder: {coco.annotations}" in message
    message = refusal(lambda: CocoDataset(coco.images, gone, image_size=40))
    assert f"no such annotation file: {gone}" in message and SHAPE in message
    assert "cannot be read" in refusal(lambda: CocoDataset(coco.images, coco.images, image_size=40))


def test_broken_json_is_located(coco: Any) -> None:
    coco.write('{"images": [],\n "annotations": [}')
    check_refused(coco, "broken JSON at line 2, column 18", SHAPE)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "9" * 5000])
def test_other_broken_json(coco: Any, text: str) -> None:
    coco.write(text)
    check_refused(coco, SHAPE)
    coco.annotations.write_bytes(b'{"images": "\xff\xfe"}')
    check_refused(coco, "broken JSON")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "the top level is a list"),
        (3, "the top level is a number"),
        ({"annotations": [], "categories": []}, "there is no 'images'"),
        ({"images": {}, "annotations": [], "categories": []}, "'images' is an object"),
        ({"images": [], "annotations": None, "categories": []}, "'annotations' is null"),
        ({"images": [], "annotations": [], "categories": "a"}, "'categories' is text"),
    ],
)
def test_another_shape(coco: Any, content: object, problem: str) -> None:
    coco.write(json.dumps(content))
    check_refused(coco, problem, SHAPE)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c["images"].append(5), ("images[2]", "expected an object; got 5")),
        (lambda c: c["images"][1].pop("id"), ("images[1]", "'id': expected a whole number; it is missing")),
        (lambda c: c["images"][1].update(id=True), ("images[1]", "'id': expected a whole number; got True")),
        (lambda c: c["images"][1].update(id=2**70), ("images[1]", "'id': expected a whole number; got")),
        (lambda c: c["images"][1].update(id=7), ("images[1] (id 7)", "the id 7 occurs twice")),
        (lambda c: c["images"][1].pop("file_name"), ("images[1] (id 3)", "'file_name': expected text; it is missing")),
        (lambda c: c["images"][1].update(file_name=""), ("images[1] (id 3)", "'file_name': expected text; got ''")),
        (lambda c: c["images"][1].update(width=0), ("images[1] (id 3)", "'width': expected a whole number >= 1; got 0")),
        (lambda c: c["images"][1].update(height="4"), ("images[1] (id 3)", "'height': expected a whole number >= 1; got '4'")),
        (lambda c: c["categories"][0].pop("name"), ("categories[0] (id 5)", "'name': expected text")),
        (lambda c: c["categories"][0].update(id=2), ("categories[1] (id 2)", "the id 2 occurs twice")),
        (lambda c: c["categories"][0].update(id=1.5), ("categories[0] (id 1.5)", "'id': expected a whole number; got 1.5")),
        (
            lambda c: c["annotations"][1].update(image_id=99),
            ("annotations[1] (id 12)", "unknown image 99", "one of the 2 entries"),
        ),
        (lambda c: c["annotations"][1].update(category_id=1), ("annotations[1] (id 12)", "unknown category 1", "[2, 5]")),
        (lambda c: c["annotations"][1].pop("image_id"), ("annotations[1] (id 12)", "'image_id': expected a whole number")),
        (lambda c: c["annotations"][1].update(category_id=[]), ("annotations[1] (id 12)", "'category_id'", "got []")),
        (lambda c: c["annotations"][1].update(iscrowd=2), ("annotations[1] (id 12)", "'iscrowd': expected 0 or 1; got 2")),
        (lambda c: c["annotations"].append("x" * 9999), ("annotations[2]", "expected an object; got 'xxx")),
        (lambda c: c.update(images=[], annotations=[]), ("the data set is empty", "'images'", "at least one")),
        (lambda c: c.update(categories=[], annotations=[]), ("the data set is empty", "'categories'", "at least one")),
    ],
)
def test_entries_of_another_shape(coco: Any, change: Callable[[Any], object], parts: tuple[str, ...]) -> None:
    coco.spoil(change)
    check_refused(coco, *parts)
    assert len(refusal(lambda: load(coco))) < 500


def test_whole_numbers_may_be_written_as_floats(coco: Any) -> None:
    coco.spoil(lambda c: (c["images"][0].update(id=7.0, width=40.0), c["annotations"][0].update(category_id=5.0)))
    assert load(coco)[0][1]["labels"].tolist() == [1, 0]


def test_training_data_without_a_usable_box(coco: Any) -> None:
    coco.spoil(lambda c: c["annotations"].pop(0))
    assert len(load(coco)) == 2
    check_refused(coco, "the data set is empty", "none of its 1 boxes", "positive width and height", require_boxes=True)
    coco.spoil(lambda c: c["annotations"].clear())
    check_refused(coco, "none of its 0 boxes", require_boxes=True)
