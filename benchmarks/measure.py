"""What every benchmark shares: check first, then time in interleaved rounds, weigh in fresh processes, compare with a copy.

A case has implementations by name, "detloss" among them. Their results are compared before anything is timed: detloss must
agree with its own reference formula where there is one, and with at least one other implementation where there are any, or the
run ends. Another implementation that disagrees is reported with what differs, and left out of the comparison.

In each round every implementation runs once, a copy of the bytes that any implementation must move among them; ratios are
those of the same round. All figures are quartiles: [25 %, median, 75 %].
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Case", "Entry", "Settings", "compare", "cpu_seconds", "is_peer", "measure", "quartiles", "show"]

Result = tuple[Tensor, ...]
Step = Callable[[], Result]
Clock = Callable[[Callable[[], object]], float]

PEERS = ("torch", "torchvision", "fvcore", "kornia", "autotimm", "ultralytics", "effdet", "transformers")
OURS, REFERENCE, COPY = "detloss", "reference", "copy"
MIB = 2**20
LARGE = 32 * MIB  # beside that the noise of a weighing is nothing
NOTHING = 2**16  # bytes of a gradient beside which an allocator's rounding is more
WORTH_A_RATIO = 1.0  # MiB of the rival, below which memory is not compared
LONG = 0.02  # seconds after which a step is not repeated in a round


@dataclass
class Case:
    """One loss or assigner at one size.

    Attributes:
        steps: implementations by name; the first word of a peer's is its package.
        differs: what is different between two results, empty when nothing is.
        bytes: what any implementation must move: read the inputs, write the gradient; ``None`` where that says nothing.
        reset: runs before each step, outside the clock.
        burst: how often a step runs in a row in a round, at most; the median counts.
        against: the implementation to compare with; ``None``: the fastest peer.
        values_only: peers whose other results are known to differ, with the reason.
        left_out: implementations that cannot run here, with the reason.
        gradient: bytes of the gradients that a step leaves.
    """

    steps: dict[str, Step]
    differs: Callable[[Result, Result], str]
    bytes: int | None = None
    reset: Callable[[], None] = lambda: None
    burst: int = 1
    against: str | None = None
    values_only: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    gradient: int = 0


class Entry(NamedTuple):
    """A case that is made when it is measured.

    Attributes:
        key: name, the same at every size.
        loss: name of the function in ``detloss.functional``, or of the assigner.
        size: of this one, for people.
        make: the case.
    """

    key: str
    loss: str
    size: str
    make: Callable[[], Case]


def cpu_seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        rounds: how many; ``None``: as many as fit into ``budget``, within ``bounds``.
        budget: seconds for the rounds of a case.
        bounds: least and most rounds.
        clock: seconds of a call.
        peak: bytes that an implementation (by suite, key of the case and name) takes beyond what was
            there; ``None``: not weighed.
        weighings: how often, of which the median counts; once where the gradient alone is
            large, never where it is next to nothing.
    """

    rounds: int | None = None
    budget: float = 2.0
    bounds: tuple[int, int] = (5, 25)
    clock: Clock = cpu_seconds
    peak: Callable[[str, str, str], int | None] | None = None
    weighings: int = 1


def quartiles(values: list[float], scale: float = 1.0, digits: int = 4) -> list[float]:
    """[25 %, median, 75 %], rounded to ``digits`` significant ones."""
    cut = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [float(f"{scale * value:.{digits}g}") for value in cut]


def is_peer(name: str) -> bool:
    """Whether an implementation is that of another package."""
    return name.split()[0].rstrip(",") in PEERS


def compare(case: Case, where: str) -> dict[str, str]:
    """What every other implementation gives that detloss does not, empty where they agree; this also warms up.

    One that raises is moved from the steps to what is left out.

    Raises:
        RuntimeError: detloss disagrees with its reference formula, or with everything else.
    """
    case.reset()
    ours = case.steps[OURS]()
    found = {}
    for name, step in list(case.steps.items()):
        if name == OURS:
            continue
        case.reset()
        try:
            theirs = step()
        except Exception as error:
            if not is_peer(name):
                raise
            case.left_out[name] = _said(error)
            del case.steps[name]
            continue
        count = 1 if name in case.values_only else len(ours)
        found[name] = case.differs(ours[:count], theirs[:count])
    others = {name: what for name, what in found.items() if name != REFERENCE}
    said = "; ".join(f"{name}: {what}" for name, what in found.items() if what)
    wrong = found.get(REFERENCE) or (bool(others) and all(others.values()))
    if wrong:
        raise RuntimeError(f"{where}: detloss is wrong, nothing was timed: {said}")
    return found


def _said(error: Exception) -> str:
    """The first line of an error, for a table."""
    return f"raises {type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"


