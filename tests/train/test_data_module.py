"""Batches: a function of seed, epoch and index, of the sizes that are promised."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from detloss.train.data import DetectionData, DigitsDataset, boxes_in_original, digits, write_coco
from detloss.train.data.batch import PADDING, collate
from detloss.train.data.loading import EpochSampler
from detloss.train.data.seeding import stream_seed
from detloss.train.errors import UserError

Batch = tuple[Tensor, list[dict[str, Tensor]]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring for images this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_coco(DigitsDataset("train", 10, (64, 96)), folder, "train")
    write_coco(DigitsDataset("val", 5, (64, 96)), folder, "val")
    return folder


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "LENGTHS", {"train": 20, "val": 6})


def epoch_of(data: DetectionData, epoch: int) -> list[Batch]:
    data.set_epoch(epoch)
    return list(data.train_dataloader())


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        and all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(s, t, strict=True))
        for (a, s), (b, t) in zip(first, second, strict=True)
    )


def ids_of(batches: list[Batch]) -> list[int]:
    return [int(target["image_id"]) for _, targets in batches for target in targets]


# what is in it


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("name", [None, "digits"])
def test_digits(name: str | None) -> None:
    data = DetectionData(name, batch_size=8)
    assert data.name == "digits" and data.num_classes == 10 and data.class_names == tuple("0123456789")
    assert data.reports == {} and "CC BY 2.0" in data.attribution
    assert data.augmentation is not None and data.augmentation.flips == ()
    batches = epoch_of(data, 0)
    assert [len(targets) for _, targets in batches] == [8, 8, 4] and sorted(ids_of(batches)) == list(range(20))
    images, targets = batches[0]
    assert images.shape == (8, 3, 128, 128) and images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert all(t.keys() - {"iscrowd"} == {"boxes", "labels", "image_id"} for t in targets)
    assert all(type(value) is Tensor for target in targets for value in target.values())


def test_a_folder(digits_folder: Path) -> None:
    data = DetectionData(digits_folder, batch_size=4)
    assert data.name == digits_folder.name and data.num_classes == 10 and data.attribution == ""
    assert data.reports.keys() == {"train", "val"} and not data.reports["train"].has_problems
    assert data.augmentation is not None and data.augmentation.flips == ("horizontal",)
    # 64 x 96 at 256: 171 x 256, rounded up
    assert {tuple(images.shape[2:]) for images, _ in epoch_of(data, 0)} == {(192, 256)}
    assert {tuple(images.shape[2:]) for images, _ in data.val_dataloader()} == {(192, 256)}


def test_explicit_paths(digits_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(digits_folder / "images", tmp_path / "pictures")
    train = shutil.copy(digits_folder / "instances_train.json", tmp_path / "t.json")
    val = shutil.copy(digits_folder / "instances_val.json", tmp_path / "v.json")
    for base in (None, "digits"):
        data = DetectionData(base, images=moved, train_annotations=str(train), val_annotations=val, image_size=96)
        assert (len(data.train_set), len(data.val_set)) == (10, 5) and data.name == tmp_path.name
    data = DetectionData(digits_folder, val_annotations=train)
    assert len(data.val_set) == 10
    assert DetectionData(tmp_path / "gone", images=moved, train_annotations=train, val_annotations=val).num_classes == 10


def test_places_that_are_missing(digits_folder: Path, tmp_path: Path) -> None:
    expected = "expected a folder with images/, instances_train.json and instances_val.json, or 'digits'"
    with pytest.raises(UserError, match=f"no such folder: .*nowhere; {expected}"):
        DetectionData(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a folder: .*instances_val\.json"):
        DetectionData(digits_folder / "instances_val.json")
    with pytest.raises(UserError, match="data: train_annotations and val_annotations missing; expected all of images, train_"):
        DetectionData(images=digits_folder / "images")
    with pytest.raises(UserError, match=r"no such annotation file: .*gone\.json"):
        DetectionData(digits_folder, val_annotations=digits_folder / "gone.json")
    with pytest.raises(UserError, match=r"image folder: no such folder: .*gone"):
        DetectionData(digits_folder, images=digits_folder / "gone")
    with pytest.raises(UserError, match="flips: expected any of horizontal, vertical; got 'diagonal'"):
        DetectionData(flips=("diagonal",))


def test_train_without_boxes_is_refused_and_val_without_boxes_is_not(coco: Any) -> None:
    write = (coco.root / "instances_val.json").write_text
    write('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 5, "name": "cell"}]}')
    assert DetectionData(coco.root).reports["val"].total == 0
    coco.spoil(lambda c: c["annotations"].clear())
    with pytest.raises(UserError, match=r"instances_train\.json: the data set is empty: none of its 0 boxes"):
        DetectionData(coco.root)


def test_val_with_another_category_is_refused(coco: Any) -> None:
    text = coco.annotations.read_text()
    (coco.root / "instances_val.json").write_text(text.replace('"cell"', '"leaf"'))
    with pytest.raises(UserError, match=r"instances_val\.json: category 5 'leaf' is not one of the training file's"):
        DetectionData(coco.root)


# shapes


def test_collate_pads_right_and_bottom_to_multiples_of_32() -> None:
    images = [torch.full((3, 20, 40), 255, dtype=torch.uint8), torch.full((3, 33, 10), 0, dtype=torch.uint8)]
    batch, targets = collate([(image, {"labels": torch.tensor([k])}) for k, image in enumerate(images)])
    assert batch.shape == (2, 3, 64, 64) and [int(t["labels"]) for t in targets] == [0, 1]
    assert (batch[0, :, :20, :40] == 1).all() and (batch[1, :, :33, :10] == 0).all()
    padding = torch.tensor(PADDING) / 255
    assert torch.equal(batch[0, :, 20:].amax((1, 2)), padding) and torch.equal(batch[0, :, :, 40:].amin((1, 2)), padding)
    assert collate([(torch.zeros(3, 64, 96, dtype=torch.uint8), {})])[0].shape == (1, 3, 64, 96)


def test_val_targets_map_back_to_the_file(digits_folder: Path) -> None:
    data = DetectionData(digits_folder, image_size=100, batch_size=2)
    batches = list(data.val_dataloader())
    assert ids_of(batches) == [1, 2, 3, 4, 5] and same(batches, list(data.val_dataloader()))
    expected = DigitsDataset("val", 5, (64, 96))
    for _, targets in batches:
        for target in targets:
            assert target.keys() == {"boxes", "labels", "image_id", "orig_size", "scale", "area"}
            truth = expected[int(target["image_id"]) - 1][1]
            torch.testing.assert_close(boxes_in_original(target["boxes"], target), truth["boxes"])
            assert torch.equal(target["labels"], truth["labels"]) and torch.equal(target["area"], truth["area"])


def test_crowds_are_flagged_in_the_targets_that_have_them(coco: Any) -> None:
    data = DetectionData(coco.root, augment=False, batch_size=2)
    for batches in (epoch_of(data, 0), list(data.val_dataloader())):
        crowds = {int(t["image_id"]): t.get("iscrowd") for _, targets in batches for t in targets}
        assert crowds[3] is None and crowds[7] is not None and crowds[7].tolist() == [0, 1]


# randomness


@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_a_function_of_seed_and_epoch(workers: int) -> None:
    reference = [epoch_of(DetectionData(batch_size=6, seed=3), epoch) for epoch in range(2)]
    assert not same(*reference) and ids_of(reference[0]) != ids_of(reference[1])
    assert not same(reference[0], epoch_of(DetectionData(batch_size=6, seed=4), 0))
    torch.manual_seed(99)
    data = DetectionData(batch_size=6, seed=3, workers=workers)
    loader = data.train_dataloader()
    for epoch in (1, 0, 1):  # the same loader, whose processes live on
        data.set_epoch(epoch)
        assert same(list(loader), reference[epoch])


def by_id(batch_size: int, epoch: int) -> dict[int, Tensor]:
    batches = epoch_of(DetectionData(batch_size=batch_size), epoch)
    return {int(t["image_id"]): image for images, targets in batches for image, t in zip(images, targets, strict=True)}


@pytest.mark.usefixtures("few_digits")
def test_an_item_does_not_depend_on_its_batch() -> None:
    single, many = by_id(1, epoch=5), by_id(7, epoch=5)
    assert single.keys() == many.keys() and all(torch.equal(single[key], many[key]) for key in single)


@pytest.mark.usefixtures("few_digits")
def test_every_image_is_augmented_anew_in_the_next_epoch() -> None:
    first, second = by_id(4, epoch=0), by_id(4, epoch=1)
    assert not any(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("few_digits")
def test_loading_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    data = DetectionData(batch_size=8)
    epoch_of(data, 0)
    list(data.val_dataloader())
    assert torch.equal(state, torch.get_rng_state())


def test_the_order_is_a_permutation_that_changes_with_the_epoch() -> None:
    sampler = EpochSampler(50, seed=1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch} and len(sampler) == 50
        orders.append([index for _, index in keys])
        assert sorted(orders[-1]) == list(range(50)) and orders[-1] != sorted(orders[-1])
    assert orders[0] != orders[1] != orders[2]


def test_streams_differ_by_purpose_and_key() -> None:
    keys = [("a",), ("b",), ("a", 0), ("a", 0, 0), ("a", 1), ("a", 0, 1), ("a", 1, 0)]
    assert len({stream_seed(*key) for key in keys}) == len(keys)
    assert stream_seed("a", 1, 2) == stream_seed("a", 1, 2)


class Recorder(LightningModule):
    """Notes the sum of every training batch, by the hooks a trainer would use."""

    def __init__(self, data: DetectionData) -> None:
        super().__init__()
        self.data = data
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, float]] = []

    def on_train_epoch_start(self) -> None:
        self.data.set_epoch(self.current_epoch)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self.seen.append((self.current_epoch, batch[0].double().sum().item()))
        return self.weight * batch[0].mean()

    def validation_step(self, batch: Batch, index: int) -> None:
        assert "orig_size" in batch[1][0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(tmp_path: Path, epochs: int, workers: int, checkpoint: Path | None = None) -> list[tuple[int, float]]:
    data = DetectionData(batch_size=10, workers=workers)
    module = Recorder(data)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
    return module.seen


@pytest.mark.usefixtures("few_digits")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path: Path, workers: int) -> None:
    whole = fit(tmp_path, 3, workers)
    assert [epoch for epoch, _ in whole] == [0, 0, 1, 1, 2, 2] and len({total for _, total in whole}) == 6
    assert fit(tmp_path, 2, workers) == whole[:4]
    assert fit(tmp_path, 3, workers, tmp_path / "2.ckpt") == whole[4:]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line_from_a_loading_process_too(coco: Any, workers: int) -> None:
    (coco.images / "b.png").write_bytes(b"no image")
    data = DetectionData(coco.root, workers=workers, batch_size=2)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(UserError) as caught:
            list(loader)
        message = str(caught.value)
        assert "\n" not in message and "b.png: cannot read image 3 of" in message


def test_without_augmentation_the_items_are_those_of_the_data_set(digits_folder: Path) -> None:
    data = DetectionData(digits_folder, augment=False, image_size=96, batch_size=1)
    expected = DigitsDataset("train", 10, (64, 96))
    for images, (target,) in epoch_of(data, 2):
        image, truth = expected[int(target["image_id"]) - 1]
        assert torch.equal(images[0], image.float() / 255) and torch.equal(target["boxes"], truth["boxes"])


# real data


def test_bccd_batches_follow_the_shape_of_the_images(bccd: Path) -> None:
    data = DetectionData(bccd, batch_size=8)
    assert data.name == "bccd" and data.class_names == ("WBC", "RBC", "Platelets")
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 192, 256) and all(len(target["boxes"]) for target in targets)
