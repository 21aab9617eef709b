"""The compatibility layer needs PyTorch only, loads on demand, and compiles into one graph."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import detloss.compat
from detloss.compat import autotimm, effdet, fvcore, kornia, torchvision, transformers, ultralytics

PACKAGES = ("autotimm", "detectron2", "effdet", "fvcore", "kornia", "torchvision", "transformers", "ultralytics")

WITHOUT_PEERS = f"""
import importlib, sys

class NoPeers:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {PACKAGES!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoPeers())
import detloss.compat
before = [name for name in {PACKAGES!r} if f"detloss.compat.{{name}}" in sys.modules]
print(before, [getattr(detloss.compat, name).__name__ for name in {PACKAGES!r}])
"""


def test_peers_are_not_needed_and_loaded_when_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_PEERS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"[] {[f'detloss.compat.{name}' for name in PACKAGES]}"


def test_an_unknown_peer_is_an_error_that_names_the_others() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'torchvison'; it has .*kornia"):
        detloss.compat.__getattr__("torchvison")
    assert set(PACKAGES) <= set(dir(detloss.compat))


BOXES = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 5.0, 3.0]])
LABELS = torch.tensor([0, 2])
MAPS, PIXELS = torch.linspace(-2, 2, 24).reshape(2, 3, 2, 2), torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 2]]])
SPECIMENS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "torchvision-focal": (lambda x: torchvision.ops.sigmoid_focal_loss(x, torch.ones_like(x), reduction="mean"), MAPS),
    "torchvision-ciou": (lambda x: torchvision.ops.complete_box_iou_loss(x, BOXES.flip(0), reduction="sum"), BOXES),
    "fvcore-star": (lambda x: fvcore.nn.sigmoid_focal_loss_star(x, torch.ones_like(x), 0.3, 2.0, "mean"), MAPS),
    "autotimm-focal": (autotimm.FocalLoss().forward, MAPS),
    "autotimm-combined": (autotimm.CombinedSegmentationLoss(3).forward, MAPS),
    "kornia-focal": (lambda x, t=PIXELS: kornia.losses.focal_loss(x, t, 0.3, reduction="mean"), MAPS),
    "kornia-dice": (lambda x, t=PIXELS: kornia.losses.dice_loss(x, t, "macro"), MAPS),
    "ultralytics-focal": (lambda x: ultralytics.utils.loss.FocalLoss()(x, torch.ones_like(x)), MAPS),
    "ultralytics-ciou": (lambda x: ultralytics.utils.metrics.bbox_iou(x, BOXES.flip(0), xywh=False, CIoU=True).sum(), BOXES),
    "transformers-focal": (
        lambda x: transformers.loss.loss_for_object_detection.sigmoid_focal_loss(x, torch.ones_like(x), 3), MAPS,
    ),
    "effdet-focal": (lambda x: effdet.loss.new_focal_loss(x, torch.ones_like(x), 0.25, 2.0, 3.0).sum(), MAPS),
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIMENS)
def test_one_graph(name: str) -> None:
    loss, at = SPECIMENS[name]
    targets = (PIXELS,) if name.startswith("autotimm") else ()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(at, *targets), loss(at, *targets))


def test_compiled_fcos_loss() -> None:
    loss = autotimm.FCOSLoss(3)
    ready = ([MAPS], [torch.rand(2, 4, 2, 2)], [MAPS[:, :1]], [PIXELS], [torch.rand(2, 4, 2, 2)], [torch.rand(2, 2, 2)])
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    for name, value in compiled(*ready).items():
        torch.testing.assert_close(value, loss(*ready)[name])