def _copy_of(size: int) -> Callable[[], object]:
    """Reading half of that many bytes and writing the other half into fresh memory."""
    source = torch.ones(max(size // 8, 1))
    return lambda: torch.empty_like(source).copy_(source)


def _timed(case: Case, names: list[str], settings: Settings) -> dict[str, list[float]]:
    """Seconds of every implementation, and of the copy, in every round."""
    steps: dict[str, Callable[[], object]] = {name: case.steps[name] for name in names}
    if case.bytes is not None:
        steps[COPY] = _copy_of(case.bytes)

    def burst(step: Callable[[], object]) -> float:
        taken: list[float] = []
        while len(taken) < case.burst and sum(taken) < LONG:
            case.reset()
            taken.append(settings.clock(step))
        return statistics.median(taken)

    def one_round() -> dict[str, float]:
        return {name: burst(step) for name, step in steps.items()}

    start = time.perf_counter()
    one_round()  # warm, and says what a round takes
    least, most = settings.bounds
    fitting = int(settings.budget / max(time.perf_counter() - start, 1e-9))
    rounds = [one_round() for _ in range(settings.rounds or min(max(fitting, least), most))]
    return {name: [taken[name] for taken in rounds] for name in steps}


def _peaks(suite: str, entry: Entry, names: list[str], times: int, settings: Settings) -> dict[str, float]:
    """MiB of every implementation."""
    if settings.peak is None or not times:
        return {}
    found = {name: [settings.peak(suite, entry.key, name) for _ in range(times)] for name in names}
    return {n: round(statistics.median(p for p in v if p is not None) / MIB, 2) for n, v in found.items() if None not in v}


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return quartiles([a / b for a, b in zip(above, below, strict=True)])


def measure(suite: str, entry: Entry, settings: Settings) -> dict[str, Any]:
    """Check, time and weigh one case: a row of the results."""
    case = entry.make()
    problems = compare(case, entry.key)
    names = list(case.steps)
    times = _timed(case, names, settings)
    case_bytes, gradient = case.bytes, case.gradient
    peers = [name for name in names if is_peer(name) and not problems[name]]
    formulas = [name for name in names if name != OURS and not is_peer(name) and not problems[name]]
    rivals = [case.against] if case.against else peers or formulas
    fastest = min(rivals, key=lambda name: statistics.median(times[name]), default=None)
    left_out, values_only = case.left_out, case.values_only
    del case  # the inputs need not stay while fresh processes make their own
    times_weighed = 0 if 0 < gradient < NOTHING else 1 if gradient > LARGE else settings.weighings
    peaks = _peaks(suite, entry, names, times_weighed, settings)
    implementations = {
        name: {
            "kind": "detloss" if name == OURS else "peer" if is_peer(name) else "formula",
            "ms": quartiles(times[name], 1e3),
            **({} if name == OURS else {"times_ours": _ratios(times[name], times[OURS])}),
            **({"peak_mib": peaks[name]} if name in peaks else {}),
            **({"differs": problems[name]} if problems.get(name) else {}),
            **({"values_only": values_only[name]} if name in values_only else {}),
        }
        for name in names
    }
    row: dict[str, Any] = {"suite": suite, "case": entry.key, "loss": entry.loss, "size": entry.size}
    row |= {"rounds": len(times[OURS]), "implementations": implementations, "has_peer": bool(peers)}
    if left_out:
        row["left_out"] = left_out
    if fastest is not None:
        row |= {"against": fastest, "ratio": implementations[fastest]["times_ours"]}
        if peaks.get(fastest, 0.0) >= WORTH_A_RATIO and OURS in peaks:
            row["memory_ratio"] = float(f"{peaks[fastest] / max(peaks[OURS], 0.1):.3g}")
    if case_bytes is not None:
        row |= {"bytes": case_bytes, "gradient_mib": round(gradient / MIB, 3), "floor_ms": quartiles(times[COPY], 1e3)}
        row["share_of_floor"] = _ratios(times[COPY], times[OURS])
    return row


def show(row: dict[str, Any]) -> None:
    """One row as lines of a table."""
    against = f": {row['ratio'][1]:.3g} times as fast as {row['against']}" if "against" in row else ""
    floor = f"; floor {row['floor_ms'][1]:.3g} ms" if "floor_ms" in row else ""
    print(f"{row['case']} ({row['size']}){against}{'' if row['has_peer'] else ' (no peer)'}{floor}")
    for name, found in row["implementations"].items():
        low, middle, high = found["ms"]
        peak = f"{found['peak_mib']:9.1f} MiB" if "peak_mib" in found else ""
        remark = f"  DIFFERS: {found['differs']}" if "differs" in found else ""
        remark += f"  (values only: {found['values_only']})" if "values_only" in found else ""
        print(f"  {name:18s} {middle:9.3f} ms [{low:.3f} – {high:.3f}] {peak}{remark}", flush=True)
    for name, reason in row.get("left_out", {}).items():
        print(f"  {name:18s} left out: {reason}", flush=True)
