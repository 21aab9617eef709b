"""Parts of mmdet's heads: anchors, box coders, assigners, samplers and what else ``train_cfg`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detloss.assigners.samplers import BalancedSampler, PseudoSampler, RandomSampler, Sampler
from detloss.compat.configs.sections import Section

__all__ = [
    "anchor_options",
    "delta_weights",
    "distance_coder",
    "iou_threshold",
    "level_strides",
    "max_iou_assigner",
    "sampler",
    "train_options",
]

NO_REGIONS = "boxes to ignore have their own rule in this assigner"
LIMITLESS = ("INF", "inf")
LARGE = 1e8


def level_strides(section: Section, default: Sequence[int]) -> tuple[int, ...]:
    """Pixels per cell of every level; pairs (w, h) must be square."""
    given, found = section.get("strides", default), []
    if not isinstance(given, (list, tuple)):
        raise section.error(f"strides must be a list, one per level; got {given!r}")
    for stride in given:
        pair = list(stride) if isinstance(stride, (list, tuple)) else [stride]
        if len(set(pair)) != 1:
            raise section.error(f"strides must be the same along both axes; got {stride!r}")
        found.append(pair[0])
    return tuple(found)


def anchor_options(head: Section, default: dict[str, Any], square_only: bool = False) -> dict[str, Any]:
    """``strides``, ``anchor_sizes``, ``anchor_ratios``, ``anchor_offset`` and ``anchor_order`` of an ``AnchorGenerator``.

    Args:
        head: the head, whose ``anchor_generator`` is read.
        default: that of the head's class.
        square_only: one square anchor per cell: ``strides``, ``anchor_scale`` and ``anchor_offset`` instead.
    """
    section = head.part("anchor_generator", default)
    if section is None or section.kind() != "AnchorGenerator":
        raise head.error(f"anchor_generator must be an AnchorGenerator; got {head.get('anchor_generator')!r}")
    strides = level_strides(section, (8, 16, 32, 64, 128))
    bases = section.get("base_sizes") or strides
    if len(bases) != len(strides):
        raise section.error(f"expected one base size for each of the {len(strides)} strides; got {bases!r}")
    scales, ratios = _scales(section), [float(ratio) for ratio in section.get("ratios", (0.5, 1.0, 2.0))]
    offset = float(section.get("center_offset", 0.0))
    if offset and list(bases) != list(strides):
        section.refuse("center_offset", "it is a share of base_sizes, which are not the strides; centres are given in cells")
        offset = 0.0
    if section.get("centers") is not None:
        section.refuse("centers", "centres are the same in all cells")
    if square_only:
        return _square(section, strides, bases, scales, ratios, offset)
    return {
        "strides": strides,
        "anchor_sizes": [[base * scale for scale in scales] for base in bases],
        "anchor_ratios": ratios,
        "anchor_offset": offset,
        "anchor_order": "ratio" if section.get("scale_major", True) else "size",
    }


def _scales(section: Section) -> list[float]:
    scales, base, count = (section.get(key) for key in ("scales", "octave_base_scale", "scales_per_octave"))
    if scales is None and (base is None or count is None):
        raise section.error("expected scales, or octave_base_scale and scales_per_octave; got neither")
    if scales is None:
        return [float(base * 2 ** (n / count)) for n in range(count)]
    if base is not None or count is not None:
        raise section.error("expected scales, or octave_base_scale and scales_per_octave; got both")
    return [float(scale) for scale in (scales if isinstance(scales, (list, tuple)) else [scales])]


def _square(
    section: Section,
    strides: Sequence[int],
    bases: Sequence[float],
    scales: Sequence[float],
    ratios: Sequence[float],
    offset: float,
) -> dict[str, Any]:
    factors = {base * scales[0] / stride for base, stride in zip(bases, strides, strict=True)}
    if len(scales) != 1 or list(ratios) != [1.0] or len(factors) != 1:
        raise section.error(
            f"expected one square anchor per cell, the same number of strides on all levels; got scales {list(scales)}, "
            f"ratios {list(ratios)}, base sizes {list(bases)} and strides {list(strides)}"
        )
    section.get("scale_major")
    return {"strides": strides, "anchor_scale": factors.pop(), "anchor_offset": offset}


def delta_weights(head: Section, stds: Sequence[float]) -> tuple[float, ...]:
    """Factors of the deltas, 1 / ``target_stds`` of a ``DeltaXYWHBBoxCoder``; ``stds`` are those of the head's class."""
    section = head.part("bbox_coder", {"type": "DeltaXYWHBBoxCoder", "target_stds": stds})
    if section is None or section.kind("DeltaXYWHBBoxCoder") != "DeltaXYWHBBoxCoder":
        raise head.error(f"bbox_coder must be a DeltaXYWHBBoxCoder; got {head.get('bbox_coder')!r}")
    means = section.get("target_means", (0.0, 0.0, 0.0, 0.0))
    if any(means):
        section.refuse("target_means", "deltas are not shifted")
    section.skip("clip_border", "add_ctr_clamp", "ctr_clamp", "encode_size")
    given = section.get("target_stds", (1.0, 1.0, 1.0, 1.0))
    if not isinstance(given, (list, tuple)) or not all(isinstance(std, (int, float)) and std > 0 for std in given):
        raise section.error(f"target_stds must be four positive numbers; got {given!r}")
    return tuple(1 / std for std in given)


