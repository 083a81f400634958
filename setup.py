# SPDX-License-Identifier: BSD-3-Clause
"""Builds the extension modules of lstm_fused with CMake and ninja. Metadata is in pyproject.toml.

Environment:
  MAX_JOBS          how many compilers run at once (ninja's own choice if unset)
  LSTM_FUSED_DEBUG  1: a debug build, in a build directory of its own
  LSTM_FUSED_CUDA   auto (unset): build the CUDA kernels where nvcc >= 12.4 is found and torch is a
                    CUDA build; 1: build them or fail; 0: do not
  LSTM_FUSED_CUDA_ARCHS  their architectures, as CMake writes them: "80-real;90a-real;90-virtual"
  CUDA_HOME         where nvcc is looked for first
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 11)
OLDEST_NVCC = (12, 4)


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


def find_torch() -> Path:
    """The directory of the installed torch, found without importing it."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit(
            "lstm_fused: building needs torch >= 2.11, found none: install it first, then "
            "run 'pip install --no-build-isolation .'"
        )
    version = metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        sys.exit(f"lstm_fused: building needs torch >= 2.11, found {version}")
    return Path(spec.submodule_search_locations[0])


def find_usable_nvcc() -> str | None:
    """The path of an nvcc that is new enough."""
    # NOTE: run by its path, since an isolated build cannot import from the source tree.
    nvcc = run_path(str(ROOT / "tools" / "nvcc.py"))["find_nvcc"](packages=False)
    if nvcc is None:
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    known = release is not None and (int(release[1]), int(release[2])) >= OLDEST_NVCC
    return nvcc if known else None


def cuda_definitions(torch: Path) -> dict[str, str]:
    """CMake's definitions for the CUDA kernels; none where they are not to be built."""
    wanted = os.environ.get("LSTM_FUSED_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"lstm_fused: LSTM_FUSED_CUDA must be auto, 1 or 0, got {wanted!r}")
    nvcc = None if wanted == "0" else find_usable_nvcc()
    if nvcc is None and wanted == "1":
        sys.exit("lstm_fused: LSTM_FUSED_CUDA=1 needs nvcc >= 12.4, found none (see CUDA_HOME)")
    torch_has_cuda = (torch / "lib" / "libtorch_cuda.so").exists()
    if nvcc is None or (wanted == "auto" and not torch_has_cuda):
        return {"LSTM_BUILD_CUDA": "OFF"}
    return {
        "LSTM_BUILD_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": nvcc,
        "LSTM_CUDA_ARCHS": os.environ.get("LSTM_FUSED_CUDA_ARCHS", ""),
    }


def check_python_headers() -> None:
    """Stops early, with a remedy, where CMake would only say that Development.Module is missing."""
    include = Path(sysconfig.get_config_var("INCLUDEPY"))
    if not (include / "Python.h").exists():
        sys.exit(
            f"lstm_fused: building needs Python.h, found none in {include}: "
            "install Python's development files (on Debian: apt-get install python3-dev)"
        )


# The ops for programs without Python, which CMake installs beside the extension modules.
OPS_LIBRARY = "liblstm_fused_ops.so"


class CMakeBuild(build_ext):
    """Builds every extension in one CMake project, in a directory that later builds reuse."""

    def copy_extensions_to_source(self) -> None:  # of an editable install
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "lstm_fused", OPS_LIBRARY)
        self.copy_file(str(built), str(ROOT / "lstm_fused" / OPS_LIBRARY))

    def build_extensions(self) -> None:
        check_python_headers()
        torch = find_torch()
        build_type = "Debug" if os.environ.get("LSTM_FUSED_DEBUG", "0") == "1" else "Release"
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}-{build_type.lower()}"
        build_dir = ROOT / "build" / f"cmake-{tag}"
        cmake = find_tool("cmake", "CMAKE_BIN_DIR")

        definitions = {
            "CMAKE_BUILD_TYPE": build_type,
            "CMAKE_MAKE_PROGRAM": find_tool("ninja", "BIN_DIR"),
            "LSTM_BUILD_PYTHON": "ON",
            "LSTM_TORCH_INCLUDE_DIR": torch / "include",
            "LSTM_TORCH_LIB_DIR": torch / "lib",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": import_module("pybind11").get_cmake_dir(),
            **cuda_definitions(torch),
        }
        subprocess.run(
            [cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"]
            + [f"-D{name}={value}" for name, value in definitions.items()],
            check=True,
        )
        jobs = ["--parallel", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.run([cmake, "--build", str(build_dir), *jobs], check=True)
        # CMake installs into <prefix>/lstm_fused, where setuptools expects the modules.
        prefix = Path(self.get_ext_fullpath("lstm_fused._C")).resolve().parent.parent
        to = ["--prefix", str(prefix), "--component", "python"]
        subprocess.run([cmake, "--install", str(build_dir), *to], check=True)


def extension_names() -> list[str]:
    """What is to be built; without torch nothing is, but a source distribution can be made."""
    with_cuda = find_spec("torch") and cuda_definitions(find_torch())["LSTM_BUILD_CUDA"] == "ON"
    return ["lstm_fused._C", *(["lstm_fused._C_cuda"] if with_cuda else [])]


setup(
    ext_modules=[Extension(name, sources=[]) for name in extension_names()],
    cmdclass={"build_ext": CMakeBuild},
)
