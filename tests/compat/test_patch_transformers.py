"""Patched detectors of transformers train with the losses of the unpatched ones, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compat.patched_training import Losses, compare
from torch import Tensor

import detloss

pytest.importorskip("transformers")

from compat.transformers_models import CLASSES, MODELS, QUERIES, SIDE

COUNTS = ((3, 1), (2, 0), (4, 6), (1, 2))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower with several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def labels_of(counts: tuple[int, ...], seed: int = 0) -> list[dict[str, Tensor]]:
    """Objects (cx, cy, w, h) in units of the image."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for count in counts:
        size = 0.1 + 0.4 * torch.rand(count, 2, generator=generator)
        centre = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
        classes = torch.randint(CLASSES, (count,), generator=generator)
        made.append({"boxes": torch.cat((centre, size), 1), "class_labels": classes})
    return made


def step(model: Any, index: int) -> Losses:
    """The total has the gradient; its parts are shown."""
    counts = COUNTS[index % len(COUNTS)]
    images = torch.randn(len(counts), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(index))
    found = model(pixel_values=images, labels=labels_of(counts, index))
    return {"total": found.loss, **{name: value.detach() for name, value in found.loss_dict.items()}}


@pytest.mark.parametrize(
    # A rounding error becomes another match, and so another training, the sooner the longer the steps are.
    ("name", "steps", "rate", "loss"),
    [
        ("detr", 20, 2e-3, "loss_ce_0"),
        ("deformable", 20, 2e-3, "loss_giou_0"),
        ("conditional", 3, 2e-3, "loss_bbox_0"),
        ("dab", 3, 2e-3, "cardinality_error_0"),
        ("table", 3, 2e-3, "loss_ce_0"),
        ("yolos", 20, 2e-3, "loss_ce"),
        ("rt_detr", 20, 2e-4, "loss_vfl_dn_1"),
        ("rt_detr_v2", 3, 2e-4, "loss_giou_aux_1"),
        ("d_fine", 20, 3e-5, "loss_fgl_dn_1"),
        ("deimv2", 3, 3e-5, "loss_mal_aux_1"),
        ("lw_detr", 3, 2e-3, "loss_ce_enc"),
    ],
)
def test_trains_alike(name: str, steps: int, rate: float, loss: str) -> None:
    history = compare("transformers", MODELS[name], step, steps, rate)
    assert loss in history[0]
    for distilled in ("loss_ddf_aux_0", "loss_ddf_dn_0"):
        assert history[0].get(distilled, 1.0) > 1e-2


def test_models_and_loss_functions_that_exist_are_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was taken from the mapping before; no table of all queries and the objects of all images is made."""
    model = MODELS["detr"]()
    model.loss_function = pinned = model.loss_function
    want = step(model, 0)
    with detloss.patch("transformers"):
        monkeypatch.setattr(torch, "cdist", None)  # theirs makes it of such a table
        got = step(model, 0)
    assert model.loss_function is pinned
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-7)


def test_queries_meet_the_objects_of_their_own_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for all layers, [layers · images, most objects of an image, queries]."""
    from detloss.assigners import hungarian

    seen, solve = [], hungarian.least_cost_match
    monkeypatch.setattr(hungarian, "least_cost_match", lambda cost: seen.append(tuple(cost.shape)) or solve(cost))
    model = MODELS["rt_detr"]()
    with detloss.patch("transformers"):
        step(model, 2)
    assert seen == [((2 + 1) * 2, 6, QUERIES)]  # two decoder layers and the encoder
