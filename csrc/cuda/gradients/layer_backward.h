// SPDX-License-Identifier: BSD-3-Clause
// The whole backward of a layer, on padded sequences in device memory: the recurrence, and what
// follows from its gates' gradients. Launches only, as lstm_forward.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/lstm.h"
#include "cuda/plan.h"

namespace lstm_fused::cuda {

// What lies in device memory. No output may alias an input, nor the workspace.
struct LayerBackwardCall {
  LstmShape shape;  // T ≥ 1
  DType dtype = DType::kFloat32;
  const int64_t* lengths = nullptr;     // (N); null: T each. Clamped to [0, T]
  const uint8_t* reset_mask = nullptr;  // (T, N); or null
  const void* x = nullptr;              // (T, N, D) storage
  void* grad_x = nullptr;  // out, as x; null: not wanted. Rows past a row's length are made zero
  // As in common/lstm.h, M = T·N; grad_h_0 and grad_c_0 are always wanted. Rows past a row's length
  // are not used.
  LayerBackwardDirection direction[kMaxDirections];
  void* workspace = nullptr;    // layer_backward_workspace_bytes, 256-byte aligned
  void* blas_handle = nullptr;  // see Blas
  cudaStream_t stream = nullptr;
};

// `plan`, here and below, must be make_backward_plan's for this shape, dtype and device. samples:
// of sample_gradients; 1 for layer_backward. Of the call's pointers this looks at which are null.
int64_t layer_backward_workspace_bytes(const LayerBackwardCall& call, int64_t samples,
                                       const LstmPlan& plan);

void layer_backward(const LayerBackwardCall& call, const LstmPlan& plan);

// What layer_backward and sample_gradients share: the gradient of x, and the weights' gradients of
// each of the samples.
void run_layer_backward(const LayerBackwardCall& call, int64_t samples, const LstmPlan& plan);

}  // namespace lstm_fused::cuda
