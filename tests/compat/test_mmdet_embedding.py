"""The losses of embeddings and similarities of ``detloss.compat.mmdet``, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from detloss.compat.mmdet.models import losses as L

MARGIN_LOSSES = [L.L2Loss, L.MarginL2Loss]


@pytest.mark.parametrize("kind", MARGIN_LOSSES)
def test_hard_negatives_within_a_margin(kind: type[L.L2Loss]) -> None:
    pred = torch.tensor([[1.0, 0.9, 0.0, 0.05, 0.0, 0.3, 1.0]], requires_grad=True)
    target = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0]])
    loss = kind(neg_pos_ub=1, pos_margin=0, neg_margin=0.1, hard_mining=True)(pred, target)
    assert loss.item() == pytest.approx((0.01 + 0.04 + 0.81) / 4)  # two negatives are left, 0.3 and 1
    loss.backward()
    assert pred.grad is not None
    torch.testing.assert_close(pred.grad, torch.tensor([[0, -0.2, 0, 0, 0, 0.4, 1.8]]) / 4)
    assert pred[0, 6] == 1 and target.sum() == 2  # there the margin stays in the predictions


@pytest.mark.parametrize("kind", MARGIN_LOSSES)
def test_similarities_that_do_not_count(kind: type[L.L2Loss]) -> None:
    pred = torch.tensor([[0.5, torch.nan, 0.25]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0, 2.0]])
    loss = kind(loss_weight=2.0)(pred, torch.tensor([[1, 0, 0]]), weight, 100)
    assert loss.item() == pytest.approx(2 * (0.25 + 2 * 0.0625) / 2)
    loss.backward()
    assert pred.grad is not None and pred.grad.isfinite().all()
    nothing = kind(reduction="sum")(pred[:, :0], torch.zeros(1, 0))
    assert nothing == 0
    every = kind(reduction="none")(torch.tensor([[0.5, 1.5]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(every, torch.tensor([[0.25, 1.0]]))
    with pytest.raises(ValueError, match="same shape"):
        kind()(pred, torch.zeros(1, 2))


def test_random_negatives_are_as_many() -> None:
    pred, target = torch.full((4, 10), 0.5), torch.zeros(4, 10)
    target[0, :2] = 1
    kept = L.L2Loss(neg_pos_ub=3, reduction="none")(pred, target) > 0
    assert kept.sum() == 2 + 6 and kept[0, :2].all()
    target[0] = 0
    assert L.L2Loss(neg_pos_ub=3)(pred, target) == 0


def test_cross_entropy_of_several_positives() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5, -1.0], [3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([[1, 0, 2, 0], [1, 1, 1, 1], [1, 0, -1, -1]])
    pairs = sum(math.exp(n - p) for n in (2.0, -1.0) for p in (1.0, 0.5))
    rows = L.MultiPosCrossEntropyLoss(reduction="none")(scores, labels)
    torch.testing.assert_close(rows, torch.tensor([math.log1p(pairs), 0.0, math.log(2)], dtype=torch.float64))
    weighted = L.MultiPosCrossEntropyLoss(loss_weight=3.0)(scores, labels, torch.tensor([0.0, 1.0, 2.0]), 4)
    assert weighted.item() == pytest.approx(3 * 2 * math.log(2) / 4)
    loss = L.MultiPosCrossEntropyLoss()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), scores.requires_grad_())
    assert loss(torch.tensor([[1, 0], [0, 1]]), torch.tensor([[1, 1], [0, 0]])) == 0
    assert loss(scores[:, :0], labels[:, :0]) == loss(scores[:0], labels[:0]) == 0
    far = torch.tensor([[300.0, -300.0]], requires_grad=True)
    value = loss(far, torch.tensor([[0, 1]]))
    value.backward()
    assert value == 600 and far.grad is not None and far.grad.tolist() == [[1, -1]]
    with pytest.raises(AssertionError, match="same shape"):
        loss(scores, labels[:2])


def test_triplets() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [6.0, 8.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    # (farthest of the own, nearest of the others) of each row.
    rows = [(5, 1), (5, 18**0.5), (85**0.5, 1), (85**0.5, 5)]
    expected = sum(max(0.0, far - near + 0.5) for far, near in rows) / 4
    loss = L.TripletLoss(margin=0.5, loss_weight=2.0)
    assert loss(x, labels).item() == pytest.approx(2 * expected)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), x.requires_grad_())
    x.grad = None
    same = loss(x, torch.zeros(4))
    same.backward()
    assert same == 0 and x.grad is not None and not x.grad.any()  # there an error
    assert loss(torch.zeros(4, 2), labels) == pytest.approx(1.0)
    assert loss(x[:0], labels[:0]) == 0
    with pytest.raises(NotImplementedError, match="hard_mining"):
        L.TripletLoss(hard_mining=False)(x, labels)
    with pytest.raises(ValueError, match=r"inputs \[N, D\]"):
        loss(x, labels[:2])
