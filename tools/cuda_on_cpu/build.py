# SPDX-License-Identifier: BSD-3-Clause
"""Builds libraries of CUDA sources for the emulated device."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.nvcc import find_nvcc

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Library:
    """A shared library: CUDA and C++ sources, one PTX target, with or without checks."""

    name: str
    sources: Sequence[Path]
    arch: int  # 80 for compute_80
    checked: bool = False
    include_directories: Sequence[Path] = ()
    definitions: Sequence[str] = ()
    host_definitions: Sequence[str] = ()  # not of .cu files, so that libraries can share those


@cache
def missing() -> str | None:
    """Say what the emulation lacks on this machine, or None."""
    if find_nvcc() is None:
        return "the emulated CUDA device needs nvcc"
    probe = "#include <boost/context/detail/fcontext.hpp>\nint main() {}\n"
    command = ["c++", "-x", "c++", "-", "-lboost_context", "-o", "/dev/null"]
    try:
        subprocess.run(command, input=probe, text=True, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "the emulated CUDA device needs Boost.Context (Debian: libboost-context-dev)"
    return None


def _tool(name: str) -> str:
    """Find a program of this Python's environment, or else on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name) or name


def _describe(library: Library) -> str:
    def quoted(values: Sequence[object]) -> str:
        return " ".join(f'"{value}"' for value in values)

    return (
        f"add_cuda_on_cpu_library({library.name} PTX_ARCH {library.arch}"
        f"{' CHECKED' if library.checked else ''}\n  SOURCES {quoted(library.sources)}\n"
        f"  INCLUDE_DIRECTORIES {quoted(library.include_directories)}\n"
        f"  DEFINITIONS {quoted(library.definitions)}\n"
        f"  HOST_DEFINITIONS {quoted(library.host_definitions)})\n"
    )


def build(libraries: Sequence[Library], directory: Path, jobs: int = 2) -> dict[str, Path]:
    """Build the libraries, where anything changed; return name -> path, the runtime's too.

    The runtime is "cuda_on_cpu". A directory belongs to one list of libraries.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may want the same libraries
        return _build(libraries, directory, jobs)


def _build(libraries: Sequence[Library], directory: Path, jobs: int) -> dict[str, Path]:
    text = (
        "cmake_minimum_required(VERSION 3.22...4.0)\n"
        "project(cuda_on_cpu_libraries LANGUAGES CXX)\n"
        "set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})\n"
        f'include("{HERE}/CudaOnCpu.cmake")\n' + "".join(map(_describe, libraries))
    )
    lists = directory / "CMakeLists.txt"
    output = directory / "build"
    if not lists.exists() or lists.read_text() != text or not (output / "build.ninja").exists():
        lists.write_text(text)
        _run(
            *(_tool("cmake"), "-S", directory, "-B", output, "-G", "Ninja"),
            *(f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"),
            f"-DCUDA_ON_CPU_NVCC={find_nvcc()}",
        )
    _run(_tool("cmake"), "--build", output, "--parallel", jobs)
    names = ["cuda_on_cpu", *(library.name for library in libraries)]
    return {name: output / f"lib{name}.so" for name in names}


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
