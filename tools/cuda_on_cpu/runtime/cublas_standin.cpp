// SPDX-License-Identifier: BSD-3-Clause
// Stand-in for cuBLAS: the calls that an LSTM needs, by cuBLAS's C interface, on memory that is
// checked as the kernels' is. Column-major, as cuBLAS: op(A) is m x k, op(B) k x n, C m x n.
#include <library_types.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "device.h"
#include "floating.h"
#include "streams.h"

namespace {

using cuda_on_cpu::bf16;
using cuda_on_cpu::device;
using cuda_on_cpu::f16;

// Values of cublas_api.h, which the toolkit does not always come with.
enum Status : int {
  kSuccess = 0,
  kNotInitialized = 1,
  kInvalidValue = 7,
  kExecutionFailed = 13,
  kNotSupported = 15,
};
enum Operation : int { kN = 0, kT = 1, kC = 2 };
enum Compute : int {
  k16F = 64,
  k32F = 68,
  k32FPedantic = 69,
  k32FFastF16 = 74,
  k32FFastBf16 = 75,
  k32FFastTf32 = 77,
  k64F = 70,
  k64FPedantic = 71,
};
constexpr int kMathDefault = 0, kMathPedantic = 2, kMathTf32 = 3;
constexpr int kMathDisallowReducedPrecision = 16;

struct Handle {
  void* stream = nullptr;
  int math_mode = kMathDefault;
  bool is_host_scalar = true;
};

struct Gemm {
  int transa, transb, m, n, k;
  const void* alpha;
  const void* a;
  cudaDataType_t a_type;
  int lda;
  long long stride_a;
  const void* b;
  cudaDataType_t b_type;
  int ldb;
  long long stride_b;
  const void* beta;
  void* c;
  cudaDataType_t c_type;
  int ldc;
  long long stride_c;
  int batches;
  int compute;
};

int size_of(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_16F:
    case CUDA_R_16BF:
      return 2;
    case CUDA_R_32F:
      return 4;
    case CUDA_R_64F:
      return 8;
    default:
      return 0;
  }
}

double read(const char* at, cudaDataType_t type) {
  switch (type) {
    case CUDA_R_16F:
      return cuda_on_cpu::to_float(cuda_on_cpu::load<f16>(at));
    case CUDA_R_16BF:
      return cuda_on_cpu::to_float(cuda_on_cpu::load<bf16>(at));
    case CUDA_R_32F:
      return cuda_on_cpu::load<float>(at);
    default:
      return cuda_on_cpu::load<double>(at);
  }
}

void write(char* at, cudaDataType_t type, double value) {
  switch (type) {
    case CUDA_R_16F:
      return cuda_on_cpu::store(at, cuda_on_cpu::from_double<f16>(value));
    case CUDA_R_16BF:
      return cuda_on_cpu::store(at, cuda_on_cpu::from_double<bf16>(value));
    case CUDA_R_32F:
      return cuda_on_cpu::store(at, static_cast<float>(value));
    default:
      return cuda_on_cpu::store(at, value);
  }
}

int refuse(Status status, const std::string& what) {
  device().error_text = "cuBLAS: " + what;
  return status;
}

// Whether cuBLAS has a GEMM of these types.
bool is_supported(const Gemm& g) {
  if (g.a_type != g.b_type) return false;
  switch (g.compute) {
    case k64F:
    case k64FPedantic:
      return g.a_type == CUDA_R_64F && g.c_type == CUDA_R_64F;
    case k32F:
    case k32FPedantic:
      return g.a_type != CUDA_R_64F && (g.c_type == g.a_type || g.c_type == CUDA_R_32F);
    case k32FFastF16:
    case k32FFastBf16:
    case k32FFastTf32:
      return g.a_type == CUDA_R_32F && g.c_type == CUDA_R_32F;
    default:
      return false;
  }
}

std::string check_matrix(const char* name, const void* at, int rows, int columns, int ld,
                         int size) {
  if (rows == 0 || columns == 0) return "";
  if (at == nullptr) return std::string(name) + " is null";
  if (!device().strict_memory) return "";
  const uint64_t bytes = (uint64_t(columns - 1) * ld + rows) * size;
  const std::string text = device().memory.check(reinterpret_cast<uint64_t>(at), bytes);
  return text.empty() ? "" : std::string(name) + " is out of bounds: " + text;
}

// A matrix as doubles, row by row; op() applied, and rounded as the compute type says.
std::vector<double> gather(const char* at, cudaDataType_t type, bool transpose, int rows,
                           int columns, int ld, bool is_tf32) {
  std::vector<double> out(static_cast<size_t>(rows) * columns);
  const int size = size_of(type);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      const size_t element = transpose ? size_t(i) * ld + j : size_t(j) * ld + i;
      double value = read(at + element * size, type);
      if (is_tf32) {
        value = cuda_on_cpu::as<float>(cuda_on_cpu::to_tf32_away(static_cast<float>(value)));
      }
      out[static_cast<size_t>(i) * columns + j] = value;
    }
  }
  return out;
}

