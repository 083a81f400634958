# SPDX-License-Identifier: BSD-3-Clause
"""Workers: started when first asked, stopped (SIGSTOP) whenever they are not answering."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# <sys/prctl.h>
_PR_SET_PDEATHSIG = 1

ROOT = Path(__file__).resolve().parents[1]


class WorkerProcess:
    """One peer's process. It runs only while `ask` waits for its answer."""

    def __init__(self, peer: str, threads: int, *, pinned: bool = False, module: str = "") -> None:
        self.peer = peer
        # The file of standard error lasts as long as the process, beyond this function.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "benchmarks.worker", peer, *filter(None, [module])]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            env=self._environment(threads),
            # One group, so that helpers that a peer starts (compilers) stop and end with it.
            start_new_session=True,
            preexec_fn=_before_start(threads if pinned else 0),
        )

    @staticmethod
    def _environment(threads: int) -> dict[str, str]:
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"), str(threads))
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
        return {**os.environ, **counts, **quiet}

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Args:
            seconds: after these the worker is killed, and the answer says so.
        """
        if self.process.poll() is not None:
            return {"status": "error", "reason": self._death()}
        self._signal(signal.SIGCONT)
        try:
            assert self.process.stdout is not None
            self.send(request)
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            if not ready:
                self.close()
                return {"status": "error", "reason": f"no answer after {seconds:.0f} s"}
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self.process.wait()
            return {"status": "error", "reason": self._death()}
        self._signal(signal.SIGSTOP)
        return json.loads(line)

    def send(self, request: dict[str, Any]) -> None:
        """Sends a request whose answer nobody waits for; the process goes on running."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        if self.alive:
            self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def _death(self) -> str:
        self.errors.seek(0)
        last = self.errors.read().strip().splitlines()[-1:]
        return " ".join([f"the process ended with status {self.process.returncode}", *last])


def _before_start(threads: int) -> Callable[[], None]:
    """What a worker does before it becomes Python: ends with its parent, and keeps to some CPUs.

    A parent that is killed cleans nothing up, and a stopped process would stay for ever.
    """
    allowed = sorted(os.sched_getaffinity(0))[:threads] if threads else None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It was killed before that took effect.
            os._exit(1)
        if allowed is not None:
            os.sched_setaffinity(0, allowed)

    return prepare


class Pool:
    """One worker for each peer and number of threads."""

    def __init__(self) -> None:
        self.workers: dict[tuple[str, int], WorkerProcess] = {}

    def get(self, peer: str, threads: int, *, pinned: bool = False, module: str = ""):
        key = (peer, threads)
        worker = self.workers.get(key)
        if worker is None or not worker.alive:
            worker = WorkerProcess(peer, threads, pinned=pinned, module=module)
            self.workers[key] = worker
        return worker

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
