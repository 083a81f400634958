# SPDX-License-Identifier: BSD-3-Clause
"""Compile the binding against another torch than the one of this environment::

    python -m tools.other_torch ENVIRONMENT OUT

for `make test-versions`. Compiles csrc/torch against the headers of the torch in ENVIRONMENT, a
virtual environment; and where that is a CUDA build and nvcc is there, the CUDA module, whose
package it puts into OUT: lstm_fused as it stands in this tree, its module of the CPU included, and
the CUDA module.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.extensions import ROOT, Torch, run_cmake, torch_in
from tools.nvcc import OLDEST_NVCC, find_nvcc, nvcc_release, torch_mismatch

# One directory for all versions, which take turns: the kernels do not depend on torch, and are
# compiled once.
BUILD = ROOT / "build" / "other_torch"
# One architecture will do: what is tested is that the module loads, and its shapes.
ARCHITECTURE = "90-real"
# CMake's targets of the binding; it is compiled and not linked, which `make setup` does against
# its own torch.
CPU_TARGETS = ("lstm_fused_torch", "CMakeFiles/_C.dir/csrc/torch/module.cpp.o")


def why_no_cuda(torch: Torch, nvcc: str | None) -> str:
    """Why the CUDA module cannot be built for this torch by this nvcc; empty if it can."""
    if not torch.has_cuda:
        return f"torch {torch.version} is no CUDA build"
    release = nvcc_release(nvcc) if nvcc else None
    if nvcc is None or release is None or release < OLDEST_NVCC:
        return "it needs nvcc >= 12.4, found none (see CUDA_HOME)"
    return torch_mismatch(nvcc, release, torch.version, torch.cuda)


def find_torch_of(environment: Path) -> Torch:
    """The torch that is installed in a virtual environment."""
    found = sorted(environment.glob("lib/python3*/site-packages/torch/version.py"))
    if len(found) != 1:
        sys.exit(f"{environment} must hold one torch, found {len(found)}")
    return torch_in(found[0].parent)


def assemble(out: Path, modules: Sequence[Path]) -> None:
    """Write the package lstm_fused of this tree, with these modules beside its own."""
    package = out / "lstm_fused"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "lstm_fused", package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in modules:
        shutil.copy2(module, package)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.other_torch", description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    torch = find_torch_of(options.environment)
    nvcc = find_nvcc(packages=False)
    reason = why_no_cuda(torch, nvcc)
    definitions: dict[str, object] = {"LSTM_BUILD_CUDA": "OFF"}
    if not reason:
        definitions = {
            "LSTM_BUILD_CUDA": "ON",
            "CMAKE_CUDA_COMPILER": nvcc,
            "LSTM_CUDA_ARCHS": ARCHITECTURE,
        }
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # versions may be asked for at once
        run_cmake(BUILD, torch, definitions, [*CPU_TARGETS, *([] if reason else ["_C_cuda"])])
        if not reason:
            assemble(options.out, sorted(BUILD.glob("_C_cuda.*.so")))
    if reason:
        shutil.rmtree(options.out / "lstm_fused", ignore_errors=True)
        print(f"The CUDA module is not tested under torch {torch.version}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
