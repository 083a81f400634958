// SPDX-License-Identifier: BSD-3-Clause
// The gradients of a layer's input and weights: products and sums over all T·N rows of what the
// recurrence's backward gives. Sums are taken in a fixed order.
#pragma once

#include <cuda_runtime_api.h>

#include "common/lstm.h"
#include "cuda/blas.h"

namespace lstm_fused::cuda {

struct GradientDirection {
  const void* grad_gates = nullptr;   // (T, N, 4H) storage, zero past a row's length
  const void* grad_output = nullptr;  // (T, N, P) storage, as grad_gates; null without projection
  // For the gradient of x:
  const void* w_ih = nullptr;  // (4H, D) storage
  // For the gradients of the weights. Rows past a length are not used.
  const void* h_0 = nullptr;          // (N, P) storage
  const void* y = nullptr;            // this direction's first column in rows of L·P storage
  const void* cell_output = nullptr;  // (T, N, H) storage: o·tanh(c); null without projection
  void* grad_w_ih = nullptr;          // out (4H, D) storage
  void* grad_w_hh = nullptr;          // out (4H, P) storage
  void* grad_b_ih = nullptr;          // out (4H) storage; null without bias
  void* grad_b_hh = nullptr;          // out (4H) storage, as grad_b_ih; null without bias
  void* grad_w_hr = nullptr;          // out (P, H) storage; null without projection
};

struct GradientCall {
  LstmShape shape;  // T ≥ 1
  DType dtype = DType::kFloat32;
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

// Copies of what the gradients of W_ih and W_hh multiply grad_gates by, zero where a row takes no
// part: x, to out (T, N, D), and a direction's h_prev, to out (T, N, P).
void gather_input(const GradientCall& call, void* out);
void gather_h_prev(const GradientCall& call, int direction, void* out);

// Computes the gradients of all directions' weights.
void weight_gradients(const GradientCall& call, const Blas& blas);

}  // namespace lstm_fused::cuda
