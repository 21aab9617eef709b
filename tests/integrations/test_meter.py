"""Running means of losses, and what can be asked of the package without any framework."""

from __future__ import annotations

import pytest
import torch

import detloss.integrations
from detloss import LossDict
from detloss.integrations import LossMeter


def test_means_of_what_each_step_had() -> None:
    meter = LossMeter()
    meter.update(None)
    meter.update(LossDict({"loss_cls": torch.tensor(1.0, requires_grad=True)}, metrics={"num_pos": torch.tensor(3)}))
    meter.update(LossDict({"loss_cls": torch.tensor(3.0), "loss_box": torch.tensor(5.0)}))
    meter.update({"loss_box": torch.tensor(7.0, dtype=torch.bfloat16)})
    found = meter.means("train/")
    assert found == {"train/total_loss": 4.5, "train/loss_cls": 2.0, "train/num_pos": 3.0, "train/loss_box": 6.0}
    meter.reset()
    assert meter.means() == {}


def test_a_loss_is_not_changed_by_what_is_added_to_it() -> None:
    meter, value = LossMeter(), torch.tensor(1.0)
    meter.update({"loss": value})
    meter.update({"loss": value})
    assert value == 1 and meter.means() == {"loss": 1.0}


@pytest.mark.parametrize(("value", "got"), [(torch.zeros(2), r"shape \[2\]"), (1.0, "float")])
def test_what_is_no_scalar_is_an_error(value: object, got: str) -> None:
    with pytest.raises(ValueError, match=f"LossMeter: loss must be a 0-dim tensor; got {got}"):
        LossMeter().update({"loss": value})  # type: ignore[dict-item]


def test_frameworks_are_loaded_on_demand() -> None:
    assert detloss.integrations.torchvision.with_criterion
    assert {"torchvision", "transformers", "ultralytics"} <= set(dir(detloss.integrations))
    with pytest.raises(AttributeError, match="no attribute 'mmdet'; it has LossMeter, torchvision, transformers, ultralytics"):
        detloss.integrations.mmdet  # noqa: B018
