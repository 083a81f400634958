# SPDX-License-Identifier: BSD-3-Clause
"""Python programs in a process of their own, which may die."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lstm_fused

ROOT = Path(lstm_fused.__file__).resolve().parents[1]


def run_python(code: str, timeout: float = 180, **environment: str) -> str:
    """What a program prints, on both channels. Asserts that it ends with status 0.

    Args:
        code: the program; it finds the package under test.
        timeout: seconds that it may take.
        environment: variables that are set for it.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    status = done.returncode
    ended = signal.Signals(-status).name if status < 0 else f"status {status}"
    assert status == 0, f"{ended}:\n{done.stdout}"
    return done.stdout
