"""What the tests of the native kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from detloss.kernels.native.library import library

SETS = {"base": 0, "avx2": 1, "avx512": 2}


@pytest.fixture(params=SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = library().detloss_instruction_set().decode()
    if not library().detloss_choose(SETS[request.param]):
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    library().detloss_choose(SETS[before])
