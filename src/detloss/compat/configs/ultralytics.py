"""Training arguments of ultralytics: the gains of its losses become a :class:`detloss.YOLOv8Loss`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from detloss.compat.configs.files import load_config
from detloss.compat.configs.result import Imported, imported
from detloss.compat.configs.sections import ConfigLog, Section
from detloss.criteria.yolov8 import YOLOv8Loss

__all__ = ["from_ultralytics"]

GAINS = {"box": "box_weight", "cls": "cls_weight", "dfl": "dfl_weight"}
OTHER_TASKS = ("pose", "kobj", "rle", "angle", "dlog", "dgrad", "dlam", "dis", "overlap_mask", "mask_ratio", "dropout")
NOT_THE_LOSS = """
    activation agnostic_nms amp augment auto_augment backbone batch bgr cache cfg channels channels_last classes
    close_mosaic cls_remap compile conf copy_paste copy_paste_mode cos_lr crop_fraction cutmix data degrees depth_multiple
    deterministic device distill_model dnn dynamic embed epochs erasing exist_ok fliplr flipud format fraction
    freeze half head hsv_h hsv_s hsv_v imgsz int8 iou keras kpt_shape line_width lr0 lrf max_det mixup mode model momentum
    mosaic multi_scale name nbs nms opset optimize optimizer patience perspective plots pretrained profile project
    quantize rect resume retina_masks save save_conf save_crop save_dir save_frames save_hybrid save_json save_period
    save_txt scale scales seed shear show show_boxes show_conf show_labels simplify source split stream_buffer
    task time tracker translate val verbose vid_stride visualize warmup_bias_lr warmup_epochs warmup_momentum weight_decay
    width_multiple workers workspace yaml_file
"""


def from_ultralytics(
    args: Mapping[str, Any] | SimpleNamespace | str | Path,
    *,
    num_classes: int | None = None,
    strict: bool = False,
    **options: Any,
) -> Imported:
    """The criterion of ultralytics' training arguments, with what became of each.

    ``box``, ``cls`` and ``dfl`` are the weights of ``loss_box``, ``loss_cls`` and ``loss_dfl``; ``nc`` (or the number of
    ``names``) and ``reg_max``, the number of bins, come from the dict of a model; ``single_cls`` is one class. The rest is as in
    ``YOLOv8Loss.preset("ultralytics")``: terms times the images of the batch, divided by the scores of this rank.

    Args:
        args: a dict, a namespace such as ``model.args``, or a file such as the ``args.yaml`` of a run.
        num_classes: number of classes, where the arguments do not say.
        strict: raise when an argument is unknown or cannot be kept.
        **options: further options of :class:`detloss.YOLOv8Loss`, such as ``strides``.

    Raises:
        ValueError: no number of classes, another task than detection, or, with ``strict``, unknown arguments.

    >>> found = from_ultralytics(dict(box=7.5, cls=0.3, dfl=1.5, lr0=0.01), num_classes=20)
    >>> found.criterion.weights
    {'loss_cls': 0.3, 'loss_box': 7.5, 'loss_dfl': 1.5}
    >>> found.used, found.ignored
    (('box', 'cls', 'dfl'), ('lr0',))
    """
    values = load_config(args) if isinstance(args, (str, Path)) else args
    values = vars(values) if isinstance(values, SimpleNamespace) else values
    if not isinstance(values, Mapping):
        raise TypeError(f"from_ultralytics: expected a dict, a namespace or the path of a file; got {type(args).__name__}")
    log = ConfigLog()
    section = Section(values, "", log)
    task = section.get("task", "detect")
    if task not in ("detect", None):
        raise ValueError(f"from_ultralytics: expected task 'detect'; got {task!r}, whose losses are others")
    section.skip(*NOT_THE_LOSS.split(), *OTHER_TASKS)
    section.expect("end2end", (None, False), "one match per object beside many is another loss")
    section.expect("cls_pw", (None, 0, 0.0), "classes weigh the same; give loss_cls a class_weight")
    section.expect("fl_gamma", (None, 0, 0.0), "give loss_cls as a FocalLoss")
    section.expect("label_smoothing", (None, 0, 0.0), "give loss_cls a label_smoothing")
    settings = {name: float(section.get(key)) for key, name in GAINS.items() if section.get(key) is not None}
    if section.get("reg_max") is not None:
        settings["reg_max"] = section.get("reg_max")
    settings["num_classes"] = _classes(section, num_classes)
    criterion = YOLOv8Loss.preset("ultralytics", **{**settings, **options})
    return imported(criterion, log, strict)


def _classes(section: Section, given: int | None) -> int:
    """The number of classes: as given, 1 with ``single_cls``, ``nc``, or the number of ``names``."""
    single, count, names = (section.get(key) for key in ("single_cls", "nc", "names"))
    if given is not None:
        return given
    if single:
        return 1
    if count is None and names is None:
        raise ValueError("from_ultralytics: the arguments do not say the number of classes; give num_classes")
    return int(len(names) if count is None else count)
