"""The classification term of criteria whose assigner scores its matches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detloss.checks import upcast
from detloss.criteria.base import class_target
from detloss.criteria.levels import rows
from detloss.criteria.positives import Positives
from detloss.functional.soft_labels import soft_label_cross_entropy_loss, softplus
from detloss.losses.classification import CrossEntropyLoss
from detloss.reduction import reduce_loss

__all__ = ["check_class_loss", "class_term", "class_term_of_maps"]


def check_class_loss(where: str, name: str, loss: nn.Module) -> None:
    """Raise ``ValueError`` for a softmax loss: there is no column of the background."""
    if not getattr(loss, "use_sigmoid", True):
        raise ValueError(f"{where}: {name} must treat every column on its own (use_sigmoid=True); got {loss!r}")


def class_term(
    loss: nn.Module, logits: Tensor, labels: Tensor, score: Tensor, weight: Tensor | None, avg_factor: Tensor
) -> Tensor:
    """Loss of N rows against their class and score.

    Sigmoid cross entropy gets the score as the target of the class, losses that learn a quality get (labels, score), and all
    others the class alone.

    Args:
        loss: what the criterion calls ``loss_cls``.
        logits: ``[N, C]``.
        labels: ``[N]``, C for the background.
        score: ``[N]`` in [0, 1].
        weight: ``[N]``, or ``None``.
        avg_factor: what the sum is divided by.
    """
    if not isinstance(loss, CrossEntropyLoss):
        term: Tensor = loss(logits, class_target(loss, labels, score), weight=weight, avg_factor=avg_factor)
        return term
    term = soft_label_cross_entropy_loss(
        logits,
        (labels, score),
        class_weight=loss.class_weight,
        label_smoothing=loss.label_smoothing,
        weight=weight,
        avg_factor=avg_factor,
    )
    return term if loss.loss_weight == 1 else term * loss.loss_weight


def class_term_of_maps(
    loss: nn.Module,
    maps: Sequence[Tensor],
    labels: Tensor,
    score: Tensor,
    keep: Tensor | None,
    positives: Positives,
    avg_factor: Tensor,
) -> Tensor:
    """:func:`class_term` of all locations of maps ``[B, C, H, W]``; ``labels`` and ``score`` are ``[B, P]``, ``keep [B·P]``.

    Σ BCE(x, y) = Σ ln(1 + eˣ) − Σ y x, and the second sum needs the positives only: cross entropy without further options
    takes the maps one by one, and copies none of them.
    """
    plain = isinstance(loss, CrossEntropyLoss) and loss.class_weight is None and not loss.label_smoothing
    if keep is not None or not plain:
        return class_term(loss, upcast(rows(maps)).flatten(0, 1), labels.flatten(), score.flatten(), keep, avg_factor)
    label, score = positives.take(labels), positives.take(score)
    image = torch.arange(len(labels), device=labels.device).unsqueeze(1).expand_as(label)
    parts = []
    for x, cell, here in positives.per_level(maps):
        if x.numel():
            width = x.shape[3]
            every, own = SoftplusAndOwn.apply(upcast(x), image, torch.where(here, label, 0), cell // width, cell % width)
            parts.append(every - torch.where(here, score * own, 0.0).sum())
        else:
            parts.append(upcast(x).sum())
    term = reduce_loss(torch.stack(parts), avg_factor=avg_factor)
    return term * loss.loss_weight if isinstance(loss, CrossEntropyLoss) and loss.loss_weight != 1 else term


class SoftplusAndOwn(torch.autograd.Function):
    """Σ ln(1 + eˣ) over a map and its values at some places; the gradients of both are written into one tensor."""

    @staticmethod
    def forward(x: Tensor, *place: Tensor) -> tuple[Tensor, Tensor]:
        return softplus(x).sum(), x[place]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *place = ctx.saved_tensors
        grad = x.sigmoid()
        grad = grad * upstream[0] if torch.is_grad_enabled() else grad.mul_(upstream[0])
        return grad.index_put_(tuple(place), upstream[1], accumulate=True), *(None for _ in place)