// A GEMM with all that it depends on, so that it may run later.
struct Call {
  Gemm gemm;
  double alpha, beta;
  int math_mode;
};

bool is_tf32(const Call& call) {
  const Gemm& g = call.gemm;
  if (g.compute == k32FFastTf32) return true;
  return g.compute == k32F && g.a_type == CUDA_R_32F &&
         call.math_mode % kMathDisallowReducedPrecision == kMathTf32;
}

void multiply(const Call& call, const char* a, const char* b, char* c) {
  const Gemm& g = call.gemm;
  const double alpha = call.alpha, beta = call.beta;
  const auto left = gather(a, g.a_type, g.transa != kN, g.m, g.k, g.lda, is_tf32(call));
  const auto right = gather(b, g.b_type, g.transb != kN, g.k, g.n, g.ldb, is_tf32(call));
  const int size = size_of(g.c_type);
  std::vector<double> row(g.n);
  for (int i = 0; i < g.m; ++i) {
    std::fill(row.begin(), row.end(), 0.0);
    for (int p = 0; p < g.k; ++p) {
      const double x = left[static_cast<size_t>(i) * g.k + p];
      const double* y = &right[static_cast<size_t>(p) * g.n];
      for (int j = 0; j < g.n; ++j) row[j] += x * y[j];
    }
    for (int j = 0; j < g.n; ++j) {
      char* at = c + (size_t(j) * g.ldc + i) * size;
      // C is not read where beta is 0: it may hold NaN.
      const double old = beta == 0 ? 0.0 : beta * read(at, g.c_type);
      write(at, g.c_type, alpha * row[j] + old);
    }
  }
}

// An empty text where the matrices lie in the device's memory.
std::string check_matrices(const Gemm& g, const char* a, const char* b, const char* c) {
  const bool ta = g.transa != kN, tb = g.transb != kN;
  for (const std::string& what :
       {check_matrix("A", a, ta ? g.k : g.m, ta ? g.m : g.k, g.lda, size_of(g.a_type)),
        check_matrix("B", b, tb ? g.n : g.k, tb ? g.k : g.n, g.ldb, size_of(g.b_type)),
        check_matrix("C", c, g.m, g.n, g.ldc, size_of(g.c_type))}) {
    if (!what.empty()) return what;
  }
  return "";
}

cudaError_t run(const Call& call) {
  const Gemm& g = call.gemm;
  ++device().gemm_calls;
  device().gemm_math_modes.push_back(call.math_mode);
  for (int batch = 0; batch < g.batches; ++batch) {
    const char* a = static_cast<const char*>(g.a) + batch * g.stride_a * size_of(g.a_type);
    const char* b = static_cast<const char*>(g.b) + batch * g.stride_b * size_of(g.b_type);
    char* c = static_cast<char*>(g.c) + batch * g.stride_c * size_of(g.c_type);
    if (const std::string what = check_matrices(g, a, b, c); !what.empty()) {
      refuse(kExecutionFailed, what);
      return cudaErrorIllegalAddress;
    }
    multiply(call, a, b, c);
  }
  return cudaSuccess;
}

int gemm(Handle* handle, const Gemm& g) {
  if (handle == nullptr) return kNotInitialized;
  const auto is_operation = [](int op) { return op == kN || op == kT || op == kC; };
  if (!is_operation(g.transa) || !is_operation(g.transb)) {
    return refuse(kInvalidValue, "no such operation on A or B");
  }
  if (g.m < 0 || g.n < 0 || g.k < 0 || g.batches < 0) {
    return refuse(kInvalidValue, "a negative size");
  }
  const bool ta = g.transa != kN, tb = g.transb != kN;
  const int a_rows = ta ? g.k : g.m, b_rows = tb ? g.n : g.k;
  if (g.lda < std::max(1, a_rows)) return refuse(kInvalidValue, "lda is below A's rows");
  if (g.ldb < std::max(1, b_rows)) return refuse(kInvalidValue, "ldb is below B's rows");
  if (g.ldc < std::max(1, g.m)) return refuse(kInvalidValue, "ldc is below C's rows");
  if (!is_supported(g)) return refuse(kNotSupported, "no GEMM of these types");
  if (g.m == 0 || g.n == 0 || g.batches == 0) return kSuccess;
  if (g.alpha == nullptr || g.beta == nullptr) {
    return refuse(kInvalidValue, "alpha or beta is null");
  }
  if (!handle->is_host_scalar) return refuse(kNotSupported, "scalars in device memory");
  const bool is_double = g.compute == k64F || g.compute == k64FPedantic;
  const double alpha = read(static_cast<const char*>(g.alpha), is_double ? CUDA_R_64F : CUDA_R_32F);
  const double beta = read(static_cast<const char*>(g.beta), is_double ? CUDA_R_64F : CUDA_R_32F);
  const Call call = {g, alpha, beta, handle->math_mode};
  const auto status = cuda_on_cpu::submit(static_cast<cudaStream_t>(handle->stream), "gemm",
                                          [call] { return run(call); });
  return status == cudaSuccess ? kSuccess : kExecutionFailed;
}

}  // namespace

