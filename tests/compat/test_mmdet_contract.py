"""What ``detloss.compat.mmdet`` and ``visdet`` promise besides numbers: names, registries, reductions, defects that are gone."""

from __future__ import annotations

import inspect

import pytest
import torch

import detloss
from detloss.compat import mmdet, visdet
from detloss.compat.mmdet.models import losses as L
from detloss.compat.mmdet.registry import MODELS, ModelRegistry, build_loss
from detloss.losses.base import Loss

OWN_ORDER = {
    "CrossEntropyLoss": ["cls_score", "label", "weight", "avg_factor", "reduction_override", "ignore_index"],
    "DiceLoss": ["pred", "target", "weight", "reduction_override", "avg_factor"],
    "GHMC": ["pred", "target", "label_weight", "avg_factor", "reduction_override", "weight"],
    "GHMR": ["pred", "target", "label_weight", "avg_factor", "reduction_override", "weight"],
    "GaussianFocalLoss": ["pred", "target", "pos_inds", "pos_labels", "weight", "avg_factor", "reduction_override"],
    "MultiPosCrossEntropyLoss": ["cls_score", "label", "weight", "avg_factor", "reduction_override"],
    "SeesawLoss": ["cls_score", "labels", "label_weights", "avg_factor", "reduction_override"],
    "TripletLoss": ["inputs", "targets"],
}
CONSTRUCTORS = {
    "CrossEntropyLoss": "use_sigmoid use_mask reduction class_weight ignore_index loss_weight avg_non_ignore",
    "FocalLoss": "use_sigmoid gamma alpha reduction loss_weight activated",
    "QualityFocalLoss": "use_sigmoid beta reduction loss_weight activated",
    "VarifocalLoss": "use_sigmoid alpha gamma iou_weighted reduction loss_weight",
    "GaussianFocalLoss": "alpha gamma reduction loss_weight pos_weight neg_weight",
    "GHMC": "bins momentum use_sigmoid loss_weight reduction",
    "GHMR": "mu bins momentum loss_weight reduction",
    "IoULoss": "linear eps reduction loss_weight mode",
    "GIoULoss": "eps reduction loss_weight",
    "SIoULoss": "eps reduction loss_weight neg_gamma",
    "EIoULoss": "eps reduction loss_weight smooth_point",
    "BoundedIoULoss": "beta eps reduction loss_weight",
    "SmoothL1Loss": "beta reduction loss_weight",
    "BalancedL1Loss": "alpha gamma beta reduction loss_weight",
    "DiceLoss": "use_sigmoid activate reduction naive_dice loss_weight eps",
    "SeesawLoss": "use_sigmoid p q num_classes eps reduction loss_weight return_dict",
    "KnowledgeDistillationKLDivLoss": "reduction loss_weight T",
    "L2Loss": "neg_pos_ub pos_margin neg_margin hard_mining reduction loss_weight",
    "MarginL2Loss": "neg_pos_ub pos_margin neg_margin hard_mining reduction loss_weight",
    "MultiPosCrossEntropyLoss": "reduction loss_weight",
    "TripletLoss": "margin loss_weight hard_mining",
}
BOX_LOSSES = ["IoULoss", "GIoULoss", "DIoULoss", "CIoULoss", "SIoULoss", "EIoULoss", "BoundedIoULoss"]


@pytest.mark.parametrize("name", sorted(MODELS.module_dict))
def test_arguments_of_the_call(name: str) -> None:
    parameters = [p for p in inspect.signature(MODELS.get(name).forward).parameters if p not in ("self", "extras", "kwargs")]
    assert parameters == OWN_ORDER.get(name, ["pred", "target", "weight", "avg_factor", "reduction_override"])


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_arguments_of_the_constructor(name: str) -> None:
    assert list(inspect.signature(MODELS.get(name)).parameters) == CONSTRUCTORS[name].split()


def test_names_are_at_the_paths_of_the_peer() -> None:
    assert mmdet.FocalLoss is mmdet.models.losses.FocalLoss is L.FocalLoss
    assert visdet.registry.MODELS is visdet.MODELS and visdet.models.losses.FocalLoss is L.FocalLoss
    assert set(L.__all__) <= set(mmdet.__all__) and set(L.__all__) == set(visdet.models.losses.__all__)
    for module in (mmdet, visdet, visdet.models.losses):
        with pytest.raises(AttributeError, match="DDQAuxLoss"):
            getattr(module, "DDQAux" + "Loss")


def test_registry_lists_builds_and_takes_new_classes() -> None:
    assert set(L.__all__) >= set(MODELS.module_dict) and len(MODELS.module_dict) == 27
    registry = ModelRegistry("test")

    @registry.register_module()
    class Mine(Loss):
        """A loss."""

    class Other(Mine):
        """Another."""

    assert registry.register_module(module=Other) is Other
    assert registry.register_module("third", module=Other) is Other
    assert list(registry) == ["Mine", "Other", "third"]
    assert type(registry.build(dict(type=Other, loss_weight=2.0))) is Other
    with pytest.raises(ValueError, match="force=True"):
        registry.register_module("Mine", module=Other)
    registry.register_module("Mine", force=True, module=Other)
    assert "Mine" not in MODELS and "Mine" not in detloss.LOSSES


def test_build_loss_says_what_is_wrong() -> None:
    assert isinstance(build_loss(dict(type="GIoULoss", loss_weight=2.0)), L.GIoULoss)
    with pytest.raises(ValueError, match="Did you mean 'FocalLoss'"):
        build_loss(dict(type="FocallLoss"))
    with pytest.raises(TypeError, match="Did you mean 'gamma'"):
        build_loss(dict(type="FocalLoss", gama=2.0))


