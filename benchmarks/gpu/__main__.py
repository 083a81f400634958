# SPDX-License-Identifier: BSD-3-Clause
"""Build for the GPU of this machine, test, sanitize and measure; needs torch for CUDA and nvcc.

Exits with 1 where a step failed or was not run, since its tools are not installed; with 2 where
there is no GPU. --only leaves steps out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import RESULTS, ROOT, Step, architectures, make_steps

NO_GPU = 2


def find_devices() -> tuple[list[dict[str, Any]], str]:
    """The GPUs that torch sees; and why there is none."""
    try:
        import torch
    except ImportError as error:
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
            }
        )
    return found, ""


def run_step(step: Step, root: Path = ROOT) -> dict[str, Any]:
    """Run it; what it prints is shown as it comes."""
    record: dict[str, Any] = {"name": step.name, "command": list(step.command)}
    if step.missing:
        print(f"== {step.name}: not run, it needs {step.missing}", flush=True)
        return {**record, "status": "not run", "reason": step.missing}
    print(f"== {step.name}: {' '.join(step.command)}", flush=True)
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **step.environment}
    start = time.monotonic()
    code = subprocess.run(step.command, cwd=root, env=environment).returncode
    seconds = round(time.monotonic() - start, 1)
    status = "ok" if code == 0 else "failed"
    print(f"== {step.name}: {status} in {seconds} s", flush=True)
    return {**record, "status": status, "exit": code, "seconds": seconds}


def run_steps(steps: Sequence[Step], root: Path = ROOT) -> list[dict[str, Any]]:
    """All of them, unless a vital one is not ok."""
    records = []
    for step in steps:
        records.append(run_step(step, root))
        if step.is_vital and records[-1]["status"] != "ok":
            break
    return records


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a short benchmark: does it work?")
    add("--minutes", type=float, default=60, help="for each of two benchmark runs (default 60)")
    add(
        "--only", default="", help="with commas: build, parity, memcheck, racecheck, gpu, gpu-graph"
    )
    add("--list", action="store_true", help="print the commands and end; needs no GPU")
    options = parser.parse_args(arguments)
    devices, why_none = find_devices()
    capabilities = [(d["capability"][0], d["capability"][1]) for d in devices]
    steps = make_steps(architectures(capabilities), options.minutes, options.quick)
    names = [name.strip() for name in options.only.split(",") if name.strip()]
    if unknown := set(names) - {step.name for step in steps}:
        parser.error(f"--only: no step is called {', '.join(sorted(unknown))}")
    steps = [step for step in steps if not names or step.name in names]
    if options.list:
        for step in steps:
            settings = "".join(f"{key}='{value}' " for key, value in step.environment.items())
            print(f"{step.name}: {settings}{' '.join(step.command)}")
        return 0
    if not devices:
        print(f"make gpu needs an NVIDIA GPU: {why_none}", file=sys.stderr)
        return NO_GPU
    print("\n".join(f"GPU {i}: {device['name']}" for i, device in enumerate(devices)), flush=True)
    records = run_steps(steps)
    RESULTS.mkdir(parents=True, exist_ok=True)
    summary = {"devices": devices, "steps": records}
    (RESULTS / "gpu_steps.json").write_text(json.dumps(summary, indent=2) + "\n")
    for record in records:
        print(f"{record['name']:10} {record['status']} {record.get('reason', '')}".rstrip())
    return int(any(record["status"] != "ok" for record in records) or len(records) < len(steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
