// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/blas.h"

#include <dlfcn.h>
#include <library_types.h>

#include <limits>

#include "common/error.h"

namespace lstm_fused::cuda {
namespace {

// From cublas_api.h, whose ABI these have been since CUDA 11.
using Status = int;
constexpr Status kSuccess = 0;
constexpr int kOpNone = 0, kOpTranspose = 1;
constexpr int kCompute32F = 68, kCompute64F = 70, kCompute32FFastTf32 = 77;
constexpr int kDefaultAlgorithm = -1;
constexpr int kMathModeMask = 0xf, kTf32Math = 3;
// CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, a bit beside the modes.
constexpr int kWideSums = 16;

struct Functions {
  Status (*gemm)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                 const void* a, cudaDataType a_type, int lda, const void* b, cudaDataType b_type,
                 int ldb, const void* beta, void* c, cudaDataType c_type, int ldc, int compute_type,
                 int algorithm);
  Status (*strided_batched_gemm)(void* handle, int op_a, int op_b, int m, int n, int k,
                                 const void* alpha, const void* a, cudaDataType a_type, int lda,
                                 long long stride_a, const void* b, cudaDataType b_type, int ldb,
                                 long long stride_b, const void* beta, void* c, cudaDataType c_type,
                                 int ldc, long long stride_c, int batch, int compute_type,
                                 int algorithm);
  Status (*get_stream)(void* handle, cudaStream_t* stream);
  Status (*get_math_mode)(void* handle, int* mode);
  Status (*set_math_mode)(void* handle, int mode);
  const char* (*status_text)(Status status);
};

// The library that torch has loaded; else one that the loader finds.
void* find_library() {
  if (dlsym(RTLD_DEFAULT, "cublasGemmEx") != nullptr) return RTLD_DEFAULT;
  for (int mode : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW}) {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
      if (void* library = dlopen(name, mode)) return library;
    }
  }
  fail(
      "the CUDA kernels need cuBLAS, found neither libcublas.so.13 nor libcublas.so.12; install a "
      "CUDA build of torch, which brings it");
}

template <typename Function>
void find_function(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  LSTM_CHECK(function != nullptr, "cuBLAS must have ", name, ", found a library without it");
}

Functions find_functions() {
  void* library = find_library();
  Functions found;
  find_function(library, "cublasGemmEx", found.gemm);
  find_function(library, "cublasGemmStridedBatchedEx", found.strided_batched_gemm);
  find_function(library, "cublasGetStream_v2", found.get_stream);
  find_function(library, "cublasGetMathMode", found.get_math_mode);
  find_function(library, "cublasSetMathMode", found.set_math_mode);
  find_function(library, "cublasGetStatusString", found.status_text);
  return found;
}

const Functions& functions() {
  static const Functions found = find_functions();
  return found;
}

void check_blas(Status status, const char* what) {
  LSTM_CHECK(status == kSuccess, what, " must succeed, got ", functions().status_text(status));
}

cudaDataType data_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return CUDA_R_64F;
    case DType::kBFloat16:
      return CUDA_R_16BF;
    case DType::kFloat16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

int to_int(int64_t value, const char* what) {
  LSTM_CHECK(value <= std::numeric_limits<int>::max(), "cuBLAS takes ", what, " below 2^31, got ",
             value);
  return static_cast<int>(value);
}

// Runs `multiply`, a cuBLAS call, in a mode in which partial sums (those of a k that is split over
// blocks) meet in the compute type, and gives its status. cuBLAS throws nothing, so that the
// handle's mode is set back whatever becomes of the call.
template <typename Multiply>
Status with_wide_sums(void* handle, const Multiply& multiply) {
  int mode = 0;
  check_blas(functions().get_math_mode(handle, &mode), "cublasGetMathMode");
  check_blas(functions().set_math_mode(handle, mode | kWideSums), "cublasSetMathMode");
  const Status status = multiply();
  check_blas(functions().set_math_mode(handle, mode), "cublasSetMathMode");
  return status;
}

}  // namespace

Blas::Blas(void* handle, cudaStream_t stream, DType dtype, bool allow_tf32)
    : handle_(handle), dtype_(dtype), allow_tf32_(allow_tf32) {
  cudaStream_t current = nullptr;
  check_blas(functions().get_stream(handle, &current), "cublasGetStream");
  LSTM_CHECK(current == stream, "the cuBLAS handle must be set to the call's stream");
}

void Blas::gemm(const Gemm& gemm) const {
  if (gemm.m == 0 || gemm.n == 0 || gemm.batch == 0) return;
  const bool is_double = dtype_ == DType::kFloat64;
  const int compute_type = is_double                                  ? kCompute64F
                           : dtype_ == DType::kFloat32 && allow_tf32_ ? kCompute32FFastTf32
                                                                      : kCompute32F;
  const cudaDataType storage = data_type(dtype_);
  const cudaDataType accumulator = is_double ? CUDA_R_64F : CUDA_R_32F;
  const cudaDataType c_type = gemm.c_accumulator ? accumulator : storage;
  const double one_double = 1, beta_double = gemm.beta;
  const float one_float = 1, beta_float = static_cast<float>(gemm.beta);
  const void* one = is_double ? static_cast<const void*>(&one_double) : &one_float;
  const void* beta = is_double ? static_cast<const void*>(&beta_double) : &beta_float;

  // A row-major matrix is the transpose of cuBLAS's: cᵀ = bᵀ·aᵀ.
  const int op_a = gemm.a.transposed ? kOpTranspose : kOpNone;
  const int op_b = gemm.b.transposed ? kOpTranspose : kOpNone;
  const int m = to_int(gemm.m, "rows"), n = to_int(gemm.n, "columns");
  const int k = to_int(gemm.k, "terms"), batch = to_int(gemm.batch, "batches");
  const int lda = to_int(gemm.a.stride, "strides"), ldb = to_int(gemm.b.stride, "strides");
  const int ldc = to_int(gemm.c_stride, "strides");
  const auto multiply = [&] {
    if (batch == 1) {
      return functions().gemm(handle_, op_b, op_a, n, m, k, one, gemm.b.data, storage, ldb,
                              gemm.a.data, storage, lda, beta, gemm.c, c_type, ldc, compute_type,
                              kDefaultAlgorithm);
    }
    return functions().strided_batched_gemm(
        handle_, op_b, op_a, n, m, k, one, gemm.b.data, storage, ldb, gemm.b.batch_stride,
        gemm.a.data, storage, lda, gemm.a.batch_stride, beta, gemm.c, c_type, ldc,
        gemm.c_batch_stride, batch, compute_type, kDefaultAlgorithm);
  };
  // NOTE: the mode concerns results narrower than the compute type, whose partial sums cuBLAS may
  // round to the result's type otherwise: a 16-bit c. For all others, accumulators among them, it
  // is the same.
  const bool is_narrow = c_type == CUDA_R_16F || c_type == CUDA_R_16BF;
  check_blas(is_narrow ? with_wide_sums(handle_, multiply) : multiply(),
             batch == 1 ? "cublasGemmEx" : "cublasGemmStridedBatchedEx");
}

bool allows_tf32(void* handle) {
  int mode = 0;
  check_blas(functions().get_math_mode(handle, &mode), "cublasGetMathMode");
  return (mode & kMathModeMask) == kTf32Math;
}

}  // namespace lstm_fused::cuda
