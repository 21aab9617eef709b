"""What kornia's losses of maps check, with words of its errors that callers may look for."""

from __future__ import annotations

from torch import Tensor

from detloss.checks import shape_of

__all__ = ["check_maps"]


def check_maps(where: str, pred: Tensor, target: Tensor, classes: str = "C") -> None:
    """Raise unless ``pred`` are logits ``[B, C, H, W]`` and ``target`` ``[B, H, W]`` on the same device.

    Args:
        where: name of the loss.
        pred: logits.
        target: class indices or masks.
        classes: ``"C"``, or ``"1"`` for one channel.
    """
    for name, value in (("pred", pred), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{where}: {name} type is not a torch.Tensor. Got {type(value).__name__}")
    expected = f"expected logits [B, {classes}, H, W] and targets [B, H, W]"
    if pred.ndim != 4 or (classes == "1" and pred.shape[1] != 1):
        raise ValueError(f"{where}: Invalid pred shape, we expect BxNxHxW. Got: {shape_of(pred)}; {expected}")
    if pred.shape[-2:] != target.shape[-2:]:
        raise ValueError(
            f"{where}: pred and target shapes must be the same. Got: {shape_of(pred)} and {shape_of(target)}; {expected}"
        )
    if pred.device != target.device:
        raise ValueError(f"{where}: pred and target must be in the same device. Got: {pred.device} and {target.device}")
    if target.shape != pred.shape[:1] + pred.shape[2:]:
        raise ValueError(f"{where}: {expected}; got {shape_of(pred)} and {shape_of(target)}")