#define CUBLAS_API extern "C" __attribute__((visibility("default")))

CUBLAS_API int cublasCreate_v2(Handle** handle) {
  if (handle == nullptr) return kInvalidValue;
  *handle = new Handle;
  return kSuccess;
}
CUBLAS_API int cublasDestroy_v2(Handle* handle) {
  delete handle;
  return kSuccess;
}
CUBLAS_API int cublasSetStream_v2(Handle* handle, void* stream) {
  if (handle == nullptr) return kNotInitialized;
  handle->stream = stream;
  return kSuccess;
}
CUBLAS_API int cublasGetStream_v2(Handle* handle, void** stream) {
  if (handle == nullptr) return kNotInitialized;
  *stream = handle->stream;
  return kSuccess;
}
CUBLAS_API int cublasSetMathMode(Handle* handle, int mode) {
  if (handle == nullptr) return kNotInitialized;
  const int kind = mode % kMathDisallowReducedPrecision;
  if (kind != kMathDefault && kind != kMathPedantic && kind != kMathTf32 && kind != 1) {
    return refuse(kInvalidValue, "no such math mode");
  }
  handle->math_mode = mode;
  return kSuccess;
}
CUBLAS_API int cublasGetMathMode(Handle* handle, int* mode) {
  if (handle == nullptr) return kNotInitialized;
  *mode = handle->math_mode;
  return kSuccess;
}
CUBLAS_API int cublasSetPointerMode_v2(Handle* handle, int mode) {
  if (handle == nullptr) return kNotInitialized;
  handle->is_host_scalar = mode == 0;
  return kSuccess;
}
CUBLAS_API int cublasGetPointerMode_v2(Handle* handle, int* mode) {
  if (handle == nullptr) return kNotInitialized;
  *mode = handle->is_host_scalar ? 0 : 1;
  return kSuccess;
}
CUBLAS_API int cublasSetWorkspace_v2(Handle* handle, void* workspace, size_t bytes) {
  if (handle == nullptr) return kNotInitialized;
  if (workspace == nullptr && bytes != 0) return refuse(kInvalidValue, "the workspace is null");
  if (reinterpret_cast<uint64_t>(workspace) % 256 != 0) {
    return refuse(kInvalidValue, "the workspace is not aligned to 256 bytes");
  }
  return kSuccess;
}
CUBLAS_API int cublasGetVersion_v2(Handle*, int* version) {
  *version = 130000;
  return kSuccess;
}
CUBLAS_API const char* cublasGetStatusString(int status) {
  switch (status) {
    case kSuccess:
      return "CUBLAS_STATUS_SUCCESS";
    case kNotInitialized:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case kInvalidValue:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case kExecutionFailed:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    default:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}

CUBLAS_API int cublasGemmStridedBatchedEx(Handle* handle, int transa, int transb, int m, int n,
                                          int k, const void* alpha, const void* a,
                                          cudaDataType_t a_type, int lda, long long stride_a,
                                          const void* b, cudaDataType_t b_type, int ldb,
                                          long long stride_b, const void* beta, void* c,
                                          cudaDataType_t c_type, int ldc, long long stride_c,
                                          int batches, int compute, int) {
  return gemm(handle,
              {transa, transb, m,        n,    k, alpha,  a,   a_type,   lda,     stride_a, b,
               b_type, ldb,    stride_b, beta, c, c_type, ldc, stride_c, batches, compute});
}

CUBLAS_API int cublasGemmEx(Handle* handle, int transa, int transb, int m, int n, int k,
                            const void* alpha, const void* a, cudaDataType_t a_type, int lda,
                            const void* b, cudaDataType_t b_type, int ldb, const void* beta,
                            void* c, cudaDataType_t c_type, int ldc, int compute, int) {
  return gemm(handle, {transa, transb, m, n,    k, alpha,  a,   a_type, lda, 0,      b,
                       b_type, ldb,    0, beta, c, c_type, ldc, 0,      1,   compute});
}

CUBLAS_API int cublasSgemm_v2(Handle* handle, int transa, int transb, int m, int n, int k,
                              const float* alpha, const float* a, int lda, const float* b, int ldb,
                              const float* beta, float* c, int ldc) {
  return cublasGemmEx(handle, transa, transb, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F,
                      ldb, beta, c, CUDA_R_32F, ldc, k32F, -1);
}

CUBLAS_API int cublasDgemm_v2(Handle* handle, int transa, int transb, int m, int n, int k,
                              const double* alpha, const double* a, int lda, const double* b,
                              int ldb, const double* beta, double* c, int ldc) {
  return cublasGemmEx(handle, transa, transb, m, n, k, alpha, a, CUDA_R_64F, lda, b, CUDA_R_64F,
                      ldb, beta, c, CUDA_R_64F, ldc, k64F, -1);
}
