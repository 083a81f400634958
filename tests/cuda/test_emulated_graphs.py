# SPDX-License-Identifier: BSD-3-Clause
"""The emulated CUDA device: streams, events, and captures that become graphs."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tools.cuda_on_cpu.build import missing
from tools.cuda_on_cpu.device import Device
from tools.cuda_on_cpu.samples import Samples, library

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# cudaError_t, cudaStreamCaptureMode and cudaStreamCaptureStatus.
INVALID_HANDLE, ILLEGAL_STATE, UNSUPPORTED, VOID, MERGE = 400, 401, 900, 901, 902
UNMATCHED, UNJOINED, ISOLATION, IMPLICIT, CAPTURED_EVENT = 903, 904, 905, 906, 907
GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NONE, ACTIVE, INVALIDATED = range(3)
NON_BLOCKING = 1
N = 40
Handle = ctypes.c_void_p


class Streams:
    """The stand-in for the CUDA runtime library, and one array that is device memory."""

    def __init__(self, samples: Samples) -> None:
        self.device = samples.device
        self.lib = ctypes.CDLL(None)
        self.samples = samples
        self.x = np.ones(N, np.float32)
        self.created: list[Handle] = []

    def ok(self, function: str, *arguments: Any) -> None:
        status = getattr(self.lib, function)(*arguments)
        assert status == 0, f"{self.device.error_name(status)}: {self.device.last_error}"

    def made(self, function: str, *arguments: Any) -> Handle:
        handle = Handle()
        self.ok(function, ctypes.byref(handle), *arguments)
        return handle

    def stream(self, flags: int = 0) -> Handle:
        self.created.append(self.made("cudaStreamCreateWithFlags", flags))
        return self.created[-1]

    def scale(self, factor: float, stream: Handle | None, function: str = "run_scale") -> int:
        call = getattr(self.samples._lib, function)
        return int(call(Handle(self.x.ctypes.data), ctypes.c_float(factor), N, stream))

    def copy(self, to: np.ndarray[Any, Any], stream: Handle | None) -> int:
        size = ctypes.c_size_t(self.x.nbytes)
        to_at, x_at = Handle(to.ctypes.data), Handle(self.x.ctypes.data)
        return int(self.lib.cudaMemcpyAsync(to_at, x_at, size, 2, stream))

    def fill(self, stream: Handle | None) -> int:
        size = ctypes.c_size_t(self.x.nbytes)
        return int(self.lib.cudaMemsetAsync(Handle(self.x.ctypes.data), 0, size, stream))

    def status(self, stream: Handle) -> tuple[int, int]:
        """Return what a stream's capture is, and its number."""
        status, number = ctypes.c_int(-1), ctypes.c_ulonglong()
        self.ok("cudaStreamIsCapturing", stream, ctypes.byref(status))
        plain = status.value
        ids = (ctypes.byref(status), ctypes.byref(number), None, None, None, None)
        self.ok("cudaStreamGetCaptureInfo", stream, *ids)
        assert status.value == plain
        return plain, number.value

    def begin(self, flags: int = 0, mode: int = GLOBAL) -> Handle:
        stream = self.stream(flags)
        self.ok("cudaStreamBeginCapture", stream, mode)
        return stream

    def end(self, stream: Handle) -> int:
        graph = Handle()
        status = int(self.lib.cudaStreamEndCapture(stream, ctypes.byref(graph)))
        assert (graph.value is None) == (status != 0)
        self.lib.cudaGetLastError()
        return status

    def graph(self, stream: Handle) -> Handle:
        graph = Handle()
        self.ok("cudaStreamEndCapture", stream, ctypes.byref(graph))
        return graph

    def executable(self, stream: Handle) -> Handle:
        graph = self.graph(stream)
        executable = self.made("cudaGraphInstantiate", graph, ctypes.c_ulonglong(0))
        self.ok("cudaGraphDestroy", graph)
        return executable


@pytest.fixture
def streams(device: Device) -> Iterator[Streams]:
    streams = Streams(library("samples", 90))
    with device.memory(x=streams.x):
        yield streams
    # A capture goes with its stream.
    for stream in streams.created:
        streams.lib.cudaStreamDestroy(stream)


