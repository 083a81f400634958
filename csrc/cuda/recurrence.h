// SPDX-License-Identifier: BSD-3-Clause
// What every kernel variant of the recurrence takes and gives: one layer, all its directions, in
// device memory. Notation as in common/lstm.h; the sequences are padded, so M = T·N.
//
// Steps are indices of time. At step t the row n takes part where t < lengths[n]. Elsewhere its
// states stay as they are, so the forward direction holds its final states after its own end, and
// the reverse direction, which runs t = T - 1 … 0, its initial states until it begins.
//
// Each direction splits into GEMMs over all T·N, outside of this header, and the recurrence:
//   forward   preactivations = x·W_ihᵀ; then the recurrence, which adds the bias; with projection
//             y = h is W_hr·(o·tanh(c)).
//   backward  the recurrence gives grad_gates, zero where a row takes no part; from these come the
//             gradients of x, of the weights and of the biases.
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
  // For the backward, or null. Rows past a length are not written.
  void* gates = nullptr;  // out (T, N, 4H) storage, activated; may be `preactivations` in stepwise
  void* cells = nullptr;  // out (T, N, H) accumulator
};

struct BackwardRecurrence {
  const void* w_hh = nullptr;
  const void* w_hr = nullptr;
  const void* c_0 = nullptr;
  const void* gates = nullptr;             // from the forward; rows past a length are unspecified
  const void* cells = nullptr;             // from the forward; likewise
  const void* grad_y = nullptr;            // as y; null: zero. Not read past a row's length
  const void* grad_h_n = nullptr;          // (N, P) storage; null: zero
  const void* grad_c_n = nullptr;          // (N, H) storage; null: zero
  const void* grad_cell_states = nullptr;  // as cell_states; null: zero
  // out (T, N, 4H) storage: gradient of the pre-activations; (L, T, N, 4H) as in the forward.
  void* grad_gates = nullptr;
  void* grad_output = nullptr;  // out (T, N, P) storage: whole gradient of h; null without proj.
  void* grad_h_0 = nullptr;     // out (N, P) storage
  void* grad_c_0 = nullptr;     // out (N, H) storage
};

// What all directions share.
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
