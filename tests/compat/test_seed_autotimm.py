"""The usage examples of autotimm's page of loss functions, with only the import line changed, and the numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as torch_f
from torch import Tensor


def test_focal_loss() -> None:
    from detloss.compat.autotimm import FocalLoss

    loss_fn = FocalLoss(
        alpha=0.25,
        gamma=2.0,
    )

    # Predictions and targets; the page has a batch of 32 maps of 100 × 100
    pred = torch.randn(2, 80, 20, 20)  # (B, C, H, W)
    target = torch.randint(0, 80, (2, 20, 20))  # (B, H, W)

    loss = loss_fn(pred, target)

    y = torch_f.one_hot(target, 80).permute(0, 3, 1, 2).float()
    p = pred.sigmoid()
    missing = y * (1 - p) + (1 - y) * p
    by_hand = -(0.25 * y + 0.75 * (1 - y)) * missing**2 * (1 - missing).log()
    torch.testing.assert_close(loss, by_hand.sum() / (2 * 20 * 20), rtol=1e-5, atol=0)


def test_giou_loss() -> None:
    from detloss.compat.autotimm import GIoULoss

    loss_fn = GIoULoss()

    # Boxes in (x1, y1, x2, y2) format
    pred_boxes = torch.tensor([[10, 10, 50, 50], [20, 20, 60, 60]], dtype=torch.float32)
    target_boxes = torch.tensor([[12, 12, 48, 48], [25, 25, 65, 65]], dtype=torch.float32)

    loss = loss_fn(pred_boxes, target_boxes)

    # The second box of the first pair is inside: IoU 36²/40². Then 35² of 2 · 40² − 35², in a box of 45².
    union = 2 * 40**2 - 35**2
    by_hand = (1 - 36**2 / 40**2 + 1 - 35**2 / union + (45**2 - union) / 45**2) / 2
    assert loss.item() == pytest.approx(by_hand)


def test_input_format_of_boxes() -> None:
    # Correct format
    boxes = torch.tensor([[10, 20, 50, 60]])  # (x1=10, y1=20, x2=50, y2=60)

    # Convert from (x, y, w, h) if needed
    def xywh_to_xyxy(boxes: Tensor) -> Tensor:
        x, y, w, h = boxes.unbind(-1)
        return torch.stack([x, y, x + w, y + h], dim=-1)

    from detloss.compat.autotimm import GIoULoss

    assert GIoULoss()(xywh_to_xyxy(torch.tensor([[10, 20, 40, 40]])), boxes) == 0


@pytest.mark.parametrize(
    ("other", "giou"), [((0, 0, 1, 1), 1.0), ((1, 0, 2, 1), 0.0), ((1, 1, 2, 2), -0.5), ((3, 0, 4, 1), -0.5)]
)
def test_giou_values(other: tuple[int, ...], giou: float) -> None:
    """The table says touching boxes have GIoU 0: those that share a side do, at a corner it is −0.5."""
    from detloss.compat.autotimm import GIoULoss

    loss = GIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([other]).float())
    assert loss.item() == pytest.approx(1 - giou)


def test_centerness_loss() -> None:
    from detloss.compat.autotimm import CenternessLoss

    loss_fn = CenternessLoss()

    # Centerness predictions (logits)
    pred = torch.randn(32, 1, 100, 100)  # (B, 1, H, W)
    target = torch.rand(32, 1, 100, 100)  # (B, 1, H, W), values in [0, 1]

    loss = loss_fn(pred, target)

    p = pred.double().sigmoid()
    by_hand = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_fcos_loss() -> None:
    from detloss.compat.autotimm import FCOSLoss

    loss_fn = FCOSLoss(
        num_classes=80,
        focal_alpha=0.25,
        focal_gamma=2.0,
        cls_loss_weight=1.0,
        reg_loss_weight=1.0,
        centerness_loss_weight=1.0,
    )

    # Predictions from detection head
    cls_scores = [torch.randn(2, 80, 100, 100)]  # Classification logits
    bbox_preds = [torch.randn(2, 4, 100, 100)]  # Bbox predictions (l,t,r,b)
    centernesses = [torch.randn(2, 1, 100, 100)]  # Centerness logits

    # Ground truth
    targets = [
        {
            "boxes": torch.tensor([[10, 10, 50, 50], [60, 60, 100, 100]]),
            "labels": torch.tensor([1, 5]),
        },
        {
            "boxes": torch.tensor([[20, 20, 40, 40]]),
            "labels": torch.tensor([3]),
        },
    ]

    # Compute loss
    loss_dict = loss_fn(cls_scores, bbox_preds, centernesses, targets)
    total_loss = loss_dict["loss"]

    parts = [loss_dict[name] for name in ("cls_loss", "reg_loss", "centerness_loss")]
    torch.testing.assert_close(total_loss, parts[0] + parts[1] + parts[2])
    # Locations are 4, 12, 20 … px, and an edge is not inside: 5 of them in 10 … 50 (12 to 44), 4 in 60 … 100 (68 to 92) and
    # 2 in 20 … 40 (28 and 36).
    inside = 5 * 5 + 4 * 4 + 2 * 2
    assert positives(cls_scores[0], targets) == inside
    labels = torch.full((2, 100, 100), 80)
    for image, (first, last, label) in ((0, (1, 5, 1)), (0, (8, 11, 5)), (1, (3, 4, 3))):
        labels[image, first : last + 1, first : last + 1] = label
    p = cls_scores[0].double().sigmoid()
    y = torch_f.one_hot(labels, 81)[..., :80].permute(0, 3, 1, 2).double()
    missing = y * (1 - p) + (1 - y) * p
    by_hand = -(0.25 * y + 0.75 * (1 - y)) * missing**2 * (1 - missing).log()
    assert parts[0].item() == pytest.approx(by_hand.sum().item() / inside, rel=1e-4)


def positives(scores: Tensor, targets: list[dict[str, Tensor]]) -> int:
    """Locations inside an object, none of whose sides is more than 64 px away."""
    centre = torch.arange(scores.shape[-1]) * 8 + 4
    count = 0
    for target in targets:
        for x1, y1, x2, y2 in target["boxes"].tolist():
            count += int(((centre > x1) & (centre < x2)).sum()) * int(((centre > y1) & (centre < y2)).sum())
    return count


def test_custom_regression_ranges() -> None:
    from detloss.compat.autotimm import FCOSLoss

    loss_fn = FCOSLoss(
        num_classes=80,
        strides=(8, 16, 32, 64, 128),
        regress_ranges=(
            (-1, 32),  # P3: very small objects
            (32, 64),  # P4
            (64, 128),  # P5
            (128, 256),  # P6
            (256, float("inf")),  # P7
        ),
    )

    # An object of 80 px: at least 40 px to one side everywhere, too far for P3. Centerness logits of 0 cost ln 2 wherever it is
    # assigned, but the classification of P3 is all background.
    maps = [[torch.zeros(1, c, s, s) for s in (40, 20, 10, 5, 3)] for c in (80, 4, 1)]
    maps[0][0] = torch.full((1, 80, 40, 40), -100.0)
    targets = [{"boxes": torch.tensor([[100, 100, 180, 180]]), "labels": torch.tensor([7])}]
    losses, default = loss_fn(*maps, targets), FCOSLoss(num_classes=80)(*maps, targets)
    assert losses["centerness_loss"].item() == pytest.approx(math.log(2), rel=0.5)
    other_locations = 80 * (20**2 + 10**2 + 5**2 + 3**2)
    found = 3 * 3 + 3 * 3 - 1  # on P4 those within 64 px of each side, on P5 those beyond
    by_hand = (0.75 * (other_locations - found) + 0.25 * found) * math.log(2) / 4 / found
    assert losses["cls_loss"].item() == pytest.approx(by_hand, rel=1e-4)
    assert default["cls_loss"] > 0.25 * 100 * 49 / 65  # by default P3 takes 7 × 7 locations, each missed by a logit of 100


def test_usage_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    pytest.importorskip("autotimm")
    create = timm.create_model  # a small one, with random weights
    monkeypatch.setattr(timm, "create_model", lambda _, **options: create("test_resnet", **{**options, "pretrained": False}))
    from detloss.compat.autotimm import ObjectDetector

    model = ObjectDetector(
        backbone="resnet50",
        num_classes=80,
        # Loss configuration
        focal_alpha=0.25,
        focal_gamma=2.0,
        cls_loss_weight=1.0,
        reg_loss_weight=1.0,
        centerness_loss_weight=1.0,
    )

    loss = model.focal_loss(torch.zeros(1, 80), torch.tensor([3]))  # the sum over classes, at a probability of 1/2
    assert loss.item() == pytest.approx((0.25 + 79 * 0.75) * math.log(2) / 4, rel=1e-5)
    assert (model.cls_loss_weight, model.reg_loss_weight, model.centerness_loss_weight) == (1.0, 1.0, 1.0)


def test_what_neither_has_is_an_error() -> None:
    import detloss.compat.autotimm as module

    with pytest.raises(AttributeError, match=r"no attribute 'NoSuchTask'|install autotimm itself"):
        _ = module.NoSuchTask
    with pytest.raises(AttributeError, match="no attribute '_private'"):
        _ = module._private


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (2.0, 1.0, 1.0), (1.0, 1.0, 2.0), (1.0, 2.0, 0.5)])
def test_loss_weight_tuning(weights: tuple[float, float, float]) -> None:
    from detloss.compat.autotimm import FCOSLoss

    maps = [torch.randn(1, 2, 6, 6)], [20 * torch.rand(1, 4, 6, 6)], [torch.randn(1, 1, 6, 6)]
    targets = [{"boxes": torch.tensor([[4, 4, 40, 40]]), "labels": torch.tensor([1])}]
    names = ("cls_loss", "reg_loss", "centerness_loss")
    tuned = FCOSLoss(2, **{f"{name}_weight": weight for name, weight in zip(names, weights, strict=True)})(*maps, targets)
    plain = FCOSLoss(2)(*maps, targets)
    assert [tuned[name] for name in names] == [plain[name] for name in names]  # "before weighting"
    torch.testing.assert_close(tuned["loss"], sum(w * plain[name] for w, name in zip(weights, names, strict=True)))
