// SPDX-License-Identifier: BSD-3-Clause
// What the recurrent GEMM multiplied in every step, for the gradient of W_hh, where that is not y
// moved by one step: a mask is on it, or a reset has put in a state.
#pragma once

#include <cuda_runtime_api.h>

#include "common/lstm.h"

namespace lstm_fused::cuda {

struct RecurrentInputCall {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  const int64_t* lengths = nullptr;
  const uint8_t* reset_mask = nullptr;
  bool reverse = false;       // of the direction
  const void* h_0 = nullptr;  // (N, P) storage
  const void* y = nullptr;    // its first column, in rows of L·P storage
  CellOptionInputs options;   // of the direction
  void* out = nullptr;        // (T, N, P) storage, zero where a row takes no part
  cudaStream_t stream = nullptr;
};

void recurrent_inputs(const RecurrentInputCall& call);

}  // namespace lstm_fused::cuda
