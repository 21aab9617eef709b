"""Distillation losses: a student's distribution is drawn towards a teacher's.

Arguments shared by every function here: ``pred`` and ``target`` are logits of the student and of the teacher, of the same
shape; no gradient flows to the teacher. ``weight``, ``avg_factor`` and ``reduction`` as in
:func:`detloss.reduction.reduce_loss`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as torch_f
from torch import Tensor

from detloss.checks import check_positive, check_same_shape, shape_of
from detloss.functional.precision import widest
from detloss.functional.targets import CLASS_DIM
from detloss.kernels.contract import Call, loss_shape
from detloss.kernels.dispatch import fused_loss
from detloss.reduction import check_weight, mute
from detloss.types import Number, Reduction

__all__ = ["kl_distillation_loss", "localization_distillation_loss"]


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ q ln(q/p) over dimension 1 with q = softmax(teacher) and p = softmax(student).

    The logarithms are almost equal where the student has learned, and T² enlarges what their difference loses. With
    u = student − teacher less its mean under q, it is ln(1 + Σ q (e^u − 1 − u)), a sum of what is never below 0.
    """
    log_p, log_q = torch_f.log_softmax(student, dim=CLASS_DIM), torch_f.log_softmax(teacher, dim=CLASS_DIM)
    q = log_q.exp()
    plain = torch.where(q == 0, 0.0, q * (log_q - log_p)).sum(CLASS_DIM)
    near = (plain.detach() < 0.5) & (q != 0).all(CLASS_DIM)
    apart = torch.where(near.unsqueeze(CLASS_DIM), student - teacher, 0.0)
    u = apart - (q * apart).sum(CLASS_DIM, keepdim=True)
    return torch.where(near, (q * (u.expm1() - u)).sum(CLASS_DIM).log1p(), plain)


def _distil(
    where: str,
    pred: Tensor,
    target: Tensor,
    temperature: float,
    weight: Tensor | None,
    avg_factor: Number | Tensor | None,
    reduction: Reduction,
) -> Tensor:
    """T² Σ q ln(q/p) over dimension 1 with q = softmax(target/T) and p = softmax(pred/T), reduced."""
    check_positive(where, temperature=temperature)
    target = target.detach()
    call = Call("kl_divergence", pred, target=target, weight=weight, numbers=(float(temperature),))

    def formula(pred: Tensor) -> Tensor:
        teacher = mute(where, target, weight, loss_shape(call), reduced_dim=CLASS_DIM)
        wide = widest(pred)
        divergence = _divergence(pred.to(wide) / temperature, teacher.to(wide) / temperature)
        return (temperature**2 * divergence).to(pred.dtype)

    # Beyond these the square of a temperature, or of a difference of logits over it, leaves fp32.
    usual = 1e-6 <= temperature <= 1e6
    return fused_loss(formula, call, where=where, avg_factor=avg_factor, reduction=reduction, fusible=usual)


def kl_distillation_loss(
    pred: Tensor,
    target: Tensor,
    *,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Knowledge distillation: T² KL(q ‖ p) with q = softmax(teacher/T), p = softmax(student/T); ``none`` gives ``[N]``.

    The factor T² keeps gradients of about the same size for every temperature. KL is the sum over classes; mmdet, which
    divides it by C, is this with ``loss_weight=1/C``. Source: Hinton et al. 2015, arXiv:1503.02531.

    Args:
        pred: logits of the student, ``[N, C]`` or ``[B, C, H, W]``.
        target: logits of the teacher, the same shape.
        temperature: T > 0.

    >>> kl_distillation_loss(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]), temperature=1.0)  # ln 2
    tensor(0.6931)
    """
    where = "kl_distillation_loss"
    check_same_shape(where, pred, target)
    if pred.ndim not in (2, 4):
        raise ValueError(f"{where}: logits must be [N, C] or [B, C, H, W]; got {shape_of(pred)}")
    return _distil(where, pred, target, temperature, weight, avg_factor, reduction)


def localization_distillation_loss(
    pred: Tensor,
    target: Tensor,
    *,
    temperature: float = 10.0,
    weight: Tensor | None = None,
    avg_factor: Number | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Localisation distillation: T² KL(q ‖ p) over the bins of each box side; ``none`` gives ``[N]``.

    Source: Zheng et al. 2022, arXiv:2102.12252.

    Args:
        pred: logits of the student, ``[N, R + 1]`` (or ``[..., R + 1]``), one row for each side of each box.
        target: logits of the teacher, the same shape.
        temperature: T > 0.

    >>> localization_distillation_loss(torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 0.0, 100.0]]), temperature=1.0)  # ln 4
    tensor(1.3863)
    """
    where = "localization_distillation_loss"
    check_same_shape(where, pred, target)
    if pred.ndim < 1 or pred.shape[-1] < 2:
        raise ValueError(f"{where}: logits must be [N, R + 1] over at least 2 bins; got {shape_of(pred)}")
    if pred.ndim == 2:
        return _distil(where, pred, target, temperature, weight, avg_factor, reduction)
    sides = pred.shape[:-1]
    if weight is not None:
        check_weight(where, weight, sides)
        weight = weight.reshape(*weight.shape, *(1,) * (len(sides) - weight.ndim)).expand(sides).flatten()
    rows, taught = (x.reshape(-1, x.shape[-1]) for x in (pred, target))
    loss = _distil(where, rows, taught, temperature, weight, avg_factor, reduction)
    return loss.reshape(sides) if reduction == "none" else loss
