"""No option of a configuration gets lost: used, ignored, unknown, notes and errors of ``from_mmdet``."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from compat import mmdet_configs as C

import detloss
from detloss.compat.configs import Imported, from_mmdet
from detloss.compat.mmdet.models import losses as L


def with_option(head: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the head in which the option at a dotted path has the value."""
    made = deepcopy(head)
    *inner, last = path.split(".")
    place = made
    for name in inner:
        place = place[name]
    place[last] = value
    return made


def paths(config: dict[str, Any], prefix: str = "") -> set[str]:
    """All leaves and dicts of a configuration."""
    found = set()
    for key, value in config.items():
        found.add(prefix + key)
        if isinstance(value, dict):
            found |= paths(value, f"{prefix}{key}.")
    return found


@pytest.mark.parametrize("head", [C.RETINA, C.FCOS, C.ATSS, C.GFL, C.YOLOX, C.CENTERNET, C.RPN, C.BOX_HEAD, C.MASK_HEAD, C.DETR],
                         ids=lambda head: head["type"])  # fmt: skip
def test_every_option_is_in_exactly_one_list(head: dict[str, Any]) -> None:
    found = from_mmdet(head, strict=True)
    listed = [*found.used, *found.ignored, *found.unknown]
    assert len(listed) == len(set(listed))
    assert set(listed) == paths(head)
    assert all(".".join(path.split(".")[:-1]) in ("", *listed) for path in listed)


@pytest.mark.parametrize(
    ("path", "value", "hint"),
    [
        ("loss_clss", dict(type="FocalLoss"), "Did you mean 'loss_cls'?"),
        ("loss_cls.gama", 2.0, "Did you mean 'gamma'?"),
        ("anchor_generator.octave_base_scales", 4, "Did you mean 'octave_base_scale'?"),
        ("bbox_coder.target_std", [1, 1, 1, 1], "Did you mean 'target_stds'?"),
        ("zzzz", 1, None),
    ],
)
def test_unknown_options_are_listed_with_a_hint(path: str, value: Any, hint: str | None) -> None:
    head = with_option(C.RETINA, path, value)
    found = from_mmdet(head)
    assert found.unknown == (path,)
    assert any(path in note and hint in note for note in found.notes) if hint else not found.notes
    with pytest.raises(ValueError, match=f"cannot be kept: {path}"):
        from_mmdet(head, strict=True)
    assert path in str(found)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("allowed_border", 0),
        ("pos_weight", 2.0),
        ("assigner.gt_max_assign_all", False),
        ("assigner.iou_calculator", dict(type="BboxOverlaps3D")),
    ],
)
def test_settings_that_cannot_be_kept_are_listed(path: str, value: Any) -> None:
    found = from_mmdet(C.RETINA, train_cfg=with_option(C.RETINA_TRAIN, path, value))
    assert found.unknown == (f"train_cfg.{path}",)
    assert any(f"train_cfg.{path}" in note for note in found.notes)


