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
  // Arrays saved for the backward; null if not saved. Rows past a length are not written. `gates`
  // may be `preactivations`, in all variants (LstmPlan::preactivations_in_gates): the thread that
  // writes the gates of a cell has read their pre-activations, and no other one does. So no kernel
  // may read these as constant (`__ldg`, `__restrict__`); tests/cuda/test_sass_lint.py looks.
  void* gates = nullptr;  // out (T, N, 4H) storage, activated
  void* cells = nullptr;  // out (T, N, H) accumulator
};

// The recurrence of one direction of a forward, without a bias.
inline ForwardRecurrence forward_recurrence(const LstmForwardDirection& from,
                                            void* preactivations) {
  ForwardRecurrence to;
  to.preactivations = preactivations;
  to.w_hh = from.weights.w_hh;
  to.w_hr = from.weights.w_hr;
  to.h_0 = from.h_0;
  to.c_0 = from.c_0;
  to.y = from.y;
  to.h_n = from.h_n;
  to.c_n = from.c_n;
  to.cell_states = from.cell_states;
  to.gates = from.gates;
  to.cells = from.cells;
  return to;
}

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

// The arguments of a recurrence, from a call: an LstmForwardCall, an LstmBackwardCall, or one with
// options of the cell.
template <typename Call>
RecurrenceArgs recurrence_args(const Call& call, bool allow_tf32, void* workspace) {
  RecurrenceArgs args;
  args.shape = call.shape;
  args.dtype = call.dtype;
  args.allow_tf32 = allow_tf32;
  args.lengths = call.lengths;
  args.reset_mask = call.reset_mask;
  args.workspace = workspace;
  args.stream = call.stream;
  return args;
}

}  // namespace lstm_fused::cuda
