# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA ops on the emulated device, under the whole of the Python package."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from lstm_fused._ops import native
from tools.cuda_on_cpu.build import Library, missing
from tools.cuda_on_cpu.device import FACTS_A100, FACTS_H100, Device
from tools.cuda_on_cpu.ops.build import ROOT, load_ops, ops_library

# PTX targets, and the facts of a small device that runs them.
FACTS = {80: FACTS_A100, 90: FACTS_H100}
TARGETS = tuple(FACTS)
CHECKED_TARGET = 80
SM_COUNT = 8
VARIANTS = ("stepwise", "persistent")


class EmulatedOps:
    """torch.ops.lstm_fused_emulated_<target>.*, of the kernels of one PTX target."""

    def __init__(self, device: Device, library: Any, built: Library) -> None:
        self.device = device
        self.library = library
        self.target = built.arch
        self.ops = getattr(torch.ops, built.name)

    @contextmanager
    def use(self, variant: str) -> Iterator[Device]:
        """Have FusedLSTM run these ops in place of the CPU's; `variant` is a value of
        LSTM_FUSED_CUDA_VARIANT."""
        with pytest.MonkeyPatch.context() as patch:
            self.library.lstm_emulated_set_variant(variant.encode())
            patch.setattr(native, "lstm_forward_op", self.ops.lstm_forward.default)
            patch.setattr(native, "lstm_inference_op", None)
            patch.setattr(native, "lstm_backward_op", self.ops.lstm_backward.default)
            samples_op = self.ops.lstm_sample_gradients.default
            patch.setattr(native, "lstm_sample_gradients_op", samples_op)
            for name in ("lstm_options_forward", "lstm_options_backward"):
                patch.setattr(native, f"{name}_op", getattr(self.ops, name).default)
            patch.setattr(native, "takes_batch_sizes", lambda device: False)
            patch.setattr(native, "saves_packed_rows", lambda device: False)
            self.device.clear_error()
            self.library.lstm_emulated_forget()
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
    def captured_stream(self) -> Iterator[None]:
        """Have calls run on a stream of their own that is captured; what they give is lost."""
        runtime, stream, graph = ctypes.CDLL(None), ctypes.c_void_p(), ctypes.c_void_p()
        non_blocking, relaxed = 1, 2
        assert runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), non_blocking) == 0
        self.library.lstm_emulated_set_stream(stream)
        mode = ctypes.c_int(relaxed)  # allocations of the ops are allowed, as torch's are
        runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        assert runtime.cudaStreamBeginCapture(stream, relaxed) == 0
        try:
            yield
            assert runtime.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
            runtime.cudaGraphDestroy(graph)
        finally:
            runtime.cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
            self.library.lstm_emulated_set_stream(None)
            runtime.cudaStreamDestroy(stream)

    @contextmanager
    def math_mode(self, mode: int) -> Iterator[None]:
        """Hand the ops a cuBLAS handle in this mode, which they must leave as it is."""
        self.library.lstm_emulated_blas_handle.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(self.library.lstm_emulated_blas_handle())
        left = ctypes.c_int()
        self.library.cublasSetMathMode(handle, mode)
        try:
            yield
        finally:
            self.library.cublasGetMathMode(handle, ctypes.byref(left))
            self.library.cublasSetMathMode(handle, 0)
        assert left.value == mode, f"the handle's math mode must stay {mode}, got {left.value}"

    @contextmanager
    def tf32(self) -> Iterator[None]:
        """Set the cuBLAS handle as torch does where its settings allow TF32."""
        with self.math_mode(3):
            yield


def emulated_ops(target: int) -> EmulatedOps:
    """The ops of a PTX target. Skips the test where the machine lacks what that takes.

    The kernels of CHECKED_TARGET can be searched for races, and broken
    (tools/cuda_on_cpu/README.md).
    """
    if reason := missing():
        pytest.skip(reason)
    return _all_emulated_ops()[_name(target)]


def _name(target: int) -> str:
    return f"lstm_fused_emulated_{target}"


@cache
def _all_emulated_ops() -> dict[str, EmulatedOps]:
    """Build and load them: in one build, in which what nvcc makes is shared."""
    libraries = [
        ops_library(_name(target), target, checked=target == CHECKED_TARGET) for target in TARGETS
    ]
    device, loaded = load_ops(libraries, ROOT / "build" / "cuda_on_cpu")
    return {
        library.name: EmulatedOps(device, loaded[library.name], library) for library in libraries
    }
