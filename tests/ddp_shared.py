"""One rank of a data-parallel step for any criterion of the table, and the same step in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from criteria_all import CASES
from criteria_cases import Case, Tree, leaves, map_tree
from torch import Tensor, nn

from detloss import LossDict

IMAGES_PER_RANK = 2
BY_NAME = {case.name: case for case in CASES}


class Head(nn.Module):
    """A factor and an offset for every prediction, in its dtype and the same on every rank."""

    def __init__(self, predictions: Tree) -> None:
        super().__init__()
        dtypes = [x.dtype for x in leaves(predictions)]
        self.factor = nn.ParameterList([torch.ones((), dtype=dtype) for dtype in dtypes])
        self.offset = nn.ParameterList([torch.zeros((), dtype=dtype) for dtype in dtypes])

    def forward(self, predictions: Tree) -> Tree:
        scale = iter(zip(self.factor, self.offset, strict=True))

        def change(x: Tensor) -> Tensor:
            factor, offset = next(scale)
            return x * factor + offset

        return map_tree(change, predictions)


def batch(case: Case, objects: Sequence[int], dtype: torch.dtype) -> tuple[Tree, list[dict[str, Tensor]]]:
    """Predictions and targets of all ranks: the first image of rank r has ``objects[r]`` objects, the second none."""
    torch.manual_seed(3)
    predictions = map_tree(Tensor.detach, case.predict(IMAGES_PER_RANK * len(objects), dtype))
    return predictions, case.targets([n for count in objects for n in (count, 0)])


def one_process(case: Case, objects: Sequence[int], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], LossDict]:
    """Gradients and losses when one process holds the whole batch."""
    predictions, targets = batch(case, objects, dtype)
    head = Head(predictions)
    losses = case.call(case.make(), head(predictions), targets)
    losses.total_loss.backward()
    return [p.grad for p in head.parameters()], losses


def run_rank(rank: int, work: Sequence[tuple[str, Sequence[int], str, torch.dtype]], folder: str) -> None:
    """Do every case on this rank; save gradients, losses and the number of all-reduces of each criterion call."""
    ranks = len(work[0][1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    calls = 0
    all_reduce = dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    results = []
    for name, objects, normalizer, dtype in work:
        case = BY_NAME[name]
        predictions, targets = batch(case, objects, dtype)
        mine = slice(rank * IMAGES_PER_RANK, (rank + 1) * IMAGES_PER_RANK)
        model = nn.parallel.DistributedDataParallel(Head(predictions), find_unused_parameters=False)
        outputs = model(map_tree(lambda x, part=mine: x[part], predictions))
        calls = 0
        losses = case.call(case.make(normalizer=normalizer), outputs, targets[mine])
        reduces = calls
        losses.total_loss.backward()
        results.append(
            {
                "gradients": [p.grad for p in model.parameters()],
                "losses": {term: value.detach() for term, value in losses.items()},
                "num_pos": losses.metrics["num_pos"],
                "all_reduces": reduces,
            }
        )
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