@pytest.mark.parametrize(
    ("head", "path", "value"),
    [
        (C.RETINA, "reg_decoded_bbox", True),
        (C.RETINA, "bbox_coder.target_means", [0.1, 0, 0, 0]),
        (C.RETINA, "anchor_generator.centers", [(0, 0)] * 3),
        (C.CENTERNET, "loss_center_heatmap.pos_weight", 2.0),
        (C.DETR, "loss_cls.class_weight", 2.0),
    ],
)
def test_options_of_heads_that_cannot_be_kept_are_listed(head: dict[str, Any], path: str, value: Any) -> None:
    assert from_mmdet(with_option(head, path, value)).unknown == (path,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="TOODHead", num_classes=3), "no criterion for 'TOODHead'"),
        (dict(type="RetinaHed", num_classes=3), "Did you mean 'RetinaHead'"),
        (dict(type="CascadeRCNN", rpn_head=C.RPN, roi_head={}), "no Faster or Mask R-CNN"),
        (dict(num_classes=3), "expected a 'type'"),
        (with_option(C.RETINA, "anchor_generator.type", "SSDAnchorGenerator"), "must be an AnchorGenerator"),
        (with_option(C.RETINA, "anchor_generator.scales", [8]), "got both"),
        (with_option(C.RETINA, "anchor_generator.base_sizes", [8]), "one base size for each of the 3 strides"),
        (with_option(C.RETINA, "anchor_generator.strides", [(8, 16)]), "along both axes"),
        (with_option(C.RETINA, "anchor_generator.strides", 8), "a list, one per level; got 8"),
        (with_option(C.RETINA, "bbox_coder.target_stds", [0.1, 0.1, 0.2, 0]), "four positive numbers"),
        (with_option(C.RETINA, "bbox_coder.type", "TBLRBBoxCoder"), "must be a DeltaXYWHBBoxCoder"),
        (with_option(C.FCOS, "bbox_coder", dict(type="DeltaXYWHBBoxCoder")), "DistancePointBBoxCoder"),
        (with_option(C.ATSS, "anchor_generator.ratios", [0.5, 1.0]), "one square anchor per cell"),
        (with_option(C.RETINA, "loss_cls.type", "FocallLoss"), "Did you mean 'FocalLoss'"),
        (with_option(C.BOX_HEAD, "loss_cls", dict(type="SeesawLoss")), "columns of its own"),
        (with_option(C.RETINA, "loss_cls", "FocalLoss"), "loss_cls: expected a dict"),
        (with_option(C.RETINA, "num_classes", "3"), "num_classes must be an integer"),
        (with_option(C.MASK_RCNN, "roi_head.mask_head.num_classes", 4), "must be that of bbox_head, 3"),
        (with_option(C.MASK_RCNN, "train_cfg.rcnn.sampler.type", "OHEMSampler"), "sampler: expected a Random"),
    ],
)  # fmt: skip
def test_errors_say_where_and_what(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_mmdet(config)


def test_decoded_boxes_are_noted_where_mmdet_compares_deltas() -> None:
    found = from_mmdet(with_option(C.RETINA, "loss_bbox", dict(type="GIoULoss")), strict=True)
    assert any("reg_decoded_bbox=True" in note for note in found.notes)
    assert not from_mmdet(with_option(C.RETINA, "reg_decoded_bbox", False), strict=True).notes


def test_an_assigner_that_fcos_does_not_use_is_ignored() -> None:
    found = from_mmdet(C.FCOS, train_cfg=C.RETINA_TRAIN, strict=True)
    assert {"train_cfg.assigner", "train_cfg.sampler"} <= set(found.ignored) and len(found.notes) == 2


def test_wrong_assigners_are_errors() -> None:
    with pytest.raises(ValueError, match="RetinaHead has a MaxIoUAssigner; got ATSSAssigner"):
        from_mmdet(C.RETINA, train_cfg=C.ATSS_TRAIN)
    with pytest.raises(ValueError, match="by a PseudoSampler; got RandomSampler"):
        from_mmdet(C.RETINA, train_cfg=dict(C.RETINA_TRAIN, sampler=dict(type="RandomSampler")))
    with pytest.raises(TypeError, match="a dict or the path of a file; got int"):
        from_mmdet(3)  # type: ignore[arg-type]


def test_samplers() -> None:
    def sampled(**options: Any) -> Any:
        train = with_option(C.TWO_STAGE_TRAIN["rcnn"], "sampler", dict(num=64, pos_fraction=0.5, **options))
        return from_mmdet(C.BOX_HEAD, train_cfg=train, strict=True).criterion

    assert sampled(type="RandomSampler", add_gt_as_proposals=False).append_ground_truth is False
    combined = sampled(
        type="CombinedSampler",
        pos_sampler=dict(type="InstanceBalancedPosSampler"),
        neg_sampler=dict(type="IoUBalancedNegSampler", floor_thr=-1, floor_fraction=0, num_bins=4),
    ).sampler
    assert (combined.num, combined.by_object, combined.iou_bins) == (64, True, 4)
    assert sampled(type="InstanceBalancedPosSampler").sampler.iou_bins == 1
    assert sampled(type="IoUBalancedNegSampler").sampler.by_object is False


def test_losses_by_themselves_have_the_call_of_mmdet() -> None:
    found = from_mmdet(dict(type="mmdet.DiceLoss", naive_dice=True, loss_weight=2.0), strict=True)
    assert type(found.criterion) is L.DiceLoss and found.used == ("loss_weight", "naive_dice", "type")
    again = detloss.build(found.to_config())
    assert (type(again), again.smooth, again.loss_weight) == (detloss.DiceLoss, 1e-3, 2.0)
    assert from_mmdet(dict(type="FocalLoss", gama=1)).unknown == ("gama",)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (dict(type="IoULoss", linear=True), dict(type="IoULoss", mode="linear")),
        (dict(type="CIoULoss", loss_weight=2.0), dict(type="CIoULoss", alpha_threshold=0.5, loss_weight=2.0)),
        (dict(type="BoundedIoULoss"), dict(type="BoundedIoULoss", eps=1e-3)),
        (dict(type="SIoULoss"), dict(type="SIoULoss")),
        (dict(type="EIoULoss"), None),
    ],
)
def test_box_losses_of_a_head_keep_their_meaning(config: dict[str, Any], expected: dict[str, Any] | None) -> None:
    found = from_mmdet(with_option(C.GFL, "loss_bbox", config), strict=True)
    built = found.criterion.loss_box
    if expected is None:
        assert type(built) is L.EIoULoss
        with pytest.raises(TypeError, match="EIoULoss of mmdet has no equal"):
            found.to_config()
    else:
        assert repr(built) == repr(detloss.build(expected))
        assert detloss.build(found.to_config()).loss_box.to_config() == built.to_config()
    assert any("sign of the paper" in note for note in found.notes) == (config["type"] == "SIoULoss")


def test_the_result_reads_well() -> None:
    found = from_mmdet(with_option(C.FCOS, "loss_clss", {}))
    assert isinstance(found, Imported)
    first, used, ignored, unknown, notes = str(found).splitlines()
    assert first == "FCOSLoss" and "loss_cls.gamma" in used and ignored == "  ignored: in_channels"
    assert unknown == "  unknown: loss_clss" and "Did you mean 'loss_cls'?" in notes
