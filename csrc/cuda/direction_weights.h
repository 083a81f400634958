// SPDX-License-Identifier: BSD-3-Clause
// The weights of the stepwise variant's recurrent GEMM, for both directions in one batched product:
// cuBLAS takes a batch as a first matrix and a stride that is not negative, so the reverse
// direction's arrays lie behind the forward direction's.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/lstm.h"
#include "common/pointers.h"
#include "cuda/blas.h"

namespace lstm_fused::cuda {

// Elements from row t[0] of the first array to row t[1] of the second, in (2, T, N, columns). The
// directions run through time the opposite ways, and it is positive all the same.
inline int64_t direction_stride(const LstmShape& shape, const int64_t* t, int64_t columns) {
  return (shape.steps + t[1] - t[0]) * shape.batch * columns;
}

// The weights between a cell output o·tanh(c) and the pre-activations of the step after it: W_hh,
// and with projection W_hh·W_hr, as one product ("composite") or as one factor after the other.
struct RecurrentWeights {
  const void* w_hh = nullptr;  // (L, 4H, columns) storage
  int64_t columns = 0;         // P; H where w_hh is the product
  const void* w_hr = nullptr;  // (L, P, H) storage; null where nothing is left to multiply by
};

// Arrays of one pointer for each direction; w_hr is read with projection. The results lie in
// `w_hh_space` and `w_hr_space`, as the workspaces have them, or are the weights themselves.
RecurrentWeights recurrent_weights(const LstmShape& shape, DType dtype, const void* const* w_hh,
                                   const void* const* w_hr, bool composite, void* w_hh_space,
                                   void* w_hr_space, cudaStream_t stream, const Blas& blas);

}  // namespace lstm_fused::cuda