def test_a_capture_runs_when_its_graph_is_launched(streams: Streams) -> None:
    stream = streams.begin()
    out = np.zeros(N, np.float32)
    launches = streams.device.get("kernel_launches")
    assert streams.scale(3, stream) == 0
    assert streams.scale(2, stream, "run_scale_cooperative") == 0
    assert streams.copy(out, stream) == 0
    assert streams.fill(stream) == 0
    executable = streams.executable(stream)
    assert (streams.x == 1).all() and (out == 0).all()
    assert streams.device.get("kernel_launches") == launches
    for value in (1, 5):
        streams.x[:] = value
        streams.ok("cudaGraphLaunch", executable, stream)
        assert (out == 6 * value).all() and (streams.x == 0).all()
    assert streams.device.get("kernel_launches") == launches + 4
    streams.ok("cudaGraphExecDestroy", executable)
    # The stream is free again.
    streams.x[:] = 7
    assert streams.scale(2, stream) == 0
    assert (streams.x == 14).all()
    streams.ok("cudaStreamDestroy", stream)
    assert streams.scale(2, stream) == INVALID_HANDLE


def test_a_graph_may_be_captured(streams: Streams) -> None:
    inner = streams.begin()
    assert streams.scale(3, inner) == 0
    executable = streams.executable(inner)
    outer = streams.begin()
    for _ in range(2):
        streams.ok("cudaGraphLaunch", executable, outer)
    assert (streams.x == 1).all()
    twice = streams.executable(outer)
    # A copy was captured.
    streams.ok("cudaGraphExecDestroy", executable)
    streams.ok("cudaGraphLaunch", twice, None)
    assert (streams.x == 9).all()


def test_gemms_are_captured_with_what_their_handle_says(streams: Streams) -> None:
    handle, stream = streams.made("cublasCreate_v2"), streams.begin()
    streams.ok("cublasSetStream_v2", handle, stream)
    a, b, c = (np.full((4, 4), value, np.float32) for value in (1 + 2.0**-12, 1, 0))
    one, zero = ctypes.c_float(1), ctypes.c_float(0)

    def gemm() -> None:
        at = [Handle(matrix.ctypes.data) for matrix in (a, b, c)]
        arguments = [ctypes.byref(one), at[0], 4, at[1], 4, ctypes.byref(zero), at[2], 4]
        streams.ok("cublasSgemm_v2", handle, 0, 0, 4, 4, 4, *arguments)

    calls = streams.device.get("gemm_calls")
    with streams.device.memory(a=a, b=b, c=c):
        streams.ok("cublasSetMathMode", handle, 3 | 16)  # TF32
        gemm()
        streams.ok("cublasSetMathMode", handle, 16)
        one.value = 2
        gemm()
        streams.ok("cublasSetMathMode", handle, 0)
        one.value = 3
        executable = streams.executable(stream)
        assert (c == 0).all()
        streams.device.clear_gemm_math_modes()
        streams.ok("cudaGraphLaunch", executable, stream)
        assert (c == 2 * 4 * (1 + 2.0**-12)).all()
        assert streams.device.gemm_math_modes == [19, 16]
        gemm()
        assert streams.device.gemm_math_modes == [19, 16, 0]
        assert streams.device.get("gemm_calls") == calls + 3
    streams.ok("cublasDestroy_v2", handle)


def test_an_executable_graph_takes_other_arguments(streams: Streams) -> None:
    first, second, other = (streams.begin() for _ in range(3))
    assert streams.scale(3, first) == streams.fill(other) == 0
    executable = streams.executable(first)
    assert streams.scale(5, second) == 0
    info = (ctypes.c_byte * 64)()
    assert streams.lib.cudaGraphExecUpdate(executable, streams.graph(second), info) == 0
    streams.ok("cudaGraphLaunch", executable, first)
    assert (streams.x == 5).all()
    # Other nodes it does not take.
    assert streams.lib.cudaGraphExecUpdate(executable, streams.graph(other), info) == 910
    streams.lib.cudaGetLastError()
    streams.ok("cudaGraphLaunch", executable, first)
    assert (streams.x == 25).all()


def test_an_error_of_a_kernel_is_the_launch_s(streams: Streams) -> None:
    stream = streams.begin()
    assert streams.scale(3, stream) == 0
    executable = streams.executable(stream)
    streams.device.unregister(streams.x.ctypes.data)
    assert streams.lib.cudaGraphLaunch(executable, stream) == 700
    assert "out-of-bounds access to 4 bytes of global memory" in streams.device.last_error


# ---- What a capture forbids ----------------------------------------------------------------------


def test_what_is_captured(streams: Streams) -> None:
    free = streams.stream()
    assert streams.status(free) == (NONE, 0)
    first, second = streams.begin(), streams.begin()
    assert streams.status(first)[0] == streams.status(second)[0] == ACTIVE
    assert 0 < streams.status(first)[1] < streams.status(second)[1]
    assert streams.lib.cudaStreamBeginCapture(first, GLOBAL) == ILLEGAL_STATE
    assert streams.end(first) == streams.end(second) == 0
    assert streams.status(first) == (NONE, 0)
    assert streams.end(first) == ILLEGAL_STATE


