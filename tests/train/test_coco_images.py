"""The images of COCO-format data: decoding, damage, and file names that lead elsewhere."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from train.coco_checks import LEAVES, check_refused, load, refusal

from detloss.train.data import CocoDataset

# image files


def test_exif_orientation_is_applied(coco: Any) -> None:
    upright = Image.open(coco.images / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(coco.images / "turned.png", exif=exif)
    for size in ({"width": 40, "height": 20}, {}):
        coco.content["images"][0] = {"id": 7, "file_name": "turned.png", **size}
        coco.write()
        image, target = load(coco)[0]
        assert np.array_equal(image.numpy(), np.asarray(upright).transpose(2, 0, 1))
        assert target["orig_size"].tolist() == [20, 40]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_kind_of_pixel_becomes_rgb(coco: Any, mode: str) -> None:
    grey = Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (20, 1)))
    name = "other.tif" if mode == "CMYK" else "other.png"
    if mode == "I;16":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 256 + 100).save(coco.images / name)
    else:
        (grey.convert("RGB") if mode in ("CMYK", "RGBA") else grey).convert(mode).save(coco.images / name)
    coco.spoil(lambda c: c["images"][0].update(file_name=name))
    image, _ = load(coco)[0]
    expected = grey.convert("1" if mode == "1" else "L")
    difference = image.int() - torch.from_numpy(np.asarray(expected.convert("L")).astype(np.int32))
    assert image.shape == (3, 20, 40) and difference.abs().max() <= {"CMYK": 3, "I;16": 1}.get(mode, 0)


def test_a_large_jpeg_is_reduced_to_what_a_full_decode_gives(coco: Any) -> None:
    y, x = np.mgrid[0:480, 0:640]
    pixels = np.stack([x / 640, y / 480, (x + y) / 1120], 2) * 255
    Image.fromarray(pixels.astype(np.uint8)).save(coco.images / "large.jpg", quality=95)
    coco.spoil(lambda c: c["images"][0].update(file_name="large.jpg", width=640, height=480))
    image, target = load(coco, image_size=256)[0]
    assert image.shape == (3, 192, 256) and target["orig_size"].tolist() == [480, 640]
    expected = Image.open(coco.images / "large.jpg").resize((256, 192), Image.Resampling.BILINEAR)
    assert (image.int() - torch.from_numpy(np.array(expected).transpose(2, 0, 1)).int()).abs().max() <= 4
    assert target["boxes"][0].tolist() == pytest.approx([1.6, 0.8, 5.6, 4.0])


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_an_unreadable_image_is_named_when_it_is_read(coco: Any, damage: str) -> None:
    path = coco.images / "a.png"
    good = path.read_bytes()
    path.write_bytes({"text": b"no image", "truncated": good[: len(good) // 2], "empty": b""}[damage])
    data = load(coco)
    message = refusal(lambda: data[0])
    assert str(path) in message and "image 7" in message and "expected one of BMP, GIF, JPEG, PNG" in message


def test_an_image_of_another_format_is_refused(coco: Any) -> None:
    (coco.images / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 20\n")
    assert "cannot read image 7" in refusal(lambda: load(coco)[0])


def test_an_image_of_another_size_than_stated(coco: Any) -> None:
    coco.spoil(lambda c: c["images"][0].update(width=80))
    message = refusal(lambda: load(coco)[0])
    assert "image 7 is 40x20 pixels" in message and f"{coco.annotations} says 80x20" in message


def test_a_missing_image_is_named_at_the_start(coco: Any) -> None:
    (coco.images / "b.png").unlink()
    check_refused(coco, "image 3", "'b.png'", "no such image file", LEAVES, str(coco.images))


# file names that lead elsewhere


@pytest.mark.parametrize(
    "name", ["../secret.png", "x/../../secret.png", "{root}/secret.png", "..", "C:\\secret.png", "..\\s.png"]
)
def test_a_file_name_that_leaves_the_image_folder(coco: Any, name: str) -> None:
    Image.new("RGB", (40, 20)).save(coco.root / "secret.png")
    name = name.format(root=coco.root)
    coco.spoil(lambda c: c["images"][0].update(file_name=name))
    check_refused(coco, "image 7", "leaves the image folder", LEAVES)


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs symbolic links")
def test_links_may_stay_inside_but_not_lead_out(coco: Any) -> None:
    Image.new("RGB", (40, 20)).save(coco.root / "secret.png")
    (coco.images / "out.png").symlink_to(coco.root / "secret.png")
    (coco.images / "inside.png").symlink_to(coco.images / "a.png")
    coco.spoil(lambda c: c["images"][0].update(file_name="inside.png"))
    assert len(load(coco)) == 2
    coco.spoil(lambda c: c["images"][0].update(file_name="out.png"))
    check_refused(coco, "image 7", "'out.png'", "leaves the image folder through a link")
    (coco.root / "linked").symlink_to(coco.images, target_is_directory=True)
    coco.spoil(lambda c: c["images"][0].update(file_name="a.png"))
    assert len(CocoDataset(coco.root / "linked", coco.annotations, image_size=40)) == 2


@pytest.mark.parametrize("name", ["a\0.png", "x" * 5000, "a\nb\x1b[31m.png", "."])
def test_a_file_name_that_is_none(coco: Any, name: str) -> None:
    coco.spoil(lambda c: c["images"][0].update(file_name=name))
    check_refused(coco, "image 7", LEAVES)


def test_images_may_lie_in_folders_of_the_image_folder(coco: Any) -> None:
    (coco.images / "sub").mkdir()
    (coco.images / "a.png").rename(coco.images / "sub" / "a.png")
    coco.spoil(lambda c: c["images"][0].update(file_name="sub/a.png"))
    assert load(coco)[0][0].shape == (3, 20, 40)
