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
CHECKED_TARGET = 80
SM_COUNT = 8
VARIANTS = ("stepwise", "auto")


class EmulatedOps:
    """torch.ops.lstm_fused_emulated_<target>.*, of the kernels of one PTX target."""

    def __init__(self, device: Device, library: Any, built: Library) -> None:
        self.device = device
        self.library = library
        self.target = built.arch
        self.ops = getattr(torch.ops, built.name)

    @contextmanager
    def use(self, variant: str) -> Iterator[Device]:
        """Have FusedLSTM run these ops in place of the CPU's; "auto" leaves the choice to plans."""
        with pytest.MonkeyPatch.context() as patch:
            self.library.lstm_emulated_allow_persistent(ctypes.c_bool(variant == "auto"))
            patch.setattr(_native, "lstm_forward_op", self.ops.lstm_forward.default)
            patch.setattr(_native, "lstm_inference_op", None)
            patch.setattr(_native, "lstm_backward_op", self.ops.lstm_backward.default)
            patch.setattr(_native, "lstm_gate_gradients_op", self.ops.lstm_gate_gradients.default)
            patch.setattr(_native, "takes_batch_sizes", lambda device: False)
            patch.setattr(_native, "has_sample_gradients", lambda device: False)
            self.device.clear_error()
            self.device.set(**FACTS[self.target])
            self.device.set(sm_count=SM_COUNT, stream_sm_count=0, strict_memory=1, seed=0)
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


def emulated_ops(target: int, checked: bool = False) -> EmulatedOps:
    """Those of a PTX target. Skips the test where the machine lacks what that takes.

    With `checked`, for CHECKED_TARGET alone, the kernels can be searched for races, and broken
    (tests/cuda_on_cpu/README.md).
    """
    if reason := missing():
        pytest.skip(reason)
    return _all_emulated_ops()[_name(target, checked)]


def _name(target: int, checked: bool) -> str:
    return f"lstm_fused_emulated_{target}" + ("_checked" if checked else "")


@cache
def _all_emulated_ops() -> dict[str, EmulatedOps]:
    """Build and load them: in one build, in which what nvcc makes is shared."""
    torch_dir = Path(torch.__file__).resolve().parent
    csrc = ROOT / "csrc"
    sources = [
        *sorted((csrc / "cuda").glob("*.cu")),
        *sorted((csrc / "cuda").glob("*.cpp")),
        *sorted((csrc / "common").glob("*.cpp")),
        *(csrc / "torch" / f"{name}.cpp" for name in ("call", "layer", "ops_cuda", "tensors")),
        ROOT / "tests" / "cuda_core" / "emulated_ops.cpp",
    ]
    kinds = [(target, False) for target in TARGETS] + [(CHECKED_TARGET, True)]
    libraries = [
        Library(
            _name(target, checked),
            sources,
            target,
            checked,
            include_directories=[csrc, torch_dir / "include"],
            host_definitions=[
                "TORCH_TARGET_VERSION=0x020b000000000000",
                f"LSTM_EMULATED_OPS={_name(target, checked)}",
            ],
        )
        for target, checked in kinds
    ]
    paths = build(libraries, ROOT / "build" / "cuda_on_cpu")
    # The libraries take torch's stable ABI from what the process has.
    ctypes.CDLL(str(torch_dir / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    device = Device(paths["cuda_on_cpu"])
    return {
        library.name: EmulatedOps(device, device.load(paths[library.name]), library)
        for library in libraries
    }
