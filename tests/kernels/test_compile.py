"""The operators that torch.compile sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import kernel_calls as calls
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from detloss import functional as F
from detloss import kernels
from detloss.kernels.native import BACKEND
from detloss.kernels.native.library import problem

if missing := problem():
    pytest.skip(f"no native library: {missing}", allow_module_level=True)

PAIRS = [pair for pair in calls.pairs() if BACKEND.refuses(pair.call) is None and "0.001" not in pair.id]
ONE_OF_EACH = list({pair.call.op: pair for pair in reversed(PAIRS)}.values())


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    torch._dynamo.reset()
    with kernels.use("native"):
        yield


@pytest.mark.parametrize("pair", ONE_OF_EACH, ids=lambda pair: pair.id)
def test_operators_keep_their_promises(pair: calls.Pair) -> None:
    from detloss.kernels import opaque

    call = pair.call
    arguments = (call.pred.clone().requires_grad_(), *opaque.arguments_of("native", call)[1:])
    torch.library.opcheck(torch.ops.detloss.total, (*arguments, torch.tensor(3.0), True))
    torch.library.opcheck(torch.ops.detloss.elements, arguments)
    upstream = torch.ops.detloss.elements(*arguments).detach()
    plain = (call.pred, *arguments[1:])
    torch.library.opcheck(torch.ops.detloss.elements_backward, (*plain, upstream))


def losses(rows: int) -> list[tuple[Tensor, Callable[..., Tensor]]]:
    index, boxes = torch.randint(0, 5, (rows,)), torch.rand(rows, 4).cumsum(1)
    score = torch.rand(rows)
    return [
        (torch.randn(rows, 5), lambda x, **o: F.sigmoid_focal_loss(x, index, **o)),
        (torch.randn(rows, 5), lambda x, **o: F.varifocal_loss(x, (index, score), **o)),
        (torch.randn(rows, 5), lambda x, **o: F.cross_entropy_loss(x, index, **o)),
        (boxes + 0.1, lambda x, **o: F.ciou_loss(x, boxes, **o)),
    ]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("which", range(4))
def test_one_graph_for_all_sizes(which: int, reduction: str) -> None:

    def step(x: Tensor, target: Tensor, average: Tensor) -> Tensor:
        more = {"avg_factor": average} if reduction == "mean" else {}
        functions = (F.sigmoid_focal_loss, F.binary_cross_entropy_loss, F.cross_entropy_loss, F.ciou_loss)
        return functions[which](x * 1.5, target, reduction=reduction, **more).sum() * 2

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    compilations = set()
    for rows in (7, 12, 30):
        target = torch.rand(rows, 4).cumsum(1) if which == 3 else torch.randint(0, 5, (rows,))
        pred = torch.rand(rows, 4 if which == 3 else 5).cumsum(1)
        found, expected = (x.clone().requires_grad_() for x in (pred, pred))
        loss = compiled(found, target, torch.tensor(2.5))
        loss.backward()
        wanted = step(expected, target, torch.tensor(2.5))
        wanted.backward()
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(found.grad, expected.grad)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1  # none after that of the first size
    assert any("detloss" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)


def test_a_mean_and_numbers_that_change() -> None:
    def step(x: Tensor, boxes: Tensor, average: float | None) -> Tensor:
        return F.giou_loss(x, boxes, avg_factor=average)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows, average in ((4, None), (9, None), (4, 3.0), (5, 7.5), (6, 0.0)):
        boxes = torch.rand(rows, 4).cumsum(1)
        torch.testing.assert_close(compiled(boxes + 0.1, boxes, average), step(boxes + 0.1, boxes, average))


def test_without_gradient_the_graph_makes_none() -> None:
    counter = CompileCounterWithBackend("eager")
    boxes = torch.rand(6, 4).cumsum(1)
    torch.compile(lambda x: F.giou_loss(x, boxes), backend=counter, fullgraph=True)(boxes + 1)
    (node,) = (node for node in counter.graphs[0].graph.nodes if "total" in str(node.target))
    assert node.args[-1] is False


def test_export_sees_the_formula() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.sigmoid_focal_loss(x, torch.zeros(3, dtype=torch.int64))

    program = torch.export.export(Model(), (torch.randn(3, 5),))
    assert not any("detloss" in str(node.target) for node in program.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("which", range(4))
def test_inductor(which: int) -> None:
    pred, function = losses(9)[which]
    found, expected = (pred.clone().requires_grad_() for _ in range(2))
    torch.compile(lambda x: function(x), fullgraph=True)(found).backward()
    function(expected).backward()
    torch.testing.assert_close(found.grad, expected.grad)
