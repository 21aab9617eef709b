"""The benchmarks measure what they say: wrong results stop them, every peer's loss is in them, the page is that of the result."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conformance.table import PEERS
from repository import ROOT
from torch import Tensor

import detloss

FOLDERS = (ROOT / "benchmarks", ROOT / "docs")
# What a peer takes from another one, or computes together with something else.
NO_CASE_OF_ITS_OWN = {
    ("cross_entropy_loss", "torchvision"): "calls that of torch",
    ("cross_entropy_loss", "transformers"): "calls that of torch",
    ("smooth_l1_loss", "torchvision"): "calls that of torch, beside its cross entropy",
    ("mask_bce_loss", "torchvision"): "calls that of torch on masks that it cuts out first",
    ("binary_cross_entropy_loss", "ultralytics"): "calls that of torch: the case 'torch, none + sum'",
    ("binary_cross_entropy_loss", "autotimm"): "its MaskLoss, which has a case as mask_bce_loss",
}


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules beside the benchmarks and the pages can be imported; they do not stay in front of other paths."""
    threads = torch.get_num_threads()
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))
    yield
    torch.set_num_threads(threads)


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def case_of(ours: Any, **others: Any) -> Any:
    """A case of steps that give constant results."""

    def differs(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> str:
        return next((f"result {i}" for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a.item() != b.item()), "")

    steps = {name: lambda x=x: tuple(map(torch.tensor, x)) for name, x in {"detloss": ours, **others}.items()}
    return load("measure").Case(steps, differs)


def test_a_wrong_result_of_detloss_stops_the_run() -> None:
    compare = load("measure").compare
    assert compare(case_of((1.0, 2.0), reference=(1.0, 2.0), torch=(1.0, 2.0)), "x") == {"reference": "", "torch": ""}
    with pytest.raises(RuntimeError, match="x: detloss is wrong, nothing was timed: reference: result 1"):
        compare(case_of((1.0, 2.0), reference=(1.0, 3.0), torch=(1.0, 2.0)), "x")
    with pytest.raises(RuntimeError, match="nothing was timed: torch: result 1"):  # its reference may share the mistake
        compare(case_of((1.0, 2.0), reference=(1.0, 2.0), torch=(1.0, 3.0)), "x")
    with pytest.raises(RuntimeError, match="torch: result 0; kornia: result 1"):
        compare(case_of((1.0, 2.0), torch=(0.0, 2.0), kornia=(1.0, 0.0)), "x")


@pytest.mark.parametrize("factor", [1.01, float("nan")])
@pytest.mark.parametrize("part", ["value", "gradient"])
def test_a_loss_that_is_wrong_is_found_by_its_value_and_by_its_gradient(factor: float, part: str) -> None:
    measure, loss_case = load("measure"), load("loss_case")
    pred = torch.randn(20, 4, requires_grad=True)

    def wrong() -> Tensor:
        x = pred.clone()
        if part == "gradient":
            x.register_hook(lambda slope: slope * factor)
        return x.square().sum() * (factor if part == "value" else 1.0)

    case = loss_case.loss_case(
        pred, lambda: pred.square().sum(), {"torch": lambda: lambda: (pred * pred).sum(), "kornia": lambda: wrong}, bytes=None
    )
    found = measure.compare(case, "x")
    assert found["torch"] == "" and found["kornia"].startswith(part)
    row = measure.measure("x", measure.Entry("x", "x", "20", lambda: case), measure.Settings(rounds=2))
    assert row["against"] == "torch" and row["implementations"]["kornia"]["differs"].startswith(part)


def test_a_peer_that_raises_or_is_absent_is_named() -> None:
    measure, loss_case = load("measure"), load("loss_case")
    pred = torch.randn(20, 4, requires_grad=True)

    def breaks() -> Tensor:
        raise ValueError("no such thing\nat all")

    def absent() -> Any:
        raise ImportError

    makers = {"torch": lambda: lambda: (pred * pred).sum(), "kornia": lambda: breaks, "fvcore": absent}
    entry = measure.Entry("x", "x", "20", lambda: loss_case.loss_case(pred, lambda: pred.square().sum(), makers, bytes=8))
    row = measure.measure("x", entry, measure.Settings(rounds=2))
    assert row["left_out"] == {"fvcore": "not installed", "kornia": "raises ValueError: no such thing"}
    assert list(row["implementations"]) == ["detloss", "torch"]


def test_ratios_are_those_of_the_same_round() -> None:
    measure = load("measure")
    clock = iter([9.0, 9.0, 1.0, 10.0, 2.0, 10.0, 4.0, 10.0])  # a round to warm up, then three
    settings = measure.Settings(rounds=3, clock=lambda work: (work(), next(clock))[1])
    entry = measure.Entry("x", "x", "1", lambda: case_of((1.0,), torch=(1.0,)))
    row = measure.measure("x", entry, settings)
    assert row["ratio"] == [3.75, 5.0, 7.5] and row["implementations"]["detloss"]["ms"] == [1500.0, 2000.0, 3000.0]


def test_a_tiny_run_writes_results_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    path = load("run").main(
        ["--tiny", "--only", "bce", "ATSS", "--rounds", "2", "--threads", "1", "--no-memory", "--out", str(tmp_path)]
    )
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["case"]: row for row in result["rows"]}
    assert list(rows) == ["bce", "ATSS"]
    assert rows["bce"]["against"].startswith("torch") and rows["bce"]["rounds"] == 2
    assert rows["bce"]["bytes"] == 3 * 4 * 200 * 80 and len(rows["bce"]["share_of_floor"]) == 3
    assert result["machine"]["cores"] >= 1 and result["copy"]["fresh_gb_s"][1] > 0 and result["settings"]["threads"] == 1
    assert (tmp_path / "speed.svg").read_text(encoding="utf-8").count("ATSS") == 1
    assert "2 cases in" in capsys.readouterr().out


