# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
from kit.settings import ISAS, use_isa, use_threads


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the work is small, and threads that spin take 20 times as long."""
    with use_threads(1):
        yield


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with the kernels of each instruction set that this machine has."""
    with use_isa(request.param):
        yield request.param
