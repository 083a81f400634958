# SPDX-License-Identifier: BSD-3-Clause
"""Where nvcc is.

setup.py runs this file by its path, so it imports the standard library only.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path


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
