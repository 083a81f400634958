# SPDX-License-Identifier: BSD-3-Clause
"""Where nvcc is, and whether it will do for a torch. Imports the standard library only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

Release = tuple[int, int]

OLDEST_NVCC: Release = (12, 4)


def find_nvcc(packages: bool = True) -> str | None:
    """The path of CUDA_HOME's nvcc, of PATH's, of /usr/local/cuda's, or of a PyPI package's.

    Args:
        packages: whether nvcc of PyPI's packages (requirements-nvcc.txt) will do. They hold what
            compiles kernels for the emulated device, and not all that a build of the product needs.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvidia = find_spec("nvidia") if packages else None
    installed = nvidia.submodule_search_locations if nvidia is not None else None
    places = [
        *(Path(home, "bin") for home in homes),
        *map(Path, os.environ["PATH"].split(os.pathsep)),
        Path("/usr/local/cuda/bin"),
        *(Path(package, "cu13", "bin") for package in installed or ()),
    ]
    return shutil.which("nvcc", path=os.pathsep.join(map(str, places)))


def nvcc_release(nvcc: str) -> Release | None:
    """The release that it says it is of, as (13, 0)."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    return (int(release[1]), int(release[2])) if release else None


def torch_mismatch(nvcc: str, release: Release, torch: str, torch_cuda: str | None) -> str:
    """What is wrong with this nvcc for this torch; empty if nothing is.

    The kernels carry the CUDA runtime of nvcc's toolkit, which refuses drivers that are older than
    its own major version: a torch of CUDA 12 runs on such a driver, and kernels of nvcc 13 beside
    it fail at their first call.

    Args:
        torch: its version, and torch_cuda, the CUDA that it was built for; None: a CPU build, which
            calls no kernels.
    """
    if torch_cuda is None or int(torch_cuda.split(".")[0]) == release[0]:
        return ""
    wanted = torch_cuda.split(".")[0]
    return (
        f"the CUDA kernels for torch {torch}, a build for CUDA {torch_cuda}, need nvcc {wanted}.x, "
        f"got nvcc {release[0]}.{release[1]} ({nvcc}): set CUDA_HOME to a toolkit of CUDA "
        f"{wanted}, or LSTM_FUSED_CUDA=0 to build without CUDA kernels"
    )
