"""``accuracy`` and ``Accuracy``: how many rows have their class among the highest scores, in percent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detloss.checks import shape_of

__all__ = ["Accuracy", "accuracy"]


def accuracy(pred: Tensor, target: Tensor, topk: int | Sequence[int] = 1, thresh: float | None = None) -> Tensor | list[Tensor]:
    """Percent of the rows whose class is among the ``topk`` highest scores.

    Args:
        pred: scores ``[N, C]``.
        target: class indices ``[N]``.
        topk: one number, or several.
        thresh: scores up to this count as wrong.

    Returns:
        A tensor of one element, or a list of them if ``topk`` is a sequence; 0 without rows.

    Raises:
        ValueError: shapes that do not fit, or more ``topk`` than classes.

    >>> import torch
    >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([1, 1, 1]))
    tensor([66.6667])
    """
    several = not isinstance(topk, int)
    numbers = (topk,) if isinstance(topk, int) else tuple(topk)
    if pred.ndim != 2 or target.shape != pred.shape[:1]:
        raise ValueError(f"accuracy: expected pred [N, C] and target [N]; got {shape_of(pred)} and {shape_of(target)}")
    if not len(pred):
        found = [pred.new_tensor(0.0) for _ in numbers]
        return found if several else found[0]
    if max(numbers) > pred.shape[1]:
        raise ValueError(f"accuracy: topk must be at most the number of classes, {pred.shape[1]}; got {max(numbers)}")
    score, label = pred.topk(max(numbers), dim=1)
    correct = label == target.view(-1, 1)
    if thresh is not None:
        correct &= score > thresh
    found = [correct[:, :k].sum().to(pred.dtype).mul(100.0 / len(pred)).view(1) for k in numbers]
    return found if several else found[0]


class Accuracy(nn.Module):
    """:func:`accuracy` as a module.

    Args:
        topk: numbers of highest scores, one or several.
        thresh: scores up to this count as wrong.
    """

    def __init__(self, topk: int | Sequence[int] = (1,), thresh: float | None = None) -> None:
        super().__init__()
        self.topk, self.thresh = topk, thresh

    def forward(self, pred: Tensor, target: Tensor) -> Tensor | list[Tensor]:
        """Percent of the rows of scores ``[N, C]`` whose class ``[N]`` is among the highest."""
        return accuracy(pred, target, self.topk, self.thresh)
