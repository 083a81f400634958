# SPDX-License-Identifier: BSD-3-Clause
"""Where nvcc is."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path


def find_nvcc() -> str | None:
    """CUDA_HOME's, the path's, or that of requirements-nvcc.txt."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvidia = find_spec("nvidia")
    packages = nvidia.submodule_search_locations if nvidia is not None else None
    places = [
        *(Path(home, "bin") for home in homes),
        *map(Path, os.environ["PATH"].split(os.pathsep)),
        Path("/usr/local/cuda/bin"),
        *(Path(package, "cu13", "bin") for package in packages or ()),
    ]
    return shutil.which("nvcc", path=os.pathsep.join(map(str, places)))