def test_the_rise_is_what_a_call_takes_at_most() -> None:
    memory = load("memory")
    if not memory.STATUS.exists():
        pytest.skip("there is no /proc/self/status here")
    for mib in (8, 64):
        assert mib <= memory.rise(lambda mib=mib: torch.ones(mib * 2**18)) / 2**20 < mib + 2


def test_what_cannot_run_is_an_error_that_says_so() -> None:
    main = load("run").main
    with pytest.raises(SystemExit, match="no case begins with nonsense; there are focal rows"):
        main(["--tiny", "--only", "nonsense"])
    with pytest.raises(SystemExit, match="--publish takes a whole run"):
        main(["--publish", "--only", "giou"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="finds no CUDA device"):
            main(["--device", "cuda"])


def test_the_cases_of_the_gpu_run_in_both_precisions() -> None:
    measure, gpu, options = load("measure"), load("on_gpu"), load("loss_case").with_options
    for dtype in gpu.DTYPES.values():
        with options(dtype, compile=False):
            (entry,) = gpu._cases("tiny", ["qfl"])
            torch.manual_seed(0)
            case = entry.make()
            assert measure.compare(case, entry.key) == dict.fromkeys(list(case.steps)[1:], "")
            assert case.steps["detloss"]()[1].dtype == dtype
    assert {"focal rows", "giou 1e3"} <= {entry.key for entry in gpu._cases("full", [])} & set(gpu.COMPILED)


def test_a_run_on_a_gpu_by_its_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the device; a wrong result in one case does not end the run, but is an error after the last."""
    gpu, measure, run = load("on_gpu"), load("measure"), load("run")
    found = SimpleNamespace(name="none", total_memory=2**30)
    stand_ins = {"current_device": lambda: 0, "get_device_properties": lambda _: found, "is_available": lambda: True}
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "set_default_device", lambda _: None)
    for name, value in {"cuda_seconds": measure.cpu_seconds, "COPIED": 4096, "COMPILED": ()}.items():
        monkeypatch.setattr(gpu, name, value)
    options = ["--device", "cuda", "--tiny", "--only", "mse", "--rounds", "2", "--no-memory", "--out", str(tmp_path)]
    result = json.loads(run.main(options).read_text(encoding="utf-8"))
    assert [row["case"] for row in result["rows"]] == ["mse", "mse bf16"]
    assert result["gpu"]["name"] == "none" and result["errors"] == [] and result["device"] == "cuda"
    monkeypatch.setattr(detloss.functional, "mse_loss", lambda pred, target, reduction: pred.sum())
    with pytest.raises(SystemExit, match=r"2 cases failed: mse: .*detloss is wrong.* torch: value"):
        run.main(options)
    assert len(json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"]) == 0


def test_every_case_has_all_sizes() -> None:
    for suite in load("command").SUITES:
        keys = {size: [e.key for e in load(suite).entries(size)] for size in ("tiny", "quick", "full")}
        assert keys["full"] == keys["tiny"] and set(keys["quick"]) <= set(keys["full"])
        assert len(set(keys["full"])) == len(keys["full"])


def committed() -> dict[str, Any]:
    result: dict[str, Any] = load("measurements").committed()
    return result


def test_every_loss_that_an_installed_peer_has_is_measured() -> None:
    """By the table of conformance: (loss, package) of every equal call."""
    wanted = {
        (name, peer.distribution or "torch")
        for peer in PEERS if peer.name != "mmdet and visdet"
        for row in peer.rows for name in load("detloss.functional").__all__ if f"F.{name}(" in row.ours
    }  # fmt: skip
    got = {(row["loss"], name.split()[0].rstrip(",")) for row in committed()["rows"]
           for name in (*row["implementations"], *row.get("left_out", {}))}  # fmt: skip
    missing = wanted - got - set(NO_CASE_OF_ITS_OWN)
    assert not missing, f"add a case to benchmarks/*_cases.py and run make bench-full PUBLISH=1: {sorted(missing)}"


def test_the_committed_result_has_every_case_and_names_no_place() -> None:
    result = committed()
    keys = [entry.key for suite in ("losses", "assigners") for entry in load(suite).entries(result["size"])]
    assert [row["case"] for row in result["rows"]] == keys, "run: make bench-full PUBLISH=1"
    text = json.dumps(result)
    assert not [word for word in ("/home", "/root", "/work", "/Users", "hostname", "nodename") if word in text]
    assert {"processor", "cores", "memory_gib", "system"} <= set(result["machine"])
    assert {"torch", "python", "torchvision"} <= set(result["versions"])


def test_page_plot_and_readme_are_those_of_the_committed_result() -> None:
    measurements, result = load("measurements"), committed()
    again = "run: python docs/measurements.py"
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == measurements.page(result), again
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert measurements.with_summary(readme, result) == readme, again
    for name, only in (("speed.svg", measurements.HEADLINES), ("speed-all.svg", ())):
        text = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
        assert len(text) < 150_000 and result["date"] in text
        assert all(row["case"] in text for row in result["rows"] if "ratio" in row and row["case"] in (only or row["case"]))


def test_the_page_says_which_result_differs() -> None:
    row = next(row for row in committed()["rows"] if row["case"] == "MaxIoU")
    line = load("measurements")._every(row)
    assert "effdet" in line and "computes something else" in line