def distance_coder(head: Section) -> None:
    """Read a ``DistancePointBBoxCoder``; another coder is an error."""
    section = head.part("bbox_coder", {"type": "DistancePointBBoxCoder"})
    if section is None or section.kind() != "DistancePointBBoxCoder":
        raise head.error(f"bbox_coder must be a DistancePointBBoxCoder; got {head.get('bbox_coder')!r}")
    section.skip("clip_border")


def decoded(head: Section, box_space: str, default: bool = False) -> None:
    """Check ``reg_decoded_bbox``: coordinates are compared as deltas, boxes of the IoU family decoded, whatever it says."""
    compares_boxes = box_space == "corners"
    if bool(head.get("reg_decoded_bbox", default)) == compares_boxes:
        return
    compared = "decoded boxes" if compares_boxes else "deltas"
    if "reg_decoded_bbox" in head:
        head.refuse("reg_decoded_bbox", f"this loss_bbox compares {compared}")
    else:
        head.log.note(f"{head.path_of('loss_bbox')}: it compares {compared}, which mmdet does with reg_decoded_bbox=True")


def train_options(section: Section | None) -> None:
    """``allowed_border``, ``pos_weight`` and ``debug`` of a ``train_cfg``: what cannot be kept is noted."""
    if section is None:
        return
    border, weight = section.get("allowed_border", -1), section.get("pos_weight", -1)
    if border >= 0:
        section.refuse("allowed_border", "anchors beyond the border of the image are kept")
    if weight > 0 and weight != 1:
        section.refuse("pos_weight", "positives weigh 1; a class_weight of the loss can do it")
    section.skip("debug")


def iou_threshold(section: Section) -> float | None:
    """``ignore_iof_thr``: ``None`` where it is off, so that boxes to ignore change nothing."""
    found = section.get("ignore_iof_thr", -1)
    return None if found is None or found <= 0 else float(found)


def iou_calculator(section: Section) -> None:
    """Read ``iou_calculator``, which must be that of upright boxes."""
    found = section.part("iou_calculator")
    if found is not None and found.kind() not in ("BboxOverlaps2D", "mmdet.BboxOverlaps2D"):
        section.refuse("iou_calculator", "IoU is that of upright boxes")
    if found is not None:
        found.skip_rest()


def max_iou_assigner(section: Section) -> dict[str, Any]:
    """The configuration of a ``MaxIoUAssigner``."""
    if section.kind() != "MaxIoUAssigner":
        raise section.error(f"expected a MaxIoUAssigner; got {section.kind()}")
    negative = section.need("neg_iou_thr")
    section.expect("gt_max_assign_all", (True,), "all anchors that tie at the best IoU of an object are its")
    section.expect("ignore_wrt_candidates", (True,), "the share is that of the anchor")
    section.expect("perm_repeat_gt_cfg", (None,), "objects are not permuted")
    section.skip("gpu_assign_thr")
    iou_calculator(section)
    return {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": float(section.need("pos_iou_thr")),
        "neg_iou_thr": tuple(negative) if isinstance(negative, (list, tuple)) else float(negative),
        "min_pos_iou": float(section.get("min_pos_iou", 0.0)),
        "match_low_quality": bool(section.get("match_low_quality", True)),
        "ignore_iof_thr": iou_threshold(section),
    }


def sampler(section: Section) -> tuple[Sampler, bool]:
    """The sampler, and whether it adds the objects to the proposals (``add_gt_as_proposals``, by default so)."""
    kind = section.kind()
    if kind == "PseudoSampler":
        section.skip("context", "avg_factor_with_neg")
        return PseudoSampler(), False
    size = {"num": section.need("num"), "pos_fraction": section.need("pos_fraction")}
    add = bool(section.get("add_gt_as_proposals", True))
    bound = section.get("neg_pos_ub", -1)
    if bound >= 0:
        section.refuse("neg_pos_ub", "negatives fill the sample up")
    if kind == "RandomSampler":
        return RandomSampler(**size), add
    if kind == "CombinedSampler":
        return _combined(section, size), add
    if kind == "InstanceBalancedPosSampler":
        return BalancedSampler(**size, by_object=True, iou_bins=1), add
    if kind == "IoUBalancedNegSampler":
        return BalancedSampler(**size, by_object=False, iou_bins=_bins(section)), add
    raise section.error(f"expected a Random-, Combined-, InstanceBalancedPos-, IoUBalancedNeg- or PseudoSampler; got {kind}")


def _combined(section: Section, size: dict[str, Any]) -> BalancedSampler:
    positive, negative = section.part("pos_sampler"), section.part("neg_sampler")
    kinds = [None if part is None else part.kind() for part in (positive, negative)]
    by_object = {"InstanceBalancedPosSampler": True, "RandomSampler": False}.get(str(kinds[0]))
    if by_object is None or kinds[1] not in ("IoUBalancedNegSampler", "RandomSampler"):
        raise section.error(f"pos_sampler and neg_sampler must be random or balanced; got {kinds[0]} and {kinds[1]}")
    bins = _bins(negative) if negative is not None and kinds[1] == "IoUBalancedNegSampler" else 1
    return BalancedSampler(**size, by_object=by_object, iou_bins=bins)


def _bins(section: Section) -> int:
    section.expect("floor_thr", (-1,), "the bins begin at an IoU of 0")
    section.expect("floor_fraction", (0, 0.0), "the bins begin at an IoU of 0")
    return int(section.get("num_bins", 3))


def finite_range(low: Any, high: Any) -> tuple[float, float]:
    """(lo, hi) in pixels; ``"INF"`` and 1e8 and more are ∞."""
    last = float("inf") if high in LIMITLESS or float(high) >= LARGE else float(high)
    return float(low), last