def test_the_legacy_stream_is_not_captured(streams: Streams) -> None:
    for legacy in (None, Handle(1)):
        assert streams.lib.cudaStreamBeginCapture(legacy, RELAXED) == UNSUPPORTED
    assert streams.lib.cudaStreamBeginCapture(Handle(2), RELAXED) == 0
    assert streams.end(Handle(2)) == 0


def test_the_legacy_stream_waits_for_blocking_streams(streams: Streams) -> None:
    stream = streams.begin(NON_BLOCKING)
    assert streams.scale(2, None) == 0
    assert streams.end(stream) == 0
    stream = streams.begin()
    # To ask is an error, and no more.
    status = ctypes.c_int()
    assert streams.lib.cudaStreamIsCapturing(None, ctypes.byref(status)) == IMPLICIT
    assert streams.status(stream)[0] == ACTIVE
    assert streams.scale(2, None) == IMPLICIT
    assert (streams.x == 2).all()
    # The capture is void.
    assert streams.status(stream)[0] == INVALIDATED
    assert streams.scale(2, stream) == VOID
    assert streams.end(stream) == VOID
    assert streams.scale(2, None) == 0


@pytest.mark.parametrize("mode", (GLOBAL, THREAD_LOCAL, RELAXED))
@pytest.mark.parametrize("call", ("cudaMalloc", "cudaHostAlloc", "cudaMemset"))
def test_memory_while_a_stream_is_captured(streams: Streams, call: str, mode: int) -> None:
    at, size = Handle(), ctypes.c_size_t(16)

    def status() -> int:
        if call == "cudaMemset":
            return int(streams.lib.cudaMemset(Handle(streams.x.ctypes.data), 0, size))
        arguments = (size, 0) if call == "cudaHostAlloc" else (size,)
        return int(getattr(streams.lib, call)(ctypes.byref(at), *arguments))

    stream = streams.begin(NON_BLOCKING, mode)
    assert status() == (0 if mode == RELAXED else UNSUPPORTED)
    assert streams.end(stream) == (0 if mode == RELAXED else VOID)
    # A thread may allow it to itself.
    own = ctypes.c_int(RELAXED)
    stream = streams.begin(NON_BLOCKING, mode)
    streams.ok("cudaThreadExchangeStreamCaptureMode", ctypes.byref(own))
    assert own.value == GLOBAL
    assert status() == 0
    streams.ok("cudaThreadExchangeStreamCaptureMode", ctypes.byref(own))
    assert own.value == RELAXED
    assert streams.end(stream) == 0


@pytest.mark.parametrize("call", ("cudaDeviceSynchronize", "cudaStreamSynchronize"))
def test_no_wait_while_a_stream_is_captured(streams: Streams, call: str) -> None:
    stream = streams.begin(NON_BLOCKING, RELAXED)
    arguments = () if call == "cudaDeviceSynchronize" else (stream,)
    assert getattr(streams.lib, call)(*arguments) == UNSUPPORTED
    assert streams.end(stream) == VOID
    streams.ok(call, *arguments)


@pytest.mark.parametrize("call", ("cudaStreamQuery", "cudaEventQuery"))
def test_a_question_after_other_work_while_a_stream_is_captured(
    streams: Streams, call: str
) -> None:
    other = streams.stream()
    event = streams.made("cudaEventCreate")
    streams.ok("cudaEventRecord", event, other)
    ask = (call, other if call == "cudaStreamQuery" else event)
    stream = streams.begin(NON_BLOCKING, RELAXED)
    streams.ok(*ask)
    assert streams.end(stream) == 0
    stream = streams.begin(NON_BLOCKING, GLOBAL)
    assert getattr(streams.lib, call)(ask[1]) == UNSUPPORTED
    assert streams.end(stream) == VOID


def test_memory_of_a_graph_is_refused(streams: Streams) -> None:
    stream, at = streams.begin(), Handle()
    size = ctypes.c_size_t(16)
    assert streams.lib.cudaMallocAsync(ctypes.byref(at), size, stream) == 801
    assert streams.end(stream) == 0
    streams.ok("cudaMallocAsync", ctypes.byref(at), size, stream)
    streams.ok("cudaFreeAsync", at, stream)


# ---- Events --------------------------------------------------------------------------------------


