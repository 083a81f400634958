# SPDX-License-Identifier: BSD-3-Clause
"""Write benchmarks/results/cuda_static.md: what is known of the CUDA kernels without a GPU.

Needs nvcc, nvdisasm (PyPI: nvidia-cuda-nvdisasm) and what the emulated device needs;
no GPU. The first run compiles every kernel for every target, which takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.cuda_report.cubins import ROOT, TARGETS, compile_all, kernel_sources
from tools.cuda_report.emulation import CASES, Counts, Emulation
from tools.cuda_report.facts import DEVICES
from tools.cuda_report.sass.decode import find_nvdisasm
from tools.cuda_report.table import compose
from tools.cuda_report.times import Time, cases, times_of
from tools.nvcc import find_nvcc

OUTPUT = ROOT / "benchmarks" / "results" / "cuda_static.md"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_report", description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS), help="with commas; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once (default 2)")
    parser.add_argument("--no-emulation", action="store_true", help="leave out what is counted")
    parser.add_argument("--no-times", action="store_true", help="leave out the times of steps")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        missing = "nvcc" if nvcc is None else "nvdisasm: run 'pip install nvidia-cuda-nvdisasm'"
        print(f"cuda-report needs {missing}", file=sys.stderr)
        return 1
    targets = options.targets.split(",")
    print(f"compiling for {', '.join(targets)} ...", flush=True)
    resources = compile_all(nvcc, kernel_sources(), targets, options.jobs)
    counts: list[Counts] = []
    if not options.no_emulation:
        print("building and running the emulated device ...", flush=True)
        emulation = Emulation()
        counts = [found for case in CASES for found in emulation.count(case)]
    times: list[Time] = []
    if not options.no_times:
        print("timing the machine code ...", flush=True)
        wanted = [case for case in cases() if DEVICES[case.device].target in targets]
        times = times_of(wanted, options.jobs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(compose(nvcc, nvdisasm, resources, counts, times))
    print(f"wrote {options.out}")
    spilled = [r for r in resources if r.stack or r.spill_stores or r.spill_loads]
    for r in spilled:
        print(f"spills: {r.name} on sm_{r.target}, {r.spill_stores} bytes stored", file=sys.stderr)
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
