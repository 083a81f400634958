# SPDX-License-Identifier: BSD-3-Clause
"""Build for the GPU of this machine, test, sanitize and measure; needs torch for CUDA and nvcc.

--only takes a part of it, for a machine that is lent for a while. All that a run writes, the steps'
output included, lies in one folder (--out), and packed in results.tgz there (--archive), which is
up to date after each step. Outside git, LSTM_FUSED_COMMIT names the commit.

Exits with 1 where a step failed or was not run, since its tools are not installed; with 2 where
there is no GPU. A tool's limit (a sanitizer that cannot launch a kernel) is told, and no failure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import (
    DEFAULT_MINUTES,
    QUICK_MINUTES,
    ROOT,
    Step,
    architectures,
    count_workers,
    make_steps,
    select,
)
from benchmarks.machine import commit

NO_GPU = 2
OUT = ROOT / "benchmarks" / "results" / "gpu"
ARCHIVE, SUMMARY = "results.tgz", "gpu_steps.json"


def find_devices() -> tuple[list[dict[str, Any]], str]:
    """The GPUs that torch sees; and why there is none."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of its own is missing
        return [], f"torch does not load: {error}"
    if torch.version.cuda is None:
        return [], f"torch {torch.__version__} is no CUDA build"
    if not torch.cuda.is_available():
        return [], f"torch {torch.__version__} finds no CUDA device"
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": [properties.major, properties.minor],
                "sm_count": properties.multi_processor_count,
                "memory": properties.total_memory,
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
            }
        )
    return found, ""


class Run:
    """One run: its steps, what came of them, and what was written.

    Args:
        out: the folder for all of it.
        archive: the file that holds all of it, packed.
        facts: what the summary says beside the steps.
    """

    def __init__(self, out: Path, archive: Path, facts: dict[str, Any], root: Path = ROOT) -> None:
        self.out, self.archive, self.facts, self.root = out, archive, facts, root
        self.records: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)
        archive.parent.mkdir(parents=True, exist_ok=True)
        self.before = self._files()

    def run(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """All steps, but for those that need one that did not succeed."""
        for step in steps:
            status = {record["name"]: record["status"] for record in self.records}
            lost = [name for name in step.needs if status.get(name, "ok") != "ok"]
            reason = f"the step {lost[0]}, which did not succeed" if lost else step.missing
            self.records.append(self._run_step(step, reason))
            self._save()
        return self.records

    def _run_step(self, step: Step, missing: str) -> dict[str, Any]:
        """Run it; what it prints is shown as it comes, and kept in a file."""
        record: dict[str, Any] = {"name": step.name, "command": list(step.command)}
        if missing:
            print(f"== {step.name}: not run, it needs {missing}", flush=True)
            return {**record, "status": "not run", "reason": missing}
        print(f"== {step.name}: {' '.join(step.command)}", flush=True)
        path = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        start = time.monotonic()
        with (
            (self.out / f"{step.name}.log").open("wb") as log,
            subprocess.Popen(
                step.command,
                cwd=self.root,
                env={**environment, **step.environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                sys.stdout.write(line.decode(errors="replace"))
                sys.stdout.flush()
                log.write(line)
        seconds = round(time.monotonic() - start, 1)
        code = process.returncode
        status = "ok" if code == 0 else "tool's limit" if code == step.limit else "failed"
        print(f"== {step.name}: {status} in {seconds} s", flush=True)
        return {**record, "status": status, "exit": code, "seconds": seconds}

    def _files(self) -> dict[Path, int]:
        """Every file of the folder, but for the archive, with the time of its last change."""
        paths = [path for path in self.out.rglob("*") if path.is_file() and path != self.archive]
        return {path: path.stat().st_mtime_ns for path in sorted(paths)}

    def _save(self) -> None:
        """Write the summary, and pack what this run has written so far: a run may be cut short."""
        summary = {**self.facts, "steps": self.records}
        (self.out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
        with tarfile.open(self.archive, "w:gz") as archive:
            for path, changed in self._files().items():
                if self.before.get(path) != changed:
                    archive.add(path, path.relative_to(self.out).as_posix())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a short benchmark: does it work?")
    add(
        "--minutes",
        type=float,
        help=f"for all of the benchmark (default {DEFAULT_MINUTES:g}, quick {QUICK_MINUTES:g})",
    )
    add(
        "--only",
        default="",
        help="with commas: build, parity, memcheck, racecheck, initcheck, synccheck, micro, bench "
        "(or bench-graph, bench-eager, bench-packed, bench-large, bench-options, bench-variants)",
    )
    add("--out", type=Path, default=OUT, metavar="DIR", help="(default benchmarks/results/gpu)")
    add("--archive", type=Path, metavar="FILE", help=f"(default {ARCHIVE} in that folder)")
    add("--list", action="store_true", help="print the commands and end; needs no GPU")
    return parser


def main(arguments: Sequence[str]) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    devices, why_none = find_devices()
    capabilities = [(d["capability"][0], d["capability"][1]) for d in devices]
    minutes = options.minutes or (QUICK_MINUTES if options.quick else DEFAULT_MINUTES)
    steps = make_steps(
        architectures(capabilities),
        options.out.resolve(),
        minutes,
        options.quick,
        count_workers([device["memory"] for device in devices]),
    )
    names = [name.strip() for name in options.only.split(",") if name.strip()]
    steps, unknown = select(steps, names)
    if unknown:
        parser.error(f"--only: no step is called {', '.join(unknown)}")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        parser.error(f"--minutes must be positive, got {options.minutes:g}")
    if options.list:
        for step in steps:
            settings = "".join(f"{key}='{value}' " for key, value in step.environment.items())
            print(f"{step.name}: {settings}{' '.join(step.command)}")
        return 0
    if not devices:
        print(f"make gpu needs an NVIDIA GPU: {why_none}", file=sys.stderr)
        return NO_GPU
    print("\n".join(f"GPU {i}: {device['name']}" for i, device in enumerate(devices)), flush=True)
    out = options.out.resolve()
    archive = (options.archive or out / ARCHIVE).resolve()
    try:
        run = Run(out, archive, {"commit": commit(), "devices": devices})
    except OSError as error:
        parser.error(f"--out and --archive must be places to write to: {error}")
    records = run.run(steps)
    for record in records:
        print(f"{record['name']:14} {record['status']} {record.get('reason', '')}".rstrip())
    print(f"Written: {archive}")
    return int(any(record["status"] in ("failed", "not run") for record in records))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
