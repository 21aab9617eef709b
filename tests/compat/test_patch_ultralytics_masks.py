"""The mask losses of a patched ultralytics: same values and gradients, and of the pixels inside the boxes only."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import detloss

loss = pytest.importorskip("ultralytics.utils.loss")

PRIORS, PROTOTYPES, HEIGHT, WIDTH = 12, 4, 10, 14
OBJECTS = (3, 0, 2)  # of each image


def test_masks_cost_the_same_and_pixels_outside_the_boxes_nothing() -> None:
    gt_mask, pred, proto = (torch.rand(5, 20, 24) > 0.5).float(), torch.randn(5, 8), torch.randn(8, 20, 24)
    corner = torch.rand(5, 2) * 10
    xyxy = torch.cat((corner, corner + 1 + torch.rand(5, 2) * 9), 1)
    xyxy[0], xyxy[1] = torch.tensor([3.0, 2.0, 7.0, 5.0]), torch.tensor([-4.0, 2.5, 90.0, 5.5])
    area = torch.rand(5) + 0.1

    def found() -> list[torch.Tensor]:
        inputs = [x.clone().requires_grad_() for x in (pred, proto)]
        value = loss.v8SegmentationLoss.single_mask_loss(gt_mask, *inputs, xyxy, area)
        value.backward()
        return [value, *(x.grad for x in inputs)]

    expected = found()
    with detloss.patch("ultralytics"):
        torch.testing.assert_close(found(), expected)
        nothing = loss.v8SegmentationLoss.single_mask_loss(gt_mask[:0], pred[:0], proto, xyxy[:0], area[:0])
        assert nothing == 0
        proto[:, :, 23], xyxy[:, 2] = torch.inf, 20.0
        assert found()[0].isfinite()


def batch_of_masks(overlap: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Arguments of ``calculate_segmentation_loss``; the first box leaves the image, another one has no pixel."""
    generator = torch.Generator().manual_seed(0)
    fg = torch.rand(len(OBJECTS), PRIORS, generator=generator) < 0.6
    fg[1] = False
    counts = torch.tensor(OBJECTS)
    number = (torch.rand(fg.shape, generator=generator) * counts[:, None]).long()
    sides = torch.tensor([8.0 * WIDTH, 8.0 * HEIGHT] * 2, dtype=dtype)
    corner = torch.rand(len(OBJECTS), 3, 2, generator=generator, dtype=dtype) * 0.6
    boxes = torch.cat((corner, corner + 0.1 + 0.3 * torch.rand(corner.shape, generator=generator, dtype=dtype)), -1)
    boxes[0, 0], boxes[2, 1] = torch.tensor([-0.2, 0.1, 0.7, 1.3]), torch.tensor([0.505, 0.42, 0.515, 0.43])
    total = int(counts.sum())
    own = (torch.rand(total, HEIGHT, WIDTH, generator=generator) < 0.5).to(dtype)
    image = torch.repeat_interleave(torch.arange(len(OBJECTS)), counts)
    numbered = torch.randint(0, 4, (len(OBJECTS), HEIGHT, WIDTH), generator=generator).to(dtype)
    proto = torch.randn(len(OBJECTS), PROTOTYPES, HEIGHT, WIDTH, generator=generator, dtype=dtype)
    rows = torch.randn(len(OBJECTS), PRIORS, PROTOTYPES, generator=generator, dtype=dtype)
    matched = boxes.gather(1, number.clamp(min=0).unsqueeze(-1).expand(-1, -1, 4)) * sides
    masks = numbered if overlap else own
    return fg, masks, number, matched, image[:, None], proto, rows, sides[[1, 0]]


def value_and_slopes(overlap: bool, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    *rest, proto, rows, size = arguments
    proto, rows = (x.clone().requires_grad_() for x in (proto, rows))
    criterion = SimpleNamespace(overlap=overlap, single_mask_loss=loss.v8SegmentationLoss.single_mask_loss)
    value = loss.v8SegmentationLoss.calculate_segmentation_loss(criterion, *rest, proto, rows, size)
    return [value, *torch.autograd.grad(3 * value, (proto, rows))]


@pytest.mark.parametrize("overlap", [True, False])
def test_masks_of_a_batch(overlap: bool) -> None:
    arguments = batch_of_masks(overlap)
    expected = value_and_slopes(overlap, arguments)
    assert expected[0] > 0 and all(bool(slope.any()) for slope in expected[1:])
    # Masks that overlap are turned into float32 there.
    rtol, atol = (1e-6, 1e-7) if overlap else (1e-12, 1e-14)
    with detloss.patch("ultralytics"):
        torch.testing.assert_close(value_and_slopes(overlap, arguments), expected, rtol=rtol, atol=atol)
        halves = tuple(x.bfloat16() if x.dtype == torch.float64 and x.ndim > 1 else x for x in arguments)
        assert [x.dtype for x in value_and_slopes(overlap, halves)] == [torch.float32, torch.bfloat16, torch.bfloat16]


def test_derivatives_of_derivatives() -> None:
    *rest, proto, rows, size = batch_of_masks(True)
    criterion = SimpleNamespace(overlap=True)

    def value(proto: Tensor, rows: Tensor) -> Tensor:
        return loss.v8SegmentationLoss.calculate_segmentation_loss(criterion, *rest, proto, rows, size)

    inputs = (proto.requires_grad_(), rows.requires_grad_())
    with detloss.patch("ultralytics"):
        assert torch.autograd.gradcheck(value, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(value, inputs, fast_mode=True)


def test_no_object_has_a_pixel() -> None:
    fg, masks, number, boxes, *rest = batch_of_masks(True)
    point = boxes.new_tensor([20.1, 20.1, 20.2, 20.2]).expand_as(boxes)
    with detloss.patch("ultralytics"):
        value, *slopes = value_and_slopes(True, (fg, masks, number, point, *rest))
    assert value == 0 and not any(slope.any() for slope in slopes)


def test_masks_are_not_kept_until_the_backward_pass() -> None:
    """Of a big image, much less than its masks is saved: one gradient for the prototypes and the rows, and the masks' own."""
    rows, side = 200, 64
    fg, number = torch.ones(1, rows, dtype=torch.bool), torch.arange(rows)[None] % 4
    boxes = torch.tensor([[0.0, 0.0, 512.0, 512.0]]).expand(1, rows, 4)
    masks = torch.randint(0, 5, (1, side, side)).float()
    proto, coefficients = torch.randn(1, 8, side, side, requires_grad=True), torch.randn(1, rows, 8, requires_grad=True)
    image, size = torch.zeros(4, 1), torch.tensor([512.0, 512.0])
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with detloss.patch("ultralytics"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        criterion = SimpleNamespace(overlap=True)
        loss.v8SegmentationLoss.calculate_segmentation_loss(criterion, fg, masks, number, boxes, image, proto, coefficients, size)
    assert 0 < sum(saved.values()) < rows * side * side * 4 / 8
