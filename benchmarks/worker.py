# SPDX-License-Identifier: BSD-3-Clause
"""The process that computes for one peer: `python -m benchmarks.worker PEER`.

It reads one JSON request a line from its standard input and answers each with one line. Between
requests it is blocked in that read, and stopped besides (`pool`), so that no thread pool of its
libraries spins while another peer is measured.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.case import Case, from_record
from benchmarks.check import save_arrays
from benchmarks.clock import WARM_UP_SECONDS, CpuClock, CudaClock
from benchmarks.data import make_data
from benchmarks.peers import PEERS
from benchmarks.peers.base import Call, Refusal, Setting

# NOTE: the peer that has this name is no peer: it gives the truth and the rates.
VERIFIER = "verifier"


class Worker:
    """What one process knows between requests; each method but `__init__` answers a request."""

    def __init__(self, peer: str, module: str = "") -> None:
        self.peer, self.call, self.kernels = peer, None, []
        module = module or f"benchmarks.peers.{PEERS[peer].module}" if peer != VERIFIER else ""
        self.module = import_module(module) if module else None

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Builds the case and writes its results to a file; nothing is timed."""
        case, setting = _read(request)
        self.call = self.clock = None
        gc.collect()
        data = make_data(case)
        self.call = self.module.prepare(case, data, setting)
        save_arrays(Path(request["results"]), self.call.results())
        return {"note": self.call.note}

    def warm_up(self, request: dict[str, Any]) -> dict[str, Any]:
        """Makes the clock and calls a few times; answers how long a call takes, roughly."""
        self.run, self.clock = self.call.run, CpuClock()
        if request["device"] != "cpu":
            import torch

            self.clock = CudaClock(torch, cold=request["cold"], graph=request["graph"])
            self.run = self.clock.captured(self.run)
        seconds = self.clock.warm_up(self.run, WARM_UP_SECONDS[request["device"].split(":")[0]])
        return {"seconds": seconds, "kernels": self.clock.kernels(self.run)}

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """One turn: a few calls unseen (others have used the caches), then the timed ones."""
        if request["unseen"]:
            self.clock.warm_up(self.run, request["unseen"])
        return {"samples": self.clock.time(self.run, request["seconds"])}

    def memory(self, request: dict[str, Any]) -> dict[str, Any]:
        """The peak of one call, in a process that has computed nothing but a call of few steps.

        That call loads the libraries' code and starts their threads.
        """
        from benchmarks.memory import peak_bytes

        case, setting = _read(request)
        short = replace(case, T=2)
        self.module.prepare(short, make_data(short), setting).run()
        data = make_data(case)
        call: Call = self.module.prepare(case, data, setting)
        del data
        gc.collect()
        return {"samples": [float(peak_bytes(call.run, setting.device))]}

    def truth(self, request: dict[str, Any]) -> dict[str, Any]:
        from benchmarks.verifier import write_truth

        case, setting = _read(request)
        write_truth(case, setting, Path(request["results"]))
        return {}

    def rates(self, request: dict[str, Any]) -> dict[str, Any]:
        from benchmarks.rates import measure

        return measure(request["device"], request["threads"], request["dtype"])

    def spin(self, request: dict[str, Any]) -> dict[str, Any]:
        """Keeps a core busy until it is killed: the other process of a busy machine."""
        while True:
            time.perf_counter()

    def facts(self, request: dict[str, Any]) -> dict[str, Any]:
        from benchmarks.machine import device_facts

        return device_facts(request["device"])


def _read(request: dict[str, Any]) -> tuple[Case, Setting]:
    setting = Setting(request["device"], request["threads"])
    return from_record(request["case"]), setting


def answer(worker: Worker, line: str) -> dict[str, Any]:
    """Answers one request; whatever goes wrong becomes an answer too."""
    try:
        request = json.loads(line)
        return {"status": "ok", **getattr(worker, request["do"])(request)}
    except Refusal as refusal:
        return {"status": "unsupported", "reason": str(refusal)}
    except Exception as error:  # A peer's failure is a row of the table, not the end of the run.
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        return {"status": "error", "reason": reason, "traceback": traceback.format_exc()}


def main() -> None:
    # Answers go to the real standard output; what libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # An import that fails is told by the first answer, in the words of the exception.
    worker: Worker | None = None
    failure: Exception | None = None
    try:
        worker = Worker(*sys.argv[1:])
    except Exception as error:
        failure = error
    for line in sys.stdin:
        if worker is None:
            reply = {"status": "error", "reason": f"{type(failure).__name__}: {failure}"}
        else:
            reply = answer(worker, line)
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
