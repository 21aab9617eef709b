"""The registry of autotimm: its published tests, and what it lacked."""

from __future__ import annotations

import warnings

import pytest
import torch
from compat.sides import peer
from torch import Tensor, nn

from detloss.compat.autotimm import losses
from detloss.compat.autotimm.losses import (
    DiceLoss,
    FocalLoss,
    LossRegistry,
    get_loss_registry,
    list_available_losses,
    register_custom_loss,
)


class Scaled(nn.Module):
    """A loss of a user."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return self.scale * (pred - target).abs().mean()


class Other(Scaled):
    """Another one."""


@pytest.mark.parametrize("task", [None, "classification", "detection", "segmentation", "Detection"])
def test_the_same_names_are_listed(task: str | None) -> None:
    assert list_available_losses(task) == peer("autotimm").losses.list_available_losses(task)


def test_the_same_names_and_aliases_make_the_same_losses() -> None:
    theirs = peer("autotimm").losses.LossRegistry()
    mine = LossRegistry()
    assert mine.get_loss_info() == theirs.get_loss_info()
    for name in (*theirs.list_losses(), "ce", "bce", "combined"):
        options = {"num_classes": 3} if name in ("dice", "tversky", "combined", "combined_segmentation", "fcos") else {}
        assert type(mine.get_loss(name, **options)).__name__ == type(theirs.get_loss(name, **options)).__name__


def test_get_loss_passes_options_on() -> None:
    registry = get_loss_registry()
    assert registry is get_loss_registry() and isinstance(registry, LossRegistry)
    assert isinstance(registry.get_loss("dice", num_classes=10), DiceLoss)
    focal = registry.get_loss("focal", alpha=0.3, gamma=1.0)
    assert isinstance(focal, FocalLoss) and (focal.alpha, focal.gamma) == (0.3, 1.0)
    assert registry.has_loss("dice") is True and registry.has_loss("no such") is False


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'gio' not found in registry. Did you mean 'giou'\? Losses: .*tversky"):
        get_loss_registry().get_loss("gio")
    with pytest.raises(ValueError, match=r"task must be one of .*; got 'segment'"):
        list_available_losses("segment")


def test_a_custom_loss() -> None:
    registry = LossRegistry()
    registry.register_loss("scaled", Scaled, alias="s")
    assert registry.has_loss("s") and registry.get_loss("s", scale=2.0)(torch.ones(2), torch.zeros(2)) == 2
    with pytest.raises(ValueError, match=r"subclass of nn\.Module"):
        registry.register_loss("bad", int)  # type: ignore[arg-type]


def test_a_custom_loss_can_be_listed_under_a_task_and_taken_out() -> None:
    register_custom_loss("scaled", Scaled, "s", task="detection")
    try:
        assert "scaled" in list_available_losses("detection") and "scaled" in list_available_losses()
    finally:
        get_loss_registry().unregister_loss("s")
    assert not get_loss_registry().has_loss("scaled") and not get_loss_registry().has_loss("s")
    assert "scaled" not in list_available_losses("detection")
    with pytest.raises(ValueError, match="'scaled' not found"):
        get_loss_registry().unregister_loss("scaled")


def test_another_class_under_a_taken_name_warns() -> None:
    registry = LossRegistry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.register_loss("focal", FocalLoss)
        registry.register_loss("mine", Scaled)
    with pytest.warns(UserWarning, match="'focal' was FocalLoss and is now Other"):
        registry.register_loss("focal", Other)
    assert isinstance(registry.get_loss("focal"), Other)
    with pytest.warns(UserWarning, match="'ce' was CrossEntropyLoss and is now Other"):
        registry.register_loss("ce", Other)
    assert isinstance(registry.get_loss("ce"), Other) and isinstance(registry.get_loss("cross_entropy"), nn.CrossEntropyLoss)
    assert LossRegistry().get_loss("focal").__class__ is losses.FocalLoss
