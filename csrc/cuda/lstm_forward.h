// SPDX-License-Identifier: BSD-3-Clause
// One layer forward, on padded sequences in device memory. Launches only: no allocation, no wait
// for the device, so that a call can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include "common/lstm.h"
#include "cuda/plan.h"

namespace lstm_fused::cuda {

// What lies in device memory. No output may alias an input, nor the workspace.
struct LstmForwardCall {
  LstmShape shape;  // T ≥ 1
  DType dtype = DType::kFloat32;
  const int64_t* lengths = nullptr;     // (N); null: T each. Clamped to [0, T]
  const uint8_t* reset_mask = nullptr;  // (T, N); or null
  const void* x = nullptr;              // (T, N, D) storage
  // As in common/lstm.h, M = T·N. Rows of y and cell_states past a row's length are made zero;
  // those of gates and cells are not written.
  LstmForwardDirection direction[kMaxDirections];
  void* workspace = nullptr;    // plan.workspace_bytes, 256-byte aligned
  void* blas_handle = nullptr;  // see Blas
  cudaStream_t stream = nullptr;
};

// `plan` must be make_forward_plan's for this shape, dtype and device, `training` being whether
// cells are asked for, and `recompute` whether gates are not.
void lstm_forward(const LstmForwardCall& call, const LstmPlan& plan);

}  // namespace lstm_fused::cuda
