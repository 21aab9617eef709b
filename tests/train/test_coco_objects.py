"""The objects of COCO-format data: what becomes of bad boxes, and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from train.coco_checks import load, refusal

from detloss.train.data import BoxReport, CocoDataset

# bad boxes

BAD = {
    "not_finite": [
        [float("nan"), 0, 1, 1], [0, float("inf"), 1, 1], [0, 0, "3", 1], [0, 0, 1], None, [1e308, 0, 1e308, 1],
        [10**400, 0, 1, 1], {"x": 1}, [True, 0, 1, 1],
    ],
    "no_area": [[5, 5, 0, 0], [5, 5, 0, 4], [5, 5, 4, -3], [5, 5, 1e-9, 4]],
    "outside": [[40, 0, 5, 5], [-5, -5, 5, 5], [0, 200, 5, 5]],
    "clipped": [[-3, 2, 10, 5], [30, 10, 100, 100]],
}  # fmt: skip


def test_bad_boxes_are_counted_listed_and_dropped_or_clipped(coco: Any) -> None:
    boxes = [box for kind in BAD.values() for box in kind]
    coco.content["annotations"] += [
        {"id": 100 + k, "image_id": 7, "category_id": 5, "bbox": box, "area": 9.0} for k, box in enumerate(boxes)
    ]
    coco.write()
    data = load(coco)
    counts = {kind: len(found) for kind, found in BAD.items()}
    report = data.report
    assert {kind: getattr(report, kind) for kind in BAD} == counts
    assert (report.total, report.dropped, report.kept, report.crowd) == (20, 16, 4, 1) and report.has_problems
    target = data[0][1]
    assert target["boxes"][2:].tolist() == [[0, 2, 7, 7], [30, 10, 40, 20]]
    assert target["area"][2:].tolist() == [35, 100] and target["labels"].tolist() == [1, 0, 1, 1]
    lines = report.lines()
    assert lines[0] == "instances_train.json: 20 boxes, 4 kept, 16 dropped, 2 clipped"
    assert lines[1:5] == (
        "  9 not four finite numbers, dropped",
        "  4 of zero or negative width or height, dropped",
        "  3 wholly outside the image, dropped",
        "  2 partly outside the image, clipped to it",
    )
    assert lines[5] == "  annotation 100 of 'a.png': [nan, 0, 1, 1] is not four finite numbers, dropped"
    assert lines[-1] == "  … and 13 more" and len(lines) == 11


def test_an_overhang_of_rounding_is_not_counted(coco: Any) -> None:
    coco.spoil(lambda c: c["annotations"][0].update(bbox=[-0.001, 0.1 + 0.2, 40.002, 19.7]))
    data = load(coco)
    assert not data.report.has_problems and data.report.lines() == (
        "instances_train.json: 2 boxes, 2 kept, 0 dropped, 0 clipped",
    )
    assert data[0][1]["boxes"][0].tolist() == pytest.approx([0, 0.3, 40, 20])


def test_the_thinnest_kept_box_has_an_area_after_resizing(coco: Any) -> None:
    Image.new("L", (20000, 20)).save(coco.images / "long.png")
    coco.spoil(
        lambda c: (
            c["images"][0].update(file_name="long.png", width=20000),
            c["annotations"][0].update(bbox=[19000, 3, 0.0101, 0.0101]),
        )
    )
    x1, y1, x2, y2 = load(coco, image_size=256)[0][1]["boxes"][0].tolist()
    assert x1 < x2 and y1 < y2


def test_names_out_of_the_file_cannot_break_the_report(coco: Any) -> None:
    name = "a\n\x1b[31m.png"
    (coco.images / "a.png").rename(coco.images / name)
    coco.spoil(lambda c: (c["images"][0].update(file_name=name), c["annotations"][0].update(bbox=["\n" * 500], id="\n")))
    assert all(line.isprintable() and len(line) < 300 for line in load(coco).report.lines())


# masks


def test_masks_from_polygons_and_run_lengths(coco: Any) -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[2:10, 4:14] = 1
    code = coco_mask.encode(np.asfortranarray(mask))
    runs = [4 * 20 + 2, *[8, 12] * 9, 8, 800 - (13 * 20 + 10)]
    segmentations = [
        [[4, 2, 14, 2, 14, 10, 4, 10]],
        {"size": [20, 40], "counts": runs},
        {"size": [20, 40], "counts": code["counts"].decode()},
    ]
    for segmentation in segmentations:
        coco.content["annotations"] = [
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [4, 2, 10, 8], "segmentation": segmentation}
        ]
        coco.write()
        target = load(coco, with_masks=True)[0][1]
        assert target["masks"].dtype == torch.bool and torch.equal(target["masks"][0], torch.from_numpy(mask).bool())
        doubled = load(coco, with_masks=True, image_size=80)[0][1]["masks"]
        assert torch.equal(doubled[0], torch.from_numpy(mask).bool().repeat_interleave(2, 0).repeat_interleave(2, 1))
        assert load(coco, with_masks=True)[1][1]["masks"].shape == (0, 40, 40)


def test_random_masks_through_compressed_run_lengths(coco: Any) -> None:
    masks = np.random.default_rng(0).random((30, 20, 40)) < np.linspace(0, 1, 30)[:, None, None]
    codes = [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode() for mask in masks]
    coco.content["annotations"] = [
        {"image_id": 7, "category_id": 5, "bbox": [0, 0, 40, 20], "segmentation": {"size": [20, 40], "counts": counts}}
        for counts in codes
    ]
    coco.write()
    assert np.array_equal(load(coco, with_masks=True)[0][1]["masks"].numpy(), masks)


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        (None, "expected a list of polygons"),
        ([], "expected a list of polygons"),
        ([[1, 2, 3, 4]], "got the polygon [1, 2, 3, 4]"),
        ([[1, 2, 3, 4, 5, float("nan")]], "expected finite numbers"),
        ([[1, 2, 3, 4, 5, 10**400]], "expected finite numbers"),
        ([["a"] * 6], "got the polygon"),
        ({"size": [40, 20], "counts": [800]}, "expected the size [20, 40] of the image; got [40, 20]"),
        ({"size": [20, 40], "counts": [799]}, "expected counts >= 0 that sum to 800; got [799]"),
        ({"size": [20, 40], "counts": [-1, 801]}, "expected counts >= 0 that sum to 800"),
        ({"size": [20, 40], "counts": "0"}, "compressed counts that sum to 800; got '0'"),
        ({"size": [20, 40], "counts": "o" * 40}, "in the compressed counts"),
        ({"size": [20, 40], "counts": "o"}, "broken compressed counts"),
        ({"size": [20, 40], "counts": "é"}, "'é' in the compressed counts"),
        ({"size": [20, 40]}, "compressed counts that sum to 800; got None"),
    ],
)
def test_broken_masks(coco: Any, segmentation: object, problem: str) -> None:
    coco.spoil(lambda c: c["annotations"][0].update(segmentation=segmentation))
    data = load(coco, with_masks=True)
    message = refusal(lambda: data[0])
    assert f"{coco.annotations}: annotation 11 of image 7: segmentation: " in message and problem in message


# real data


def test_bccd_as_published_has_two_boxes_without_area(bccd: Path) -> None:
    data = CocoDataset(bccd / "images", bccd / "instances_train_asis.json", image_size=256)
    assert len(data) == 292 and data.class_names == ("WBC", "RBC", "Platelets")
    assert data.report == BoxReport("instances_train_asis.json", 3943, no_area=2, examples=data.report.examples)
    assert [line.split(" of ")[0] for line in data.report.examples] == ["annotation 99504", "annotation 99181"]
    image, target = data[0]
    assert image.shape == (3, 192, 256) and torch.allclose(target["scale"], torch.tensor(0.4))
    mended = CocoDataset(bccd / "images", bccd / "instances_train.json", image_size=256)
    assert mended.report.total == data.report.kept == 3941 and not mended.report.has_problems
