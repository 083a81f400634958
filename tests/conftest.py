# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of all tests, and where torch keeps what it compiles in them."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.settings import ISAS, use_isa, use_threads

PACKAGE = Path(__file__).parents[1] / "lstm_fused"


def _digest_of_package() -> str:
    sources = sorted(PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


# NOTE: torch keeps graphs on disk by the names of the ops that are in them. Those that another
# state of the package was traced to would be run, and judged, in place of its own.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    str(Path(tempfile.gettempdir()) / f"lstm_fused_inductor_{os.getuid()}_{_digest_of_package()}"),
)


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
