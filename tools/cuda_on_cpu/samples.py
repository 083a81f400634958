# SPDX-License-Identifier: BSD-3-Clause
"""The sample kernels, built for both PTX targets, and how tests call them."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .build import HERE, Library, build
from .device import Device

ARCHS = (80, 90)
_BUILD = HERE.parents[1] / "build" / "cuda_on_cpu" / "samples"
_FAST = ("arithmetic", "machine", "matrices", "memory", "polling", "weak_memory", "graphs")
_CHECKED = ("races", "machine", "polling", "weak_memory")


@cache
def built() -> dict[str, Path]:
    libraries = []
    for arch in ARCHS:
        sources = [HERE / "kernels" / f"{name}.cu" for name in _FAST]
        libraries.append(Library(f"samples_{arch}", sources, arch))
        sources = [HERE / "kernels" / f"{name}.cu" for name in _CHECKED]
        libraries.append(Library(f"checked_{arch}", sources, arch, checked=True))
    return build(libraries, _BUILD)


@cache
def the_device() -> Device:
    return Device(built()["cuda_on_cpu"])


@cache
def library(name: str, arch: int) -> "Samples":
    return Samples(the_device(), name, arch)


def ptx_of(stem: str, arch: int) -> str:
    (path,) = (_BUILD / "build" / f"sm_{arch}").glob(f"{stem}-*.ptx")
    return path.read_text()


class Samples:
    """One library of sample kernels. Arrays are device memory for the time of a call."""

    def __init__(self, device: Device, name: str, arch: int) -> None:
        self.device = device
        self.arch = arch
        self._lib = device.load(built()[f"{name}_{arch}"])

    def status(self, function: str, *arguments: Any) -> int:
        """Call a function of the library; return the CUDA status."""
        arrays = {
            f"argument{i}": argument
            for i, argument in enumerate(arguments)
            if isinstance(argument, np.ndarray)
        }
        passed = [
            ctypes.c_void_p(argument.ctypes.data) if isinstance(argument, np.ndarray) else argument
            for argument in arguments
        ]
        with self.device.memory(**arrays):
            return int(getattr(self._lib, function)(*passed))

    def run(self, function: str, *arguments: Any) -> None:
        status = self.status(function, *arguments)
        assert status == 0, f"{self.device.error_name(status)}: {self.device.last_error}"
