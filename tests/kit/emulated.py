# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA ops on the emulated device, under the whole of the Python package."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_on_cpu.build import Library, build, missing
from cuda_on_cpu.device import FACTS_A100, FACTS_H100, Device

from lstm_fused import _native

ROOT = Path(__file__).resolve().parents[2]
# PTX targets, and the facts of a small device that runs them.
FACTS = {80: FACTS_A100, 90: FACTS_H100}
TARGETS = tuple(FACTS)
SM_COUNT = 8
VARIANTS = ("stepwise", "auto")


class EmulatedOps:
    """torch.ops.lstm_fused_emulated_<target>.*, of the kernels of one PTX target."""

    def __init__(self, device: Device, library: Any, target: int) -> None:
        self.device = device
        self.library = library
        self.target = target
        self.ops = getattr(torch.ops, f"lstm_fused_emulated_{target}")

    @contextmanager
    def use(self, variant: str) -> Iterator[Device]:
        """Have FusedLSTM run these ops in place of the CPU's; "auto" leaves the choice to plans."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LSTM_FUSED_CUDA_VARIANT", variant)
            patch.setattr(_native, "lstm_forward_op", self.ops.lstm_forward.default)
            patch.setattr(_native, "lstm_backward_op", self.ops.lstm_backward.default)
            patch.setattr(_native, "takes_batch_sizes", lambda device: False)
            self.device.clear_error()
            self.device.set(**{**FACTS[self.target], "sm_count": SM_COUNT, "strict_memory": 1})
            yield self.device

    @contextmanager
    def offset(self, elements: int) -> Iterator[None]:
        """Have tensors on the device begin so many elements behind a boundary."""
        self.library.lstm_emulated_set_offset(elements)
        try:
            yield
        finally:
            self.library.lstm_emulated_set_offset(0)

    @contextmanager
    def tf32(self) -> Iterator[None]:
        """Set the cuBLAS handle as torch does where its settings allow TF32."""
        self.library.lstm_emulated_blas_handle.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(self.library.lstm_emulated_blas_handle())
        self.library.cublasSetMathMode(handle, 3)
        try:
            yield
        finally:
            self.library.cublasSetMathMode(handle, 0)


@cache
def emulated_ops() -> dict[int, EmulatedOps]:
    """Build and load them, by target. Skips the test where the machine lacks what that takes."""
    if reason := missing():
        pytest.skip(reason)
    torch_dir = Path(torch.__file__).resolve().parent
    csrc = ROOT / "csrc"
    sources = [
        *sorted((csrc / "cuda").glob("*.cu")),
        *sorted((csrc / "cuda").glob("*.cpp")),
        *sorted((csrc / "common").glob("*.cpp")),
        *(csrc / "torch" / f"{name}.cpp" for name in ("call", "layer", "ops_cuda", "tensors")),
        ROOT / "tests" / "cuda_core" / "emulated_ops.cpp",
    ]
    libraries = [
        Library(
            f"lstm_fused_emulated_{target}",
            sources,
            target,
            include_directories=[csrc, torch_dir / "include"],
            definitions=[
                "TORCH_TARGET_VERSION=0x020b000000000000",
                f"LSTM_EMULATED_OPS=lstm_fused_emulated_{target}",
            ],
        )
        for target in TARGETS
    ]
    paths = build(libraries, ROOT / "build" / "cuda_on_cpu")
    # The libraries take torch's stable ABI from what the process has.
    ctypes.CDLL(str(torch_dir / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    device = Device(paths["cuda_on_cpu"])
    return {
        target: EmulatedOps(device, device.load(paths[library.name]), target)
        for target, library in zip(TARGETS, libraries, strict=True)
    }
