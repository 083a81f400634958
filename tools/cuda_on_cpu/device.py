# SPDX-License-Identifier: BSD-3-Clause
"""The emulated device as tests see it: facts, memory, errors, races, statistics."""

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

FACTS_A100 = {
    **{"compute_capability": 80, "sm_count": 108, "shared_per_sm": 167936},
    **{"shared_per_block_optin": 166912, "l2_bytes": 40 << 20, "max_threads_per_sm": 2048},
}
FACTS_H100 = {
    **{"compute_capability": 90, "sm_count": 132, "shared_per_sm": 233472},
    **{"shared_per_block_optin": 232448, "l2_bytes": 50 << 20, "max_threads_per_sm": 2048},
}


class LoadedMutation(NamedTuple):
    """A synchronising instruction of a loaded library, and how it can be broken."""

    number: int  # for set(mutation=...)
    module: str
    target: int
    line: int
    function: str
    kind: str
    text: str


class Device:
    """The one device of a process; `runtime` is the path of libcuda_on_cpu.so."""

    _runtime: ClassVar[ctypes.CDLL | None] = None

    def __init__(self, runtime: Path) -> None:
        # Global, so that what looks for CUDA or cuBLAS by symbol finds it here. And one for all
        # libraries: kernels would not see the settings of a second, as the first's symbols hide it.
        if Device._runtime is None:
            Device._runtime = ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
        self._lib = Device._runtime
        texts = ("last_error", "races", "statistics", "mutations", "gemm_math_modes")
        for name in (f"emu_{text}" for text in texts):
            getattr(self._lib, name).restype = ctypes.c_char_p
        self._lib.cudaGetErrorName.restype = ctypes.c_char_p
        for name in ("emu_get", "emu_race_count", "emu_switches", "emu_mutation_hits"):
            getattr(self._lib, name).restype = ctypes.c_int64

    def load(self, library: Path) -> ctypes.CDLL:
        """Load a library of kernels; libraries of the same kernels do not mix."""
        return ctypes.CDLL(str(library), mode=ctypes.RTLD_LOCAL)

    def set(self, **settings: int) -> None:
        """Set facts and settings, by their names in runtime/device.h."""
        for name, value in settings.items():
            if self._lib.emu_set(name.encode(), ctypes.c_int64(value)) != 0:
                raise KeyError(f"the emulated device has no setting {name!r}")

    def get(self, name: str) -> int:
        return int(self._lib.emu_get(name.encode()))

    def register(self, pointer: int, size: int, name: str) -> None:
        self._lib.emu_register(ctypes.c_void_p(pointer), ctypes.c_uint64(size), name.encode())

    def unregister(self, pointer: int) -> None:
        self._lib.emu_unregister(ctypes.c_void_p(pointer))

    @contextmanager
    def memory(self, **arrays: Any) -> Iterator[None]:
        """Let kernels touch these arrays or tensors, by their names, within the block."""
        spans = [(*_span(array), name) for name, array in arrays.items()]
        for pointer, size, name in spans:
            self.register(pointer, size, name)
        try:
            yield
        finally:
            for pointer, _, _ in spans:
                self.unregister(pointer)

    @property
    def last_error(self) -> str:
        """What the last error was about: the kernel, the thread, the address."""
        return str(self._lib.emu_last_error().decode())

    def error_name(self, status: int) -> str:
        return str(self._lib.cudaGetErrorName(status).decode())

    def clear_error(self) -> None:
        self._lib.emu_clear_error()

    @property
    def races(self) -> list[str]:
        """The races found, each pair of instructions once."""
        return str(self._lib.emu_races().decode()).splitlines()

    def clear_races(self) -> None:
        self._lib.emu_clear_races()

    @property
    def mutations(self) -> list[LoadedMutation]:
        """What `set(mutation=number)` can break, in the checked libraries that are loaded."""
        rows = [row.split("\t") for row in self._lib.emu_mutations().decode().splitlines()]
        return [LoadedMutation(int(r[0]), r[1], int(r[2]), int(r[3]), *r[4:]) for r in rows]

    @property
    def mutation_hits(self) -> int:
        """How often the mutation took effect since `set` was last called; 0: it never ran."""
        return int(self._lib.emu_mutation_hits())

    @property
    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._lib.emu_statistics())
        return found

    def clear_statistics(self) -> None:
        self._lib.emu_clear_statistics()

    @property
    def gemm_math_modes(self) -> list[int]:
        """The math modes that cuBLAS's GEMMs ran with, in their order."""
        return [int(mode) for mode in self._lib.emu_gemm_math_modes().decode().split()]

    def clear_gemm_math_modes(self) -> None:
        self._lib.emu_clear_gemm_math_modes()

    @property
    def switches(self) -> int:
        """Fiber switches since the process began."""
        return int(self._lib.emu_switches())


def _span(array: Any) -> tuple[int, int]:
    if hasattr(array, "__array_interface__"):
        return int(array.ctypes.data), int(array.nbytes)
    storage = array.untyped_storage()
    return int(storage.data_ptr()), int(storage.nbytes())