def test_streams_fork_and_join_by_events(streams: Streams) -> None:
    origin, side = streams.begin(), streams.stream()
    forked, joined = (streams.made("cudaEventCreate") for _ in range(2))
    assert streams.scale(2, origin) == 0
    streams.ok("cudaEventRecord", forked, origin)
    streams.ok("cudaStreamWaitEvent", side, forked, 0)
    assert streams.status(side) == streams.status(origin)
    assert streams.scale(3, side) == 0
    assert streams.lib.cudaEventQuery(forked) == CAPTURED_EVENT
    assert streams.end(side) == UNMATCHED
    assert streams.status(side)[0] == INVALIDATED
    assert streams.end(origin) == VOID

    streams.ok("cudaStreamBeginCapture", origin, GLOBAL)
    assert streams.scale(2, origin) == 0
    streams.ok("cudaEventRecord", forked, origin)
    streams.ok("cudaStreamWaitEvent", side, forked, 0)
    assert streams.scale(3, side) == 0
    streams.ok("cudaEventRecord", joined, side)
    streams.ok("cudaStreamWaitEvent", origin, joined, 0)
    assert streams.scale(5, origin) == 0
    executable = streams.executable(origin)
    assert streams.status(side) == (NONE, 0)
    streams.ok("cudaGraphLaunch", executable, origin)
    assert (streams.x == 30).all()


def test_a_fork_that_is_not_joined(streams: Streams) -> None:
    origin, side = streams.begin(), streams.stream()
    forked, joined = (streams.made("cudaEventCreate") for _ in range(2))
    streams.ok("cudaEventRecord", forked, origin)
    streams.ok("cudaStreamWaitEvent", side, forked, 0)
    streams.ok("cudaEventRecord", joined, side)
    assert streams.scale(3, side) == 0  # after the event
    streams.ok("cudaStreamWaitEvent", origin, joined, 0)
    assert streams.end(origin) == UNJOINED
    # Work after the join is not joined.
    streams.ok("cudaStreamBeginCapture", origin, GLOBAL)
    streams.ok("cudaEventRecord", forked, origin)
    streams.ok("cudaStreamWaitEvent", side, forked, 0)
    streams.ok("cudaEventRecord", joined, side)
    streams.ok("cudaStreamWaitEvent", origin, joined, 0)
    assert streams.scale(3, side) == 0
    assert streams.end(origin) == UNJOINED


def test_captures_stay_apart(streams: Streams) -> None:
    outside, inside = (streams.made("cudaEventCreate") for _ in range(2))
    streams.ok("cudaEventRecord", outside, None)
    first, second = streams.begin(), streams.begin()
    assert streams.lib.cudaStreamWaitEvent(first, outside, 0) == ISOLATION
    assert streams.end(first) == VOID
    streams.ok("cudaEventRecord", inside, second)
    streams.ok("cudaStreamBeginCapture", first, GLOBAL)
    assert streams.lib.cudaStreamWaitEvent(first, inside, 0) == MERGE
    assert streams.end(second) == VOID
    streams.end(first)


def test_the_time_between_events(streams: Streams) -> None:
    begin, end, untimed = (streams.made("cudaEventCreateWithFlags", flags) for flags in (0, 0, 2))
    streams.ok("cudaEventRecord", begin, None)
    streams.samples.run("run_bounded", np.zeros(1, np.uint32), np.zeros(1, np.uint64), 1, 100)
    time = ctypes.c_float()
    elapsed = streams.lib.cudaEventElapsedTime
    assert elapsed(ctypes.byref(time), begin, end) == INVALID_HANDLE
    for event in (end, untimed):
        streams.ok("cudaEventRecord", event, None)
        streams.ok("cudaEventSynchronize", event)
    assert elapsed(ctypes.byref(time), begin, untimed) == INVALID_HANDLE
    assert elapsed(ctypes.byref(time), begin, end) == 0
    assert 100 < time.value < 1000
    streams.ok("cudaEventDestroy", end)
    assert streams.lib.cudaEventRecord(end, None) == INVALID_HANDLE


def test_pinned_memory(streams: Streams) -> None:
    size, at, on_device = ctypes.c_size_t(16), Handle(), Handle()
    streams.ok("cudaHostAlloc", ctypes.byref(at), size, 2)  # mapped
    streams.ok("cudaHostGetDevicePointer", ctypes.byref(on_device), at, 0)
    words = (ctypes.c_float * 4).from_address(int(at.value or 0))
    words[:] = [1, 2, 3, 4]
    call = streams.samples._lib.run_scale
    assert call(on_device, ctypes.c_float(2), 4, None) == 0
    assert list(words) == [2, 4, 6, 8]
    x_at = Handle(streams.x.ctypes.data)
    assert streams.lib.cudaHostGetDevicePointer(ctypes.byref(on_device), x_at, 0) == 1
    assert streams.lib.cudaFree(at) == 1
    streams.lib.cudaGetLastError()
    streams.ok("cudaFreeHost", at)
    assert streams.lib.cudaFreeHost(at) == 1
