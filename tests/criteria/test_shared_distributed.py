"""Every criterion on 2 and 3 ranks gives the gradients of one process that holds the whole batch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from criteria_all import CASES
from ddp_shared import BY_NAME, one_process, run_rank
from torch import Tensor

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")

OBJECTS = {2: [(40, 2), (40, 0), (1, 0), (0, 0)], 3: [(40, 2, 1), (0, 40, 2), (1, 0, 0), (0, 0, 0)]}
ROWS = [(case.name, row) for case in CASES for rows in OBJECTS.values() for row in rows]

SINGLE = (40, 2)  # also in fp32, for which there are kernels

Key = tuple[str, tuple[int, ...], str, torch.dtype]
Results = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Results per rank; all cases of a number of ranks run in the same processes."""
    multiprocessing.set_forkserver_preload(["ddp_shared", "torch._dynamo"])  # imported once, not once per rank
    found: dict[Key, list[dict[str, Any]]] = {}
    for ranks, rows in OBJECTS.items():
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        keys: list[Key] = [(name, row, mode, torch.float64) for name in BY_NAME for row in rows for mode in ("sync", "local")]
        keys += [(name, SINGLE, "sync", torch.float32) for name in BY_NAME if len(SINGLE) == ranks]
        mp.start_processes(run_rank, (keys, str(folder)), nprocs=ranks, start_method="forkserver")
        per_rank = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]
        for k, key in enumerate(keys):
            found[key] = [rank[k] for rank in per_rank]
    return lambda name, row, mode, dtype=torch.float64: found[name, row, mode, dtype]


def difference(got: list[Tensor], want: list[Tensor]) -> float:
    """Norm of the difference relative to the norm of ``want``, where that is not 0."""
    a, b = (torch.stack([x.flatten().sum() for x in xs]) for xs in (got, want))
    return float((a - b).norm() / (b.norm() if b.norm() else 1.0))


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_gradients_and_losses_equal_those_of_one_process(results: Results, name: str, row: tuple[int, ...]) -> None:
    found, (expected, losses) = results(name, row, "sync"), one_process(BY_NAME[name], row)
    for rank in found:
        assert difference(rank["gradients"], expected) <= 1e-12
    assert sum(int(rank["num_pos"]) for rank in found) == int(losses.metrics["num_pos"])
    for term in losses:  # the mean over ranks of what each reports is the loss of the whole batch
        mean = torch.stack([rank["losses"][term] for rank in found]).mean()
        torch.testing.assert_close(mean, losses[term].detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", BY_NAME)
def test_so_do_the_kernels(results: Results, name: str) -> None:
    expected, _ = one_process(BY_NAME[name], SINGLE, torch.float32)
    for rank in results(name, SINGLE, "sync", torch.float32):
        assert difference(rank["gradients"], expected) <= 1e-5


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_call_makes_exactly_one_all_reduce(results: Results, name: str, row: tuple[int, ...]) -> None:
    assert [rank["all_reduces"] for rank in results(name, row, "sync")] == [1] * len(row)
    assert [rank["all_reduces"] for rank in results(name, row, "local")] == [0] * len(row)


@pytest.mark.parametrize("name", [name for name, case in BY_NAME.items() if case.local_differs])
@pytest.mark.parametrize("ranks", OBJECTS)
def test_a_local_normaliser_gives_other_gradients_where_ranks_differ(results: Results, name: str, ranks: int) -> None:
    uneven = OBJECTS[ranks][0]
    assert difference(results(name, uneven, "local")[0]["gradients"], one_process(BY_NAME[name], uneven)[0]) > 1e-6
