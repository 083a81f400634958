# SPDX-License-Identifier: BSD-3-Clause
"""Builds the extension modules with CMake and ninja: for setup.py, whose first lines name the
environment variables, or into the source tree without setuptools::

    python -m tools.extensions

Imports the standard library only, and torch not at all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

from tools.nvcc import OLDEST_NVCC, find_nvcc, nvcc_release, torch_mismatch

ROOT = Path(__file__).resolve().parents[1]
OLDEST_TORCH = (2, 11)


@dataclass(frozen=True)
class Torch:
    """The installed torch."""

    directory: Path
    version: str
    cuda: str | None  # the CUDA that it was built for, as "13.0"
    has_cuda: bool  # whether torch's CUDA library is there


def find_tool(name: str, bin_dir_attribute: str) -> str:
    """The path of cmake or ninja: from its PyPI package if that is installed, else from PATH."""
    if find_spec(name) is not None:
        path = Path(getattr(import_module(name), bin_dir_attribute)) / name
        if path.exists():
            return str(path)
    found = shutil.which(name)
    if found is None:
        sys.exit(f"lstm_fused: building needs {name}, found none: run 'pip install {name}'")
    return found


def torch_in(directory: Path) -> Torch:
    """The torch of such a package directory, without importing it."""
    names = run_path(str(directory / "version.py"))
    has_cuda = (directory / "lib" / "libtorch_cuda.so").exists()
    return Torch(directory, names["__version__"], names["cuda"], has_cuda)


def find_torch() -> Torch:
    """The installed torch."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(
            "lstm_fused: building needs torch >= 2.11, found none: install it first, then "
            "run 'pip install --no-build-isolation .'"
        )
    version = metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        sys.exit(f"lstm_fused: building needs torch >= 2.11, found {version}")
    return torch_in(Path(spec.submodule_search_locations[0]))


def cuda_definitions(torch: Torch) -> dict[str, str]:
    """CMake's definitions for the CUDA kernels; LSTM_BUILD_CUDA is OFF where they are not to be
    built."""
    off = {"LSTM_BUILD_CUDA": "OFF"}
    wanted = os.environ.get("LSTM_FUSED_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"lstm_fused: LSTM_FUSED_CUDA must be auto, 1 or 0, got {wanted!r}")
    if wanted == "0" or (wanted == "auto" and not torch.has_cuda):
        return off
    nvcc = find_nvcc(packages=False)
    release = nvcc_release(nvcc) if nvcc else None
    if nvcc is None or release is None or release < OLDEST_NVCC:
        if wanted == "auto":
            return off
        sys.exit("lstm_fused: LSTM_FUSED_CUDA=1 needs nvcc >= 12.4, found none (see CUDA_HOME)")
    if fault := torch_mismatch(nvcc, release, torch.version, torch.cuda):
        sys.exit(f"lstm_fused: {fault}")
    return {
        "LSTM_BUILD_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": nvcc,
        "LSTM_CUDA_ARCHS": os.environ.get("LSTM_FUSED_CUDA_ARCHS", ""),
    }


def with_cuda(torch: Torch) -> bool:
    """Whether the CUDA kernels are to be built."""
    return cuda_definitions(torch)["LSTM_BUILD_CUDA"] == "ON"


def check_python_headers() -> None:
    """Stops early, with a remedy, where CMake would only say that Development.Module is missing."""
    include = Path(sysconfig.get_config_var("INCLUDEPY"))
    if not (include / "Python.h").exists():
        sys.exit(
            f"lstm_fused: building needs Python.h, found none in {include}: "
            "install Python's development files (on Debian: apt-get install python3-dev)"
        )


def run_cmake(
    build_dir: Path, torch: Torch, definitions: Mapping[str, object], targets: Sequence[str] = ()
) -> None:
    """Configures and builds, in a directory that later builds reuse.

    Args:
        definitions: of CMake's variables, beside those that every build has.
        targets: what to build; empty: everything.
    """
    check_python_headers()
    cmake = find_tool("cmake", "CMAKE_BIN_DIR")
    all_definitions = {
        "CMAKE_MAKE_PROGRAM": find_tool("ninja", "BIN_DIR"),
        "LSTM_BUILD_PYTHON": "ON",
        "LSTM_TORCH_INCLUDE_DIR": torch.directory / "include",
        "LSTM_TORCH_LIB_DIR": torch.directory / "lib",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": import_module("pybind11").get_cmake_dir(),
        **definitions,
    }
    subprocess.run(
        [cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"]
        + [f"-D{name}={value}" for name, value in all_definitions.items()],
        check=True,
    )
    command = [cmake, "--build", str(build_dir)]
    command += ["--parallel", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    command += ["--target", *targets] if targets else []
    subprocess.run(command, check=True)


def build_type() -> str:
    return "Debug" if os.environ.get("LSTM_FUSED_DEBUG", "0") == "1" else "Release"


def build_directory() -> Path:
    """Where this Python's modules are built, in this type."""
    tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}-{build_type().lower()}"
    return ROOT / "build" / f"cmake-{tag}"


def install(prefix: Path) -> None:
    """Installs what has been built into <prefix>/lstm_fused."""
    to = ["--prefix", str(prefix), "--component", "python"]
    subprocess.run(
        [find_tool("cmake", "CMAKE_BIN_DIR"), "--install", str(build_directory()), *to], check=True
    )


def build(prefix: Path) -> None:
    """Builds for the installed torch, and installs into <prefix>/lstm_fused."""
    torch = find_torch()
    definitions = {"CMAKE_BUILD_TYPE": build_type(), **cuda_definitions(torch)}
    run_cmake(build_directory(), torch, definitions)
    install(prefix)


def main() -> None:
    """Builds into the source tree."""
    try:
        build(ROOT)
    except subprocess.CalledProcessError as error:  # it has said why
        sys.exit(f"lstm_fused: the build failed: {error.cmd[0]} ended with {error.returncode}")


if __name__ == "__main__":
    main()
