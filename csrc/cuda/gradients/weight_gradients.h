// SPDX-License-Identifier: BSD-3-Clause
// The gradients of a layer's input and weights: products and sums over all T·N rows of what the
// recurrence's backward gives. Sums are taken in a fixed order.
#pragma once

#include <cuda_runtime_api.h>

#include "common/lstm.h"
#include "cuda/blas.h"

namespace lstm_fused::cuda {

// With what the gradients are products of: recurrence.grad_gates and grad_output, which the
// recurrence gave, zero past a row's length. Rows past a length are not used elsewhere.
struct GradientDirection : LayerBackwardDirection {
  void* cell_output = nullptr;  // (T, N, H) storage: o·tanh(c); null without projection
  // (T, N, P) storage: what W_hh multiplied, zero past a row's length; null: h_prev, which y holds
  const void* recurrent_inputs = nullptr;
  // (T, N, 4H) storage: the gradient of W_hh's product, where that is not grad_gates; or null
  const void* grad_recurrent = nullptr;
};

struct GradientCall {
  LstmShape shape;  // T ≥ 1
  DType dtype = DType::kFloat32;
  int64_t samples = 1;                  // B, which divides N
  const int64_t* lengths = nullptr;     // (N); null: T each
  const uint8_t* reset_mask = nullptr;  // (T, N); or null
  const void* x = nullptr;              // (T, N, D) storage
  GradientDirection direction[kMaxDirections];
  void* workspace = nullptr;  // weight_gradient_workspace, 256-byte aligned
  cudaStream_t stream = nullptr;
};

// Computes o·tanh(c) from a forward's gates and cells. To be called ahead of the backward
// recurrence, which may overwrite gates.
struct CellOutputCall {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  const int64_t* lengths = nullptr;  // (N); null: T each
  const void* gates = nullptr;       // (T, N, 4H) storage
  const void* cells = nullptr;       // (T, N, H) accumulator
  void* out = nullptr;               // (T, N, H) storage, zero past a row's length
  cudaStream_t stream = nullptr;
};
void cell_output(const CellOutputCall& args);

// grad_x (T, N, D) = Σ over directions of grad_gates·W_ih; zero past a row's length.
void input_gradient(const GradientCall& call, void* grad_x, const Blas& blas);

// Computes the gradients of all directions' weights, (B, …) of each: sums over the rows of each of
// B samples, row n of the batch being of sample n % B; over all rows where B is 1.
void weight_gradients(const GradientCall& call, const Blas& blas);

}  // namespace lstm_fused::cuda
