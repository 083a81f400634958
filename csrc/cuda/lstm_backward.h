// SPDX-License-Identifier: BSD-3-Clause
// The recurrence of one layer's backward, on padded sequences in device memory. Gradients of x and
// of the weights follow from it: see gradients/layer_backward.h. Launches only, as lstm_forward.
#pragma once

#include <cuda_runtime_api.h>

#include "common/lstm.h"
#include "cuda/plan.h"

namespace lstm_fused::cuda {

// What lies in device memory. No output may alias an input, nor the workspace; but grad_gates may
// be gates: a thread reads its cells' gates of a step before it writes the gradients there.
struct LstmBackwardCall {
  LstmShape shape;  // T ≥ 1
  DType dtype = DType::kFloat32;
  const int64_t* lengths = nullptr;     // (N); null: T each. Clamped to [0, T]
  const uint8_t* reset_mask = nullptr;  // (T, N); or null
  // As in common/lstm.h, M = T·N; grad_h_0 and grad_c_0 are always wanted. Rows past a row's
  // length are not read, and those of grad_gates and grad_output are made zero.
  LstmBackwardDirection direction[kMaxDirections];
  void* workspace = nullptr;    // plan.workspace_bytes, 256-byte aligned
  void* blas_handle = nullptr;  // see Blas
  cudaStream_t stream = nullptr;
};

// `plan` must be make_backward_plan's for this shape, dtype and device.
void lstm_backward(const LstmBackwardCall& call, const LstmPlan& plan);

}  // namespace lstm_fused::cuda
