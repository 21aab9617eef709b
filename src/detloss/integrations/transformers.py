"""Set-prediction detectors of transformers with a criterion of detloss, and its parts in the log of their Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from detloss.criteria.detr import DETRLoss
from detloss.integrations.attach import Attached, Kinds, agree, attach, criterion_for, detach
from detloss.integrations.transformers_losses import DETRFunction, SingleColumns
from detloss.integrations.transformers_settings import RT_DETR, SINGLE_COLUMNS, WITH_BACKGROUND, settings_of

__all__ = ["log_parts", "with_criterion", "without_criterion"]

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def with_criterion(model: M, criterion: Any = "DETRLoss", **options: Any) -> M:
    """Let a DETR of transformers compute its losses with a criterion; returns the same model.

    ``model(pixel_values, labels=labels)`` then has the criterion's total as ``loss`` and its weighted terms as ``loss_dict``: of
    all decoder layers where ``config.auxiliary_loss`` is set, and of the encoder's proposals and the denoising queries where
    the model has them. ``model.loss_function.last_losses`` is the :class:`detloss.types.LossDict` of the last call without its
    graph. Only this instance changes, and its ``state_dict`` does not; ``save_pretrained`` and ``from_pretrained`` work as
    before (give the criterion again after loading).

    ``with_criterion(detr, loss_cls="MatchedVarifocalLoss")`` makes a DETR learn varifocal scores. DETR, YOLOS and Table
    Transformer have a column for "no object", which losses of single columns do not learn: it is then computed so that the
    softmax of their image processor gives σ(x) of the best class, unless several classes are likely at once.

    Args:
        model: ``DetrForObjectDetection``, ``TableTransformerForObjectDetection``, ``YolosForObjectDetection``,
            ``ConditionalDetr…``, ``DabDetr…``, ``DeformableDetr…``, ``RTDetr…`` or ``RTDetrV2ForObjectDetection``.
        criterion: DETRLoss, a configuration or its name. A configuration starts from the settings of the model: its costs,
            coefficients and class loss.
        **options: its options where it is not a ready object: ``loss_cls``, ``loss_box``, ``loss_iou``, ``weights`` …

    Raises:
        TypeError: not one of these models, or not a criterion.
        ValueError: settings that contradict the model.
    """
    name = _name_of(model)
    config: Any = model.config
    where = f"with_criterion({name})"
    chosen = "loss_cls" in (options if not isinstance(criterion, Mapping) else {**criterion, **options})
    kinds: Kinds = {DETRLoss: settings_of(name, config, chosen)}
    found = criterion_for(where, criterion, kinds, options)
    agree(where, found, {"num_classes": int(config.num_labels)})
    with_background = name in WITH_BACKGROUND
    if not with_background:
        agree(where, found, {"background_column": False})
    without_criterion(model)
    if with_background and not getattr(found, "background_column"):  # noqa: B009 (of DETRLoss)
        attach(_classifier(model), SingleColumns)
    model.loss_function = DETRFunction(found)  # type: ignore[assignment]
    return model


def without_criterion(model: M) -> M:
    """Undo :func:`with_criterion`: the loss of transformers again."""
    if isinstance(getattr(model, "_loss_function", None), DETRFunction):
        del model._loss_function
        classifier = getattr(model, "class_labels_classifier", None)
        if isinstance(classifier, SingleColumns):
            detach(classifier)  # type: ignore[type-var]
    return model


def log_parts(trainer: T) -> T:
    """Let a ``Trainer`` log the mean of every part besides the loss; returns the same trainer.

    Its lines then also have ``total_loss``, ``loss_cls``, ``loss_box``, ``loss_iou``, those of other layers and the metrics,
    which its reports show as ``train/loss_cls`` …, and those of an evaluation ``eval_loss_cls`` …, shown as ``eval/loss_cls`` ….

    Raises:
        TypeError: its model has no criterion of :func:`with_criterion`.
    """
    own: Any = trainer
    function = getattr(getattr(own, "model", None), "_loss_function", None)
    if not isinstance(function, DETRFunction):
        got = type(getattr(own, "model", None)).__name__
        raise TypeError(f"log_parts: expected a Trainer whose model has a criterion (with_criterion); got the model {got}")
    function.measure()
    own.log = _Log(own.log, function)
    return trainer


class _Log:
    """``Trainer.log`` with the means since the last line of its kind."""

    def __init__(self, log: Any, function: DETRFunction) -> None:
        self.log, self.function = log, function

    def __call__(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        for kind, prefix in (("train", ""), ("eval", "eval_")):
            if f"{prefix}loss" in logs:
                logs = {**logs, **self.function.means(kind, prefix)}
        return self.log(logs, *args, **kwargs)


def _name_of(model: Any) -> str:
    known = (*WITH_BACKGROUND, *SINGLE_COLUMNS, *RT_DETR)
    found = next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in known), None)
    if found is None or not isinstance(model, nn.Module) or not hasattr(model, "loss_function"):
        hint = " (give the model inside the wrapper)" if isinstance(getattr(model, "module", None), nn.Module) else ""
        raise TypeError(f"with_criterion: expected one of {', '.join(known)}; got {type(model).__name__}{hint}")
    return found


def _classifier(model: Any) -> Any:
    classifier = getattr(model, "class_labels_classifier", None)
    if not isinstance(classifier, nn.Module) or isinstance(classifier, Attached):
        raise ValueError(
            f"with_criterion: expected {type(model).__name__}.class_labels_classifier, whose last column is 'no object'; "
            f"got {type(classifier).__name__}"
        )
    return classifier
