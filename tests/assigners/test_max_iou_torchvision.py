"""With ``low_quality="anchor"`` the assigner gives what torchvision's Matcher gives, for the thresholds of all its detectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detloss.assigners.max_iou import MaxIoUAssigner
from detloss.geometry import Anchors

matcher = pytest.importorskip("torchvision.models.detection._utils")
box_iou = pytest.importorskip("torchvision.ops").box_iou

BETWEEN = -2
RETINANET, RPN, ROI_HEAD = (0.5, 0.4, True), (0.7, 0.3, True), (0.5, 0.5, False)


def theirs(boxes: Tensor, anchors: Tensor, high: float, low: float, low_quality: bool) -> Tensor:
    return matcher.Matcher(high, low, allow_low_quality_matches=low_quality)(box_iou(boxes, anchors))


def ours(boxes: Tensor, anchors: Tensor, high: float, low: float, low_quality: bool) -> Tensor:
    assigner = MaxIoUAssigner(high, low, match_low_quality=low_quality, low_quality="anchor")
    got = assigner(Anchors.of(anchors), [{"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long)}])
    return torch.where(got.ignore[0], BETWEEN, got.gt_index[0])


def places(count: int, step: float | None) -> Tensor:
    """Boxes of 4 to 20 pixels, on a grid of ``step`` pixels."""
    low = torch.rand(count, 2) * 60
    boxes = torch.cat((low, low + 4 + torch.rand(count, 2) * 16), dim=1)
    return boxes if step is None else (boxes / step).round() * step


@pytest.mark.parametrize("thresholds", [RETINANET, RPN, ROI_HEAD])
@pytest.mark.parametrize("step", [None, 1.0, 4.0], ids=["no ties", "ties", "many ties"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_matcher(seed: int, step: float | None, thresholds: tuple[float, float, bool]) -> None:
    torch.manual_seed(seed)
    boxes, anchors = places(25, step), places(800, step)
    assert bool((box_iou(boxes, anchors).amax(1) > 0).all())
    expected = theirs(boxes, anchors, *thresholds)
    assert torch.equal(ours(boxes, anchors, *thresholds), expected)
    assert bool((expected >= 0).any()) and bool((expected == -1).any())


def test_an_object_that_no_anchor_touches_turns_the_whole_image_positive_there_and_nothing_here() -> None:
    anchors = torch.tensor([[0.0, 0, 8, 8], [4.0, 0, 12, 8], [30.0, 0, 38, 8]])
    boxes = torch.tensor([[0.0, 0, 8, 8], [100.0, 100, 110, 110]])
    assert theirs(boxes, anchors, *RETINANET).tolist() == [0, 0, 0]  # IoU 1, 1/3 and 0 with object 0; object 1 ties at 0
    assert ours(boxes, anchors, *RETINANET).tolist() == [0, -1, -1]
    assert ours(boxes[:1], anchors, *RETINANET).tolist() == theirs(boxes[:1], anchors, *RETINANET).tolist() == [0, -1, -1]