@pytest.mark.parametrize("name", sorted(MODELS.module_dict))
def test_configuration_round_trip(name: str) -> None:
    reduction = {} if name == "TripletLoss" else {"reduction": "sum"}
    loss = build_loss(dict(type=name, loss_weight=0.5, **reduction))
    again = build_loss(loss.to_config())
    assert repr(again) == repr(loss)


@pytest.mark.parametrize("name", sorted(set(MODELS.module_dict) - {"SeesawLoss", "EQLV2Loss", "TripletLoss"}))
def test_unknown_reduction_is_an_assertion_error(name: str) -> None:
    with pytest.raises(AssertionError, match="Invalid reduction"):
        build_loss(dict(type=name))(torch.rand(2, 4), torch.rand(2, 4), reduction_override="avg")


@pytest.mark.parametrize("name", ["FocalLoss", "QualityFocalLoss", "VarifocalLoss", "GHMC"])
def test_softmax_is_an_assertion_error(name: str) -> None:
    with pytest.raises(AssertionError, match="use_sigmoid"):
        build_loss(dict(type=name, use_sigmoid=False))


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_defects_of_the_box_losses_are_gone(name: str) -> None:
    loss = build_loss(dict(type=name))
    for side in (5e-4, 10.0, 1000.0):
        box = torch.tensor([[0.0, 0.0, side, 2 * side]])
        assert loss(box, box.clone()) == pytest.approx(0, abs=1e-6)  # NaN for CIoU, 0.25 … 1.4 for tiny boxes
    half = torch.tensor([[0.0, 0.0, 300.0, 300.0]])
    assert loss(half.half(), half.half()) == 0  # −inf … NaN
    boxes = torch.rand(3, 4, requires_grad=True)
    assert loss(boxes, torch.rand(3, 4), torch.zeros(3), reduction_override="none").shape == (3,)  # a scalar
    empty = loss(boxes[:0], torch.rand(0, 4))
    assert empty == 0  # NaN
    empty.backward()
    assert boxes.grad is not None and boxes.grad.eq(0).all()


def test_siou_grows_with_the_distance() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    costs = [L.SIoULoss()(box + by, box).item() for by in (0, 1, 5, 10, 20, 50)]
    assert costs == sorted(costs) and costs[-1] > 1.4  # there 0.31, 0.74, 0.72, 0.44, 0.0


def test_weight_reduce_loss_and_weighted_loss() -> None:
    ones = torch.ones(3, requires_grad=True)
    assert L.weight_reduce_loss(ones, avg_factor=0) == 0  # there 2.5e7
    with pytest.raises(ValueError, match="avg_factor"):
        L.weight_reduce_loss(ones, reduction="sum", avg_factor=2)
    infinite = L.weight_reduce_loss(torch.tensor([1.0, torch.inf]), torch.tensor([1.0, 0.0]), "sum")
    assert infinite == 1
    assert L.reduce_loss(torch.ones(0), "mean") == 0

    @L.weighted_loss
    def squared(pred: torch.Tensor, target: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Squared and scaled."""
        return scale * (pred - target) ** 2

    assert squared.__name__ == "squared"
    assert squared(ones, torch.zeros(3), torch.tensor([1.0, 2.0, 0.0]), "sum", scale=2.0) == 6


def test_accuracy() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    labels = torch.tensor([1, 1, 0])
    assert L.accuracy(scores, labels).item() == pytest.approx(100 / 3)
    first, second = L.accuracy(scores, labels, (1, 2))
    assert (first.item(), second.item()) == pytest.approx((100 / 3, 200 / 3))
    assert L.accuracy(scores, labels, thresh=0.95).item() == 0
    assert L.Accuracy(topk=(2,))(scores, labels)[0].item() == pytest.approx(200 / 3)
    assert L.accuracy(scores[:0], labels[:0]) == 0
    with pytest.raises(ValueError, match="topk"):
        L.accuracy(scores, labels, 4)


def test_visdet_has_no_pos_inds_and_its_own_registry() -> None:
    loss = visdet.MODELS.build(dict(type="GaussianFocalLoss"))
    p, heat = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    assert loss(p, heat, torch.tensor([1.0, 0.0]), 1.0).item() == pytest.approx(0.1733, abs=1e-4)
    assert list(inspect.signature(loss.forward).parameters)[2] == "weight"
    assert set(visdet.MODELS.module_dict) == set(MODELS.module_dict)
    assert visdet.build_loss(dict(type="FocalLoss", activated=True)).activated  # there NotImplementedError
    dense = visdet.build_loss(dict(type="FocalLoss"))(torch.zeros(2, 3), torch.zeros(2, 3))
    assert dense.shape == ()  # there one-hot again, [2, 3, 4]


def test_losses_go_into_criteria() -> None:
    criterion = detloss.FCOSLoss(
        2, strides=(8,), loss_cls=build_loss(dict(type="FocalLoss")), loss_box=build_loss(dict(type="IoULoss")),
        loss_centerness=build_loss(dict(type="CrossEntropyLoss", use_sigmoid=True)),
    )  # fmt: skip
    preset = detloss.FCOSLoss.preset("mmdet", num_classes=2, strides=(8,), centerness_weighted=False)
    maps = [torch.randn(1, 2, 4, 4)], [torch.rand(1, 4, 4, 4) * 20], [torch.randn(1, 1, 4, 4)]
    targets = [{"boxes": torch.tensor([[0.0, 0.0, 30.0, 30.0]]), "labels": torch.tensor([1])}]
    ours, theirs = criterion(*maps, targets), preset(*maps, targets)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])
