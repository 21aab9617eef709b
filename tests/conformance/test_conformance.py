"""Equal where the peers are right, and known to differ where they are not: the table of :mod:`conformance.table`."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import render
from conformance.evaluate import both_sides, namespace, value_and_gradient
from conformance.rows import Divergence, Outcome, Peer, Row
from conformance.table import PEERS
from repository import ROOT
from torch import Tensor

LEAST_TOLERANCE = 1e-6


def lines(of: str) -> Sequence[Any]:
    """The rows or the divergences of all peers, each with its peer."""
    return [pytest.param(p, x, id=f"{p.name}-{x.name}".replace(" ", "-")) for p in PEERS for x in getattr(p, of)]


def check_close(what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape, f"{what}: {list(ours.shape)} here, {list(theirs.shape)} there"
    assert ours.isfinite().all() and theirs.isfinite().all(), what
    largest = theirs.abs().max()
    assert largest > 0, f"{what}: nothing is compared"
    difference = (ours - theirs).abs().max() / largest
    assert difference <= tolerance, f"{what} differs by {difference:.2e} of the largest, at most {tolerance:.0e}"


@pytest.mark.parametrize(("peer", "row"), lines("rows"))
def test_equal(peer: Peer, row: Row) -> None:
    names = namespace(peer)
    ours, theirs = (value_and_gradient(row, call, names) for call in (row.ours, row.theirs))
    check_close("value", ours[0], theirs[0], row.tolerance)
    if row.gradient:
        check_close("gradient", ours[1], theirs[1], row.tolerance)


def agree(a: Outcome, b: Outcome) -> bool:
    """The same exception, or numbers that are equal to three digits, NaN to NaN."""
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    a, b = (x if isinstance(x, tuple) else (x,) for x in (a, b))
    same = (
        math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-9) or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=False)
    )
    return len(a) == len(b) and all(same)


@pytest.mark.parametrize(("peer", "divergence"), lines("divergences"))
def test_known_divergence(peer: Peer, divergence: Divergence) -> None:
    ours, theirs = both_sides(divergence, namespace(peer))
    assert agree(ours, divergence.our_result), f"{divergence.ours} gives {ours}"
    assert agree(theirs, divergence.their_result), (
        f"{divergence.theirs} gives {theirs}, with version {peer.version} it gave {divergence.their_result}; "
        "if the peer was mended, this is a row now"
    )


@pytest.mark.parametrize(("peer", "divergence"), lines("divergences"))
def test_a_divergence_is_one_and_has_a_reason(peer: Peer, divergence: Divergence) -> None:
    assert not agree(divergence.our_result, divergence.their_result)
    assert divergence.reason.endswith(".")


def test_the_table_is_strict() -> None:
    for peer in PEERS:
        assert all(row.tolerance <= LEAST_TOLERANCE for row in peer.rows), peer.name
        for lines_ in (peer.rows, peer.divergences):
            assert len({x.name for x in lines_}) == len(lines_), f"two of the same name for {peer.name}"
        unlike = [row.name for row in peer.rows if not row.gradient]
        shown = [d.name for d in peer.divergences if d.name.endswith("-slope")]
        assert all(f"{name}-slope" in shown for name in unlike), f"{peer.name}: show the other gradient of {unlike}"


def test_the_extra_installs_every_peer() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^peers = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    named = set(re.findall(r'"([a-z]+)', block.group(1))) if block else set()
    assert {peer.distribution for peer in PEERS} - {"", "torch"} == named


def test_the_page_is_that_of_the_table() -> None:
    now = render.PAGE.read_text(encoding="utf-8") if render.PAGE.exists() else ""
    assert now == render.page(), f"docs/conformance.md is stale; run: {render.command}"


def test_an_absent_peer_is_skipped_by_name() -> None:
    absent = dataclasses.replace(PEERS[0], name="nowhere", distribution="nowhere", modules=("nowhere.losses",))
    with pytest.raises(pytest.skip.Exception, match="nowhere is not installed"):
        namespace(absent)


def test_an_old_peer_is_skipped_by_version() -> None:
    future = dataclasses.replace(PEERS[0], oldest="99.1")
    with pytest.raises(pytest.skip.Exception, match=r"torch .* is older than 99\.1"):
        namespace(future)


def test_a_peer_that_cannot_be_imported_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halfway.py").write_text("import nowhere_at_all", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = dataclasses.replace(PEERS[0], name="halfway", distribution="halfway", modules=("halfway",))
    with pytest.raises(ImportError, match="nowhere_at_all"):
        namespace(broken)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_importing_a_peer_leaves_the_process_as_it_is(peer: Peer) -> None:
    def state() -> tuple[object, ...]:
        picture = getattr(sys.modules.get("PIL.Image"), "open", None)
        return torch.save, torch.load, torch._tensor_str.PRINT_OPTS.linewidth, os.environ.get("YOLO_CONFIG_DIR"), picture

    before = state()  # other tests of this process may import the peer themselves
    namespace(peer)
    after = state()
    assert after[:-1] == before[:-1]
    assert before[-1] is None or after[-1] is before[-1]


IMPORT_ALL = """
import socket

import pytest
import conformance.evaluate
import conformance.table

def refuse(*args, **options):
    raise SystemExit("a peer asks the network")

socket.getaddrinfo = socket.socket.connect = refuse
for peer in conformance.table.PEERS:
    try:
        conformance.evaluate.namespace(peer)
    except pytest.skip.Exception:
        pass
"""


@pytest.mark.slow
def test_importing_the_peers_is_silent_and_offline(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [path for path in tmp_path.rglob("*") if "ultralytics" in path.name.lower()]
