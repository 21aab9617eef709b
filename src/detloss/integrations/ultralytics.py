"""ultralytics' detectors with a criterion of detloss: YOLO detect models, RT-DETR, and their trainer."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from torch import nn

from detloss.integrations.attach import criterion_for
from detloss.integrations.ultralytics_losses import FITS, DETRCriterion, YOLOCriterion

__all__ = ["with_criterion", "without_criterion"]

M = TypeVar("M")
EVENT = "on_pretrain_routine_end"  # the trainer has its model and the average of its weights, and has not begun


def with_criterion(model: M, criterion: Any = None, **options: Any) -> M:
    """Let an ultralytics detector compute its losses with a criterion; returns the same object.

    ``with_criterion(YOLO("yolov8n.pt"), loss_box="SIoULoss").train(data=…)`` trains with another box loss and logs
    ``box_loss``, ``cls_loss`` and ``dfl_loss`` as ever. A ``YOLO`` or ``RTDETR`` object hands the criterion to the model that
    its trainer makes, and to the average of its weights, which gives the validation losses; checkpoints do not hold it, so
    they load where detloss is not installed. A ``DetectionModel`` gets it at once: ``model.loss(batch)``,
    ``model.criterion.last_losses``.

    Args:
        model: ``YOLO``, ``RTDETR``, or a ``DetectionModel`` with one head (not end-to-end) and bins (``reg_max`` > 1), or an
            ``RTDETRDetectionModel``.
        criterion: YOLOv8Loss (RT-DETR: DETRLoss), a configuration or name of it; ``None``: that class, with
            ultralytics' settings and the gains ``box``, ``cls`` and ``dfl`` of the model or the run.
        **options: its options where it is not a ready object: ``loss_box``, ``loss_cls``, ``loss_dfl``, ``assigner``,
            ``weights`` …

    Raises:
        TypeError: neither a model nor a criterion of these kinds.
        ValueError: a model whose outputs fit no criterion, or settings that contradict it. What depends on the data (the
            number of classes) is found out when the training starts.
    """
    given = _Given(criterion, dict(options))
    if _has_trainer(model):
        yolo: Any = model
        given.made(yolo.model, early=True)  # so that a wrong choice is told now
        without_criterion(model)
        yolo.add_callback(EVENT, given)
    elif isinstance(model, nn.Module):
        given.attach(model)
    else:
        raise TypeError(f"with_criterion: expected ultralytics' YOLO or RTDETR, or a DetectionModel; got {type(model).__name__}")
    return model


def without_criterion(model: M) -> M:
    """Undo :func:`with_criterion`: ultralytics' own losses again."""
    found: Any = model
    if _has_trainer(model):
        callbacks = found.callbacks[EVENT]
        callbacks[:] = [one for one in callbacks if not isinstance(one, _Given)]
    elif isinstance(getattr(model, "criterion", None), (YOLOCriterion, DETRCriterion)):
        found.criterion = None  # the model then makes its own again
    return model


def _has_trainer(model: Any) -> bool:
    """Whether it is a ``YOLO`` or ``RTDETR`` object, which holds the model and starts its trainer."""
    inner = getattr(model, "model", None)
    return isinstance(getattr(model, "callbacks", None), Mapping) and isinstance(inner, nn.Module)


class _Given:
    """What the user asked for: a callback of the trainer, which has built its model from a file or a configuration by then."""

    def __init__(self, criterion: Any, options: dict[str, Any]) -> None:
        self.criterion, self.options = criterion, options

    def __call__(self, trainer: Any) -> None:
        from ultralytics.utils.torch_utils import unwrap_model

        self.attach(unwrap_model(trainer.model))
        if getattr(trainer, "ema", None):
            self.attach(trainer.ema.ema)

    def attach(self, model: nn.Module) -> None:
        """Give a model a criterion of its own."""
        model = getattr(model, "student_model", model)  # of a distillation, which has a term of its own besides
        found = self.made(model)
        model._modules.pop("criterion", None)  # RT-DETR registers its own one
        model.criterion = found

    def made(self, model: nn.Module, early: bool = False) -> Any:
        """The criterion in the form in which ultralytics calls it; ``early``: before the number of classes is known."""
        kind = next((fit for fit in FITS if fit.takes(model)), None)
        if kind is None:
            raise TypeError(f"with_criterion: expected a DetectionModel or RTDETRDetectionModel; got {type(model).__name__}")
        where = f"with_criterion({type(model).__name__})"
        kind.check_model(model, where)
        choice = next(iter(kind.kinds(model))).__name__ if self.criterion is None else self.criterion
        found = criterion_for(where, choice, kind.kinds(model), self.options, "ultralytics")
        kind.check(model, found, where, early)
        return kind.made(deepcopy(found))
