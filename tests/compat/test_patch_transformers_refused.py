"""The patch of transformers as a whole: put in place and taken back, refused where the code is not the one it knows."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import detloss
from detloss.compat.patches import PatchMismatchError, plan

pytest.importorskip("transformers")

from transformers import loss as folder
from transformers.loss import loss_d_fine


def originals() -> dict[str, Any]:
    return {replacement.where: replacement.get() for replacement in plan("transformers").replacements}


def test_unpatch_restores_and_patching_twice_does_no_harm() -> None:
    before = originals()
    with detloss.patch("transformers") as outer:
        assert all(now is not before[name] for name, now in originals().items()) and set(outer.replaced) == set(before)
        with detloss.patch("transformers"):
            pass
        assert outer.active
    assert originals() == before
    detloss.patch("transformers")
    detloss.unpatch("transformers")
    assert originals() == before


def test_what_is_left_exists_and_has_a_reason() -> None:
    for name, reason in plan("transformers").left.items():
        module, _, path = name.partition(".loss.")[2].partition(".")
        owner: Any = getattr(folder, module)
        for part in path.split("."):
            owner = getattr(owner, part)
        assert callable(owner) and len(reason) > 10


def test_refuses_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = originals()
    monkeypatch.setattr(loss_d_fine, "translate_gt", lambda *arguments: None)
    with pytest.raises(PatchMismatchError, match=r"loss_d_fine\.translate_gt"):
        detloss.patch("transformers")
    assert originals() == before


def test_refuses_a_class_that_overrides_what_it_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_d_fine.DFineLoss, "loss_boxes", lambda self, *arguments: {}, raising=False)
    with pytest.raises(PatchMismatchError, match=r"DFineLoss\.loss_boxes"):
        detloss.patch("transformers")


def test_refuses_a_version_without_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(folder, "loss_deimv2")
    monkeypatch.setitem(sys.modules, "transformers.loss.loss_deimv2", None)
    with pytest.raises(PatchMismatchError, match="lacks a module"):
        detloss.patch("transformers")


def test_says_that_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        detloss.patch("transformers")
