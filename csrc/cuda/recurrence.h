// SPDX-License-Identifier: BSD-3-Clause
// The arguments of every kernel variant of the recurrence: one layer, all its directions, in device
// memory. Notation as in common/lstm.h; the sequences are padded, so M = T·N.
//
// Steps are indices of time. At step t the row n takes part where t < lengths[n]. Elsewhere its
// states stay as they are, so the forward direction holds its final states after its own end, and
// the reverse direction, which runs t = T - 1 … 0, its initial states until it begins.
//
// Each direction splits into GEMMs over all T·N, outside of this header, and the recurrence:
//   forward   preactivations = x·W_ihᵀ, the input GEMM; then the recurrence, which adds the bias.
//             With projection y = h is W_hr·(o·tanh(c)), the output projection of the cell output.
//   backward  the recurrence makes grad_gates, zero where a row takes no part; from these come the
//             gradients of x, of the weights and of the biases. Its arguments are those of
//             LstmBackwardDirection in common/lstm.h, with M = T·N: rows of gates, cells and grad_y
//             past a row's length are not read; two directions' grad_gates lie one behind the
//             other, (L, T, N, 4H); and all outputs are wanted, grad_output with projection.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/lstm.h"

namespace lstm_fused::cuda {

struct ForwardRecurrence {
  // (T, N, 4H) accumulator, in gate order i, f, g, o, without bias; two directions' lie one behind
  // the other, (L, T, N, 4H). Stepwise adds h·W_hhᵀ to it. NOTE: filling it with the bias ahead of
  // the product would cost a write and a read of the largest array of all.
  void* preactivations = nullptr;
  const void* bias = nullptr;   // (4H) accumulator, b_ih + b_hh; or null
  const void* w_hh = nullptr;   // (4H, P) storage
  const void* w_hr = nullptr;   // (P, H) storage; null without projection
  const void* h_0 = nullptr;    // (N, P) storage
  const void* c_0 = nullptr;    // (N, H) storage
  void* y = nullptr;            // out, this direction's first column in rows of L·P storage; zero
                                // past a row's length
  void* h_n = nullptr;          // out (N, P) storage
  void* c_n = nullptr;          // out (N, H) storage
  void* cell_states = nullptr;  // out, as y, in rows of L·H storage; or null
  // Arrays saved for the backward; null if not saved. Rows past a length are not written.
  void* gates = nullptr;  // out (T, N, 4H) storage, activated; may be `preactivations` in stepwise
  void* cells = nullptr;  // out (T, N, H) accumulator
};

// The arguments that all directions have in common.
struct RecurrenceArgs {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  bool allow_tf32 = false;              // float32 products may round their operands to TF32
  const int64_t* lengths = nullptr;     // (N) on the device; null: T each. Clamped to [0, T]
  const uint8_t* reset_mask = nullptr;  // (T, N) on the device; or null
  void* workspace = nullptr;            // as many bytes as the plan asks for, 256-byte aligned
  cudaStream_t stream = nullptr;
};

}  // namespace lstm_fused::cuda
