// SPDX-License-Identifier: BSD-3-Clause
// The few cuBLAS calls in use, for row-major matrices.
//
// The library is found at run time: torch has loaded one, of whichever CUDA version it was built
// for, and a build needs none.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/types.h"

namespace lstm_fused::cuda {

// One of the two factors. `rows` of memory lie `stride` elements apart.
struct GemmOperand {
  const void* data = nullptr;  // storage
  int64_t stride = 0;
  bool transposed = false;   // memory holds the transpose of the factor
  int64_t batch_stride = 0;  // elements from one product's factor to the next one's, ≥ 0
};

// c = a·b + beta·c, with a (m, k), b (k, n), c (m, n); `batch` such products.
struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  GemmOperand a, b;
  void* c = nullptr;
  int64_t c_stride = 0;
  int64_t c_batch_stride = 0;
  bool c_accumulator = false;  // c holds accumulators, else storage
  double beta = 0;             // 0: c is not read
  int64_t batch = 1;
};

class Blas {
 public:
  // `handle` is a cublasHandle_t, with host pointer mode, already set to `stream`: setting it here
  // would take away the workspace that torch gave it, which captures and reproducible sums need.
  // Throws Error where no cuBLAS is found, or where the handle is set to another stream.
  Blas(void* handle, cudaStream_t stream, DType dtype, bool allow_tf32);

  // Empty products leave c as it is; k ≥ 1. Sizes and strides must be below 2^31; strides from one
  // product to the next may be larger.
  //
  // Sums are those of the accumulator to their end, whatever the handle's math mode, which is left
  // as it was. torch.backends.cuda.matmul.allow_{fp16,bf16}_reduced_precision_reduction lets
  // torch's own 16-bit products round partial sums, and by default it is on. That is leave and no
  // demand, and it is not taken: weight gradients are sums over all T·N rows, which cuBLAS does
  // split. Nor could it be asked for: torch keeps the setting to its own C++ and to Python, and
  // puts it into the handle for the time of its own calls only.
  void gemm(const Gemm& gemm) const;

 private:
  void* handle_;
  DType dtype_;
  bool allow_tf32_;
};

// Whether the handle's math mode, which torch sets by torch.backends.cuda.matmul, allows TF32.
bool allows_tf32(void* handle);

}  // namespace lstm_fused::cuda
