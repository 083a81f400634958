// SPDX-License-Identifier: BSD-3-Clause
// Computes a forward's activated gates again, on padded sequences in device memory. Launches only,
// as lstm_forward.
#pragma once

#include <cuda_runtime_api.h>

#include "common/lstm.h"
#include "cuda/blas.h"

namespace lstm_fused::cuda {

struct RebuildCall {
  LstmShape shape;  // T ≥ 1
  DType dtype = DType::kFloat32;
  const int64_t* lengths = nullptr;              // (N); null: T each
  const uint8_t* reset_mask = nullptr;           // (T, N); or null
  const void* x = nullptr;                       // (T, N, D) storage
  LstmGatesDirection direction[kMaxDirections];  // M = T·N; rows past a length are unspecified
  void* workspace = nullptr;                     // rebuild_workspace, 256-byte aligned
  cudaStream_t stream = nullptr;
};

// Two products over all steps, since every step's h_prev is known, and the gates' activation.
void rebuild_gates(const RebuildCall& call, const Blas& blas);

}  // namespace lstm_fused::cuda
