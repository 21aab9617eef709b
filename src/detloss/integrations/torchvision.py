"""torchvision's detectors with a criterion of detloss: FCOS, RetinaNet, Faster and Mask R-CNN."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from detloss.integrations.attach import Attached, attach, criterion_for, detach
from detloss.integrations.torchvision_dense import DENSE
from detloss.integrations.torchvision_gfl import restore_head
from detloss.integrations.torchvision_rcnn import TWO_STAGE

__all__ = ["with_criterion", "without_criterion"]

M = TypeVar("M", bound=nn.Module)
WHERE = "with_criterion"
DETECTORS = {**DENSE, **TWO_STAGE}
UNFIT = {
    "SSD": "no criterion of detloss takes SSD's outputs: softmax columns, background first, with hard negatives mined by loss",
    "KeypointRCNN": "no criterion of detloss takes keypoints",
}


def with_criterion(model: M, criterion: Any, *, losses_in_eval: bool = False, **options: Any) -> M:
    """Let a torchvision detector compute its losses with a criterion; returns the same model.

    ``model(images, targets)`` in training mode then returns the criterion's :class:`detloss.types.LossDict`; detection in
    eval mode stays as it is. ``model.compute_losses(images, targets)`` gives losses in both modes, ``model.last_losses`` those
    of the last call without their graph, ``model.criterion`` is the criterion. Only this instance changes; its ``state_dict``
    keeps its keys, and copying, pickling and wrapping it (DDP) work. Labels mean what they mean to torchvision: columns
    of the class logits, for two-stage detectors with the background as 0.

    | model | criteria |
    |---|---|
    | ``FCOS`` | FCOSLoss, ATSSLoss (``box_coding="distance"``), GFLLoss |
    | ``RetinaNet`` | RetinaNetLoss |
    | ``FasterRCNN``, ``MaskRCNN`` | MaskRCNNLoss |

    GFLLoss replaces the last layer of FCOS's boxes by one of 4·(reg_max + 1) channels, with new weights, and takes the
    centerness layer away, so make the optimiser afterwards; in eval mode the head gives the expected distances, and the score of
    a detection is the class score.

    Args:
        model: the detector itself, before DDP wraps it.
        criterion: object, configuration or name. A configuration need not say what follows from the model: number of
            classes, strides, anchors, matching; other settings are torchvision's.
        losses_in_eval: calls with targets return losses in eval mode too.
        **options: options of the criterion where it is given by name or configuration.

    Raises:
        TypeError: not a torchvision detector, or not a criterion.
        ValueError: a criterion that the outputs do not fit, or settings that contradict the model.

    ::

        model = with_criterion(fcos_resnet50_fpn(num_classes=91), "FCOSLoss", loss_box="CIoULoss")
        sum(model(images, targets).values()).backward()
    """
    kind = _kind(model)
    mixin, kinds, fit = DETECTORS[kind]
    found = criterion_for(f"{WHERE}({kind})", criterion, kinds(model), options, "torchvision")
    fit(model, found)
    return attach(model, mixin, criterion=found, losses_in_eval=bool(losses_in_eval), last_losses=None)


def without_criterion(model: M) -> M:
    """Undo :func:`with_criterion`: torchvision's own losses again, and the layers that were replaced with their old weights."""
    if isinstance(model, Attached):
        detach(model)
        restore_head(getattr(model, "head", None))
    return model


def _kind(model: Any) -> str:
    """Name of the torchvision class whose outputs the model has."""
    from torchvision.models import detection

    known = {name: getattr(detection, name, None) or getattr(detection.ssd, name) for name in (*UNFIT, *DETECTORS)}
    for name, cls in known.items():
        if isinstance(model, cls):
            if name in UNFIT:
                raise ValueError(f"{WHERE}: {UNFIT[name]}; got a {type(model).__name__}")
            return name
    hint = " (give the detector inside the wrapper)" if isinstance(getattr(model, "module", None), nn.Module) else ""
    raise TypeError(f"{WHERE}: expected one of torchvision's {', '.join(DETECTORS)}; got {type(model).__name__}{hint}")
