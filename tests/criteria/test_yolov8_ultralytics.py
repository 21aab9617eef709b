"""ultralytics' v8DetectionLoss gives the same losses and gradients as YOLOv8Loss.preset("ultralytics")."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from detloss import YOLOv8Loss

theirs = pytest.importorskip("ultralytics.utils.loss")
tal = pytest.importorskip("ultralytics.utils.tal")

STRIDES, SIDE = (8, 16, 32), 160
SIZES = tuple((SIDE // s, SIDE // s) for s in STRIDES)
TERMS = ("loss_box", "loss_cls", "loss_dfl")  # in their order


class Model(nn.Module):
    """What their criterion reads of a model: a parameter, the gains and the head."""

    def __init__(self, num_classes: int, reg_max: int) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
        self.model = [SimpleNamespace(stride=torch.tensor(STRIDES, dtype=torch.float32), nc=num_classes, reg_max=reg_max)]


def random_targets(counts: tuple[int, ...], num_classes: int, least: float = 3.0) -> list[dict[str, Tensor]]:
    """Boxes from ``least`` pixels to the whole image, inside it."""
    made = []
    for count in counts:
        size = least + torch.rand(count, 2) ** 2 * (SIDE - least)
        corner = torch.rand(count, 2) * (SIDE - size)
        made.append({"boxes": torch.cat((corner, corner + size), 1), "labels": torch.randint(num_classes, (count,))})
    return made


def random_maps(images: int, num_classes: int, reg_max: int) -> list[Tensor]:
    """Maps of their older head, [B, 4·reg_max + C, H, W], whose boxes are a few strides large, as in the midst of training."""
    maps = []
    for height, width in SIZES:
        bins = torch.randn(images, 4, reg_max, height, width)
        peak = torch.rand(images, 4, 1, height, width) * (reg_max - 1) * 0.6
        bins = bins - (torch.arange(reg_max).view(1, 1, -1, 1, 1) - peak).abs()
        maps.append(torch.cat((bins.flatten(1, 2), torch.randn(images, num_classes, height, width) * 2 - 2), 1))
    return maps


def batch_of(targets: list[dict[str, Tensor]], dtype: torch.dtype) -> dict[str, Tensor]:
    """The targets as their data loader gives them: image, class, centre and size relative to the image."""
    boxes = torch.cat([t["boxes"] for t in targets]).to(dtype)
    relative = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / SIDE
    image = torch.repeat_interleave(torch.arange(len(targets)), torch.tensor([len(t["labels"]) for t in targets]))
    return {"batch_idx": image.to(dtype), "cls": torch.cat([t["labels"] for t in targets]).to(dtype)[:, None], "bboxes": relative}


def expected(maps: list[Tensor], targets: list[dict[str, Tensor]], num_classes: int, reg_max: int) -> Tensor:
    """Their (box, cls, dfl)."""
    joined = torch.cat([x.flatten(2) for x in maps], 2)
    boxes, scores = joined.split((4 * reg_max, num_classes), 1)
    criterion = theirs.v8DetectionLoss(Model(num_classes, reg_max))
    losses: Tensor = criterion({"boxes": boxes, "scores": scores, "feats": maps}, batch_of(targets, maps[0].dtype))[0]
    return losses


def compare(
    counts: tuple[int, ...], num_classes: int, reg_max: int, dtype: torch.dtype, tolerance: float, **options: object
) -> None:
    targets = random_targets(counts, num_classes)
    maps = [x.to(dtype).requires_grad_() for x in random_maps(len(counts), num_classes, reg_max)]
    criterion = YOLOv8Loss.preset("ultralytics", num_classes=num_classes, reg_max=reg_max, **options)
    losses = criterion(*criterion.split_outputs(maps), targets)
    assert losses.metrics["num_pos"] >= sum(counts)
    for name, want in zip(TERMS, expected(maps, targets, num_classes, reg_max), strict=True):
        torch.testing.assert_close(losses[name], want, rtol=tolerance, atol=0, msg=lambda text, name=name: f"{name}: {text}")
        got, true = (torch.autograd.grad(x, maps, retain_graph=True) for x in (losses[name], want))
        scale = max(g.abs().max() for g in true)
        for a, b in zip(got, true, strict=True):
            assert (a - b).abs().max() <= tolerance * scale, name


BATCHES = [((4, 0, 7), 3, 16), ((1, 1), 80, 16), ((0, 30, 12, 3), 20, 8), ((0, 0), 5, 16)]
every_batch = pytest.mark.parametrize(("counts", "num_classes", "reg_max"), BATCHES, ids=[str(b[0]) for b in BATCHES])


@pytest.mark.parametrize("seed", range(4))
@every_batch
def test_losses_and_gradients_agree_in_float32(counts: tuple[int, ...], num_classes: int, reg_max: int, seed: int) -> None:
    torch.manual_seed(seed)
    compare(counts, num_classes, reg_max, torch.float32, 1e-5)


@pytest.fixture
def positive_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """No choices of metric 0.

    An object with fewer than topk aligned locations fills up with locations of metric 0, in the order in which ``topk`` happens
    to return equal values. Two such choices of one location count as a conflict there, which hands the location to a third
    object that did not choose it.
    """
    whole = tal.TaskAlignedAssigner.select_topk_candidates

    def aligned(self: nn.Module, metrics: Tensor, topk_mask: Tensor | None = None) -> Tensor:
        return whole(self, metrics, topk_mask) * (metrics > 0)

    monkeypatch.setattr(tal.TaskAlignedAssigner, "select_topk_candidates", aligned)


@pytest.mark.parametrize("seed", range(4))
def test_crowded_images_agree_in_float32(positive_choices: None, seed: int) -> None:
    torch.manual_seed(seed)
    compare((100, 50), 80, 16, torch.float32, 1e-5)


@pytest.mark.parametrize("seed", range(2))
@every_batch
def test_losses_and_gradients_agree_in_float64_but_for_their_eps(
    monkeypatch: pytest.MonkeyPatch,
    positive_choices: None,
    counts: tuple[int, ...],
    num_classes: int,
    reg_max: int,
    seed: int,
) -> None:
    """They add 1e-7 to areas and heights in strides; with 1e-300 in its place nothing is left of the difference."""
    for module in (theirs, tal):
        monkeypatch.setattr(module, "bbox_iou", partial(module.bbox_iou, eps=1e-300))
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the dtype of their accumulators
    try:
        compare(counts, num_classes, reg_max, torch.float64, 1e-9)
    finally:
        torch.set_default_dtype(before)
