"""MaskHeadLoss: values by hand, which masks and pixels count, options and errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detloss.assigners.samplers import PseudoSampler
from detloss.criteria.mask_head import MaskHeadLoss
from detloss.criteria.roi_head import RoIHeadLoss

BOXES = torch.tensor([[0.0, 0.0, 8.0, 8.0], [16.0, 16.0, 32.0, 32.0]])


def target(**more: Any) -> dict[str, Tensor]:
    """Two objects: the left half of the first box, and all of the second one."""
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[0, :9, :4] = True
    masks[1, 16:33, 16:33] = True
    return {"boxes": BOXES, "labels": torch.tensor([1, 0]), "masks": masks, **more}


EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": torch.zeros(0, 40, 40)}


def zeros(rows: int, channels: int = 2, size: int = 4) -> Tensor:
    return torch.zeros(rows, channels, size, size, requires_grad=True)


def test_the_targets_by_hand() -> None:
    """Bins of two pixels, samples at 0.5, 1.5 | 2.5, 3.5 | …: at 3.5 the mask, which ends with pixel 3, is ½."""
    matched = MaskHeadLoss(2).match(zeros(2), [BOXES], [target()])
    assert torch.equal(matched.true[0], torch.tensor([1.0, 0.75, 0.0, 0.0]).expand(4, 4))
    assert torch.equal(matched.true[1], torch.ones(4, 4))


def test_aligned_and_thresholded_targets() -> None:
    """Aligned, the samples of a bin are the pixels themselves; a threshold makes 0 and 1 of what lies between."""
    aligned = MaskHeadLoss(2, aligned=True).match(zeros(2), [BOXES], [target()])
    assert torch.equal(aligned.true[0], torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4))
    sharp = MaskHeadLoss(2, threshold=0.5).match(zeros(2), [BOXES], [target()])
    assert torch.equal(sharp.true[0], torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4))


def test_the_loss_is_the_mean_over_pixels_of_the_mask_of_the_own_class() -> None:
    logits = torch.full((2, 2, 4, 4), 3.0)
    logits[0, 1] = logits[1, 0] = 0.0  # classes 1 and 0
    losses = MaskHeadLoss(2)(logits.requires_grad_(), [BOXES], [target()])
    assert losses["loss_mask"].item() == pytest.approx(math.log(2))
    assert losses.metrics["num_pos"] == 2
    (grad,) = torch.autograd.grad(losses["loss_mask"], logits)
    assert grad.abs().sum((2, 3)).nonzero().tolist() == [[0, 1], [1, 0]]
    assert grad[1, 0].tolist() == [[pytest.approx(-0.5 / 32)] * 4] * 4


def test_torchvision_counts_the_background_as_channel_0() -> None:
    logits = zeros(2, channels=3)
    losses = MaskHeadLoss(2, background="first")(logits, [BOXES], [target()])
    (grad,) = torch.autograd.grad(losses["loss_mask"], logits)
    assert grad.abs().sum((2, 3)).nonzero().tolist() == [[0, 2], [1, 1]]


def test_class_agnostic_masks_equal_those_of_one_class() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 4, 4)
    a = MaskHeadLoss(2, class_agnostic=True)(logits, [BOXES], [target()])
    assert torch.equal(a["loss_mask"], MaskHeadLoss(2)(logits.repeat(1, 2, 1, 1), [BOXES], [target()])["loss_mask"])


@pytest.mark.parametrize(
    ("loss_mask", "expected"),
    [
        # The mean over masks of 1 − (2·½·(4·1.75) + 1)/(8 + 7 + 1) and 1 − (16 + 1)/(8 + 16 + 1).
        ("DiceLoss", (1 - 8 / 16 + 1 - 17 / 25) / 2),
        ({"type": "CrossEntropyLoss", "use_mask": True}, math.log(2)),
        ({"type": "MaskBCELoss", "loss_weight": 3.0}, 3 * math.log(2)),
    ],
)
def test_other_losses(loss_mask: Any, expected: float) -> None:
    losses = MaskHeadLoss(2, loss_mask=loss_mask)(zeros(2), [BOXES], [target()])
    assert losses["loss_mask"].item() == pytest.approx(expected)


def test_samples_of_a_box_head_give_the_positives() -> None:
    proposals = torch.cat((BOXES + 0.5, torch.tensor([[60.0, 60.0, 70.0, 70.0]])))
    samples = RoIHeadLoss(2, sampler=PseudoSampler(), append_ground_truth=False).sample([proposals] * 2, [target(), EMPTY])
    assert samples.positives.counts == (2, 0)
    criterion, logits = MaskHeadLoss(2), torch.randn(2, 2, 4, 4)
    expected = criterion(logits, [BOXES + 0.5, BOXES[:0]], [target(), EMPTY])["loss_mask"]
    for given in (samples, samples.positives):
        assert torch.equal(criterion(logits, given, [target(), EMPTY])["loss_mask"], expected)


def test_proposals_without_an_object_do_not_count() -> None:
    far = torch.tensor([[60.0, 60.0, 70.0, 70.0], [math.nan, 0.0, 1.0, 1.0]])
    logits = torch.randn(4, 2, 4, 4)
    losses = MaskHeadLoss(2)(logits, [torch.cat((BOXES, far))], [target()])
    assert losses.metrics["num_pos"] == 2
    assert torch.equal(losses["loss_mask"], MaskHeadLoss(2)(logits[:2], [BOXES], [target()])["loss_mask"])


def test_a_crowd_gets_no_mask() -> None:
    losses = MaskHeadLoss(2)(zeros(2), [BOXES], [target(iscrowd=torch.tensor([0, 1]))])
    assert losses.metrics["num_pos"] == 1


@pytest.mark.parametrize("images", [0, 1, 2])
def test_no_positives_give_a_connected_0(images: int) -> None:
    logits = zeros(0)
    no_masks = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = MaskHeadLoss(2)(logits, [BOXES[:0]] * images, [EMPTY, no_masks][:images])
    assert losses["loss_mask"] == 0
    torch.autograd.grad(losses["loss_mask"], logits)
    some = zeros(2)
    losses = MaskHeadLoss(2)(some, [BOXES], [EMPTY])
    (grad,) = torch.autograd.grad(losses["loss_mask"], some)
    assert losses["loss_mask"] == 0 and not grad.any()


def test_images_of_different_sizes_and_nan_in_one_of_them() -> None:
    small = {"boxes": BOXES[:1], "labels": torch.tensor([0]), "masks": torch.ones(1, 9, 30, dtype=torch.uint8)}
    logits = torch.zeros(3, 2, 4, 4)
    logits[2] = math.nan
    losses = MaskHeadLoss(2)(logits.requires_grad_(), [BOXES, BOXES[:1]], [target(), small])
    (grad,) = torch.autograd.grad(losses["loss_mask"], logits)
    assert losses.metrics["num_pos"] == 3 and torch.isfinite(grad[:2]).all() and grad[:2].any()


def test_a_small_budget_changes_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 14, 14, dtype=torch.float64)
    a, b = (MaskHeadLoss(2, memory_budget=n)(logits, [BOXES], [target()])["loss_mask"] for n in (1, 2**26))
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("logits", "targets", "words"),
    [
        (zeros(3), target(), r"mask_logits must have shape \[2, 2, M, M\], one row per positive sample; got \[3, 2, 4, 4\]"),
        (zeros(2, 3), target(), r"mask_logits must have shape \[2, 2, M, M\]"),
        (zeros(2), {"boxes": BOXES, "labels": torch.tensor([1, 0])}, r"targets\[0\] has no 'masks'; got keys"),
        (zeros(2), target(masks=torch.zeros(1, 9, 9)), r"targets\[0\]\['masks'\] must have shape \[2, H, W\], one mask per box"),
    ],
)
def test_wrong_inputs_are_named(logits: Tensor, targets: dict[str, Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskHeadLoss(2)(logits, [BOXES], [targets])


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="threshold must be a finite number >= 0"):
        MaskHeadLoss(2, threshold=-1.0)
    with pytest.raises(ValueError, match="num_classes must be an integer >= 1"):
        MaskHeadLoss(0)
