# SPDX-License-Identifier: BSD-3-Clause
"""The emulated CUDA device: its stand-ins for the CUDA runtime library and for cuBLAS."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tools.cuda_on_cpu.build import missing
from tools.cuda_on_cpu.device import FACTS_A100, Device
from tools.cuda_on_cpu.samples import the_device

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# cublasOperation_t, cudaDataType_t, cublasComputeType_t and cublasStatus_t.
N, T = 0, 1
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 14}
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70
INVALID_VALUE, EXECUTION_FAILED, NOT_SUPPORTED = 7, 13, 15


@pytest.fixture
def device() -> Iterator[Device]:
    device = the_device()
    device.set(**FACTS_A100, strict_memory=1)
    device.clear_error()
    yield device
    device.clear_error()


@pytest.fixture
def lib(device: Device) -> ctypes.CDLL:
    # The product finds cuBLAS so: among the symbols that are loaded.
    return ctypes.CDLL(None)


@pytest.fixture
def handle(lib: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    handle = ctypes.c_void_p()
    assert lib.cublasCreate_v2(ctypes.byref(handle)) == 0
    yield handle
    assert lib.cublasDestroy_v2(handle) == 0


class Gemm:
    """alpha·op(A)·op(B) + beta·C of column-major matrices, by way of row-major tensors."""

    def __init__(self, device: Device, lib: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self.device, self.lib, self.handle = device, lib, handle

    def __call__(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        beta: float = 0,
        compute: int = COMPUTE_32F,
        transa: bool = False,
        **changes: Any,
    ) -> int:
        """Compute c = a @ b, or a.T @ b: as column-major matrices, cᵀ = bᵀ·aᵀ."""
        rows, columns = c.shape
        k = b.shape[0]
        sizes = {"m": columns, "n": rows, "k": k, "lda": b.stride(0), "ldb": a.stride(0)}
        sizes = {**sizes, "ldc": c.stride(0), **changes}
        scalar = ctypes.c_double if compute == COMPUTE_64F else ctypes.c_float
        with self.device.memory(a=a, b=b, c=c):
            return int(
                self.lib.cublasGemmEx(
                    *(self.handle, N, T if transa else N, sizes["m"], sizes["n"], sizes["k"]),
                    ctypes.byref(scalar(1)),
                    *(ctypes.c_void_p(b.data_ptr()), TYPES[b.dtype], sizes["lda"]),
                    *(ctypes.c_void_p(a.data_ptr()), TYPES[a.dtype], sizes["ldb"]),
                    ctypes.byref(scalar(beta)),
                    *(ctypes.c_void_p(c.data_ptr()), TYPES[c.dtype], sizes["ldc"]),
                    *(compute, -1),
                )
            )


@pytest.fixture
def gemm(device: Device, lib: ctypes.CDLL, handle: ctypes.c_void_p) -> Gemm:
    return Gemm(device, lib, handle)


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-4, 5, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("transa", (False, True))
@pytest.mark.parametrize("dtype", TYPES)
def test_gemm(gemm: Gemm, dtype: torch.dtype, transa: bool) -> None:
    a, b, c = (integers(*shape, dtype=dtype) for shape in ((5, 7), (7, 3), (5, 3)))
    want = a @ b + c
    compute = COMPUTE_64F if dtype == torch.float64 else COMPUTE_32F
    a = a.T.contiguous() if transa else a
    assert gemm(a, b, c, beta=1, compute=compute, transa=transa) == 0
    assert torch.equal(c, want)


def test_gemm_does_not_read_c_where_beta_is_0(gemm: Gemm) -> None:
    a, b, c = integers(5, 7), integers(7, 3), torch.full((5, 3), torch.nan)
    assert gemm(a, b, c) == 0
    assert torch.equal(c, a @ b)


def test_16_bit_operands_may_have_a_32_bit_result(gemm: Gemm) -> None:
    a, b, c = torch.randn(5, 64).bfloat16(), torch.randn(64, 3).bfloat16(), torch.zeros(5, 3)
    assert gemm(a, b, c) == 0
    torch.testing.assert_close(c, a.float() @ b.float())


def test_tf32_rounds_the_operands(gemm: Gemm) -> None:
    a, b, c = torch.full((1, 1), 1 + 2.0**-12), torch.ones(1, 1), torch.zeros(1, 1)
    assert gemm(a, b, c) == 0 and c.item() == 1 + 2.0**-12
    assert gemm(a, b, c, compute=COMPUTE_32F_FAST_TF32) == 0 and c.item() == 1
    assert gemm.lib.cublasSetMathMode(gemm.handle, 3) == 0
    assert gemm(a, b, c) == 0 and c.item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_partial_sums_are_rounded_to_a_16_bit_c_where_the_math_mode_allows(
    gemm: Gemm, dtype: torch.dtype
) -> None:
    eps = torch.finfo(dtype).eps
    a, b = torch.tensor([[1, eps / 2, eps / 2, 0]], dtype=dtype), torch.ones(4, 1, dtype=dtype)
    c = torch.zeros(1, 1, dtype=dtype)
    for mode, sum_of_16_bits in ((0, 1), (16, 1 + eps)):
        assert gemm.lib.cublasSetMathMode(gemm.handle, mode) == 0
        assert gemm(a, b, c) == 0 and c.item() == sum_of_16_bits
        wide = torch.zeros(1, 1)
        assert gemm(a, b, wide) == 0 and wide.item() == 1 + eps


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    (
        ({"lda": 2}, INVALID_VALUE, "lda is below A's rows"),
        ({"ldc": 2}, INVALID_VALUE, "ldc is below C's rows"),
        ({"m": -1}, INVALID_VALUE, "a negative size"),
        ({"k": 8}, INVALID_VALUE, "ldb is below B's rows"),
        ({"n": 6}, EXECUTION_FAILED, "B is out of bounds: 'a' + 0 of 140 bytes"),
        ({"compute": COMPUTE_64F}, NOT_SUPPORTED, "no GEMM of these types"),
    ),
)
def test_gemm_refuses_what_cublas_refuses(
    gemm: Gemm, changes: dict[str, int], status: int, message: str
) -> None:
    assert gemm(integers(5, 7), integers(7, 3), integers(5, 3), **changes) == status
    assert message in gemm.device.last_error


def test_strided_batches(device: Device, lib: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
    a, b, c = integers(4, 5, 7), integers(4, 7, 3), torch.zeros(4, 5, 3)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    with device.memory(a=a, b=b, c=c):
        status = lib.cublasGemmStridedBatchedEx(
            *(handle, N, N, 3, 5, 7, ctypes.byref(one)),
            *(ctypes.c_void_p(b.data_ptr()), 0, 3, ctypes.c_longlong(21)),
            *(ctypes.c_void_p(a.data_ptr()), 0, 7, ctypes.c_longlong(35), ctypes.byref(zero)),
            *(ctypes.c_void_p(c.data_ptr()), 0, 3, ctypes.c_longlong(15), 4, COMPUTE_32F, -1),
        )
    assert status == 0
    assert torch.equal(c, a @ b)


# ---- The CUDA runtime library --------------------------------------------------------------------


def test_device_attributes_are_the_facts(device: Device, lib: ctypes.CDLL) -> None:
    value = ctypes.c_int()
    facts = {16: 108, 38: 40 << 20, 39: 2048, 75: 8, 76: 0, 81: 167936, 82: 65536, 97: 166912}
    for attribute, fact in facts.items():
        assert lib.cudaDeviceGetAttribute(ctypes.byref(value), attribute, 0) == 0
        assert value.value == fact
    assert lib.cudaDeviceGetAttribute(ctypes.byref(value), 16, 1) == 101
    assert lib.cudaSetDevice(1) == 101


def test_device_memory(device: Device, lib: ctypes.CDLL) -> None:
    at = ctypes.c_void_p()
    assert lib.cudaMalloc(ctypes.byref(at), ctypes.c_size_t(40)) == 0
    host = np.zeros(10, np.float32)
    to_host, to_device = 2, 1
    size = ctypes.c_size_t
    host_at = ctypes.c_void_p(host.ctypes.data)
    assert lib.cudaMemcpy(host_at, at, size(40), to_host) == 0
    assert np.isnan(host).all()
    host[:] = np.arange(10)
    assert lib.cudaMemcpy(at, host_at, size(44), to_device) == 1
    assert "copy to the device of 44 bytes: 'cudaMalloc" in device.last_error
    assert lib.cudaGetLastError() == 1
    assert lib.cudaGetLastError() == 0
    assert lib.cudaMemset(at, 0, size(40)) == 0
    assert lib.cudaFree(ctypes.c_void_p(host.ctypes.data)) == 1
    assert lib.cudaFree(at) == 0
    assert lib.cudaMemset(at, 0, size(40)) == 1
