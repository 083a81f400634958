// SPDX-License-Identifier: BSD-3-Clause
// What one LSTM layer computes: shapes, the layout of its sequences, and its arguments.
//
// Notation, used in every header:
//   T steps, N rows of the batch, D input size, H hidden size, P output size (proj_size, or H),
//   L directions (1 or 2), M = Σ lengths rows of real data (T·N when all lengths are equal).
// All arrays are row-major and contiguous unless a stride is given; strides count elements.
// `storage` is the dtype of the tensors; `accumulator` is float, or double for float64.
#pragma once

#include <cstdint>
#include <vector>

#include "common/cell_options.h"
#include "common/types.h"

namespace lstm_fused {

constexpr int kMaxDirections = 2;

struct LstmShape {
  int64_t steps = 0;        // T
  int64_t batch = 0;        // N
  int64_t input_size = 0;   // D
  int64_t hidden_size = 0;  // H
  int64_t output_size = 0;  // P
  int directions = 1;       // L
  bool projection = false;  // of the output: h = W_hr·(o·tanh(c)), Sak et al. 2014
};

// Throws Error unless T, N, D ≥ 0, H, P ≥ 1, L is 1 or 2, P = H without output projection, and all
// are so small that no product of sizes and bytes overflows.
void check_shape(const LstmShape& shape);
// Throws Error unless so many samples share the rows of the batch equally.
void check_samples(const LstmShape& shape, int64_t samples);

// Which rows take part in each step. Rows are numbered by decreasing length ("sorted rows"), so
// that those of step t are the prefix [0, active[t]).
struct SequenceLayout {
  std::vector<int64_t> active;       // (T) rows at each step, never increasing
  std::vector<int64_t> step_offset;  // (T + 1) step_offset[t] = Σ active[:t]
  std::vector<int64_t> row_of;       // (N) batch row of a sorted row; empty: the same
  bool packed = false;  // x, y hold M rows, those of step t at step_offset[t]; else (T, N) rows

  int64_t steps() const { return static_cast<int64_t>(active.size()); }
  int64_t data_rows() const { return step_offset.back(); }  // M
  int64_t batch_row(int64_t j) const { return row_of.empty() ? j : row_of[j]; }
  // Row of x or y where step t begins; add the batch row (padded) or sorted row (packed).
  int64_t sequence_row(int64_t t, int64_t batch) const {
    return packed ? step_offset[t] : t * batch;
  }
};

// All rows have `steps` steps.
SequenceLayout dense_layout(int64_t steps, int64_t batch);
// Padded (T, N) sequences of the given lengths, in any order, 0 ≤ length ≤ steps.
SequenceLayout padded_layout(int64_t steps, const std::vector<int64_t>& lengths);
// PackedSequence: batch_sizes[t] rows at step t, never increasing, batch_sizes[0] ≤ batch.
SequenceLayout packed_layout(const std::vector<int64_t>& batch_sizes);

// One direction's parameters, in nn.LSTM's own layout. Read only.
struct LstmWeights {
  const void* w_ih = nullptr;  // (4H, D)
  const void* w_hh = nullptr;  // (4H, P)
  const void* b_ih = nullptr;  // (4H) or null
  const void* b_hh = nullptr;  // (4H) or null
  const void* w_hr = nullptr;  // (P, H), null without output projection
};

struct LstmForwardDirection {
  LstmWeights weights;
  const void* h_0 = nullptr;    // (N, P) storage
  const void* c_0 = nullptr;    // (N, H) storage
  void* y = nullptr;            // out, first column of this direction in rows of L·P storage
  void* h_n = nullptr;          // out (N, P) storage
  void* c_n = nullptr;          // out (N, H) storage
  void* cell_states = nullptr;  // out, as y, in rows of L·H storage; or null
  void* gates = nullptr;        // out (M, 4H) storage, activated, for the backward; or null
  void* cells = nullptr;        // out (M, H) accumulator, for the backward; or null
  CellOptionInputs options;     // with LstmForwardArgs::options
  SavedNorms norms;             // out, where the options have norms
};

// No output may alias an input. Rows of y and cell_states past a row's length are not written.
struct LstmForwardArgs {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  const SequenceLayout* layout = nullptr;
  const void* x = nullptr;               // (T, N, D), or (M, D) when packed; storage
  const uint8_t* reset_mask = nullptr;   // (T, N) or null; only with padded layouts
  const CellOptions* options = nullptr;  // null: the plain cell
  LstmForwardDirection direction[kMaxDirections];
};

// A forward's activated gates anew, from what it was given and what it gave.
struct LstmGatesDirection {
  LstmWeights weights;        // w_hr is not read
  const void* h_0 = nullptr;  // (N, P) storage
  const void* y = nullptr;    // as in the forward
  void* gates = nullptr;      // out (M, 4H) storage
};

struct LstmGatesArgs {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  const SequenceLayout* layout = nullptr;
  const void* x = nullptr;              // as in the forward
  const uint8_t* reset_mask = nullptr;  // (T, N) or null
  LstmGatesDirection direction[kMaxDirections];
};

struct LstmBackwardDirection {
  LstmWeights weights;                     // w_ih and biases are not read
  const void* c_0 = nullptr;               // (N, H) storage
  const void* gates = nullptr;             // (M, 4H) storage, from the forward
  const void* cells = nullptr;             // (M, H) accumulator, from the forward
  const void* grad_y = nullptr;            // as y, in rows of L·P storage; null: zero
  const void* grad_h_n = nullptr;          // (N, P) storage; null: zero
  const void* grad_c_n = nullptr;          // (N, H) storage; null: zero
  const void* grad_cell_states = nullptr;  // as cell_states; null: zero
  void* grad_gates = nullptr;  // out (M, 4H) storage: gradient of the pre-activations; may be gates
  void* grad_output = nullptr;  // out (M, P) storage: gradient of h; null without projection
  void* grad_h_0 = nullptr;     // out (N, P) storage
  void* grad_c_0 = nullptr;     // out (N, H) storage
  // With LstmBackwardArgs::options.
  CellOptionInputs options;
  SavedNorms norms;  // from the forward; not written
  CellOptionGradients grad_options;
};

// The recurrence only: gradients of x and of the weights are GEMMs of grad_gates over M rows.
struct LstmBackwardArgs {
  LstmShape shape;
  DType dtype = DType::kFloat32;
  const SequenceLayout* layout = nullptr;
  const uint8_t* reset_mask = nullptr;   // (T, N) or null
  const CellOptions* options = nullptr;  // as in the forward
  LstmBackwardDirection direction[kMaxDirections];
};

// A direction of a whole layer's backward: the recurrence, and the gradients of the weights.
struct LayerBackwardDirection {
  // grad_gates and grad_output of `recurrence` are ignored; its weights.w_ih is read where grad_x
  // is wanted. Gates that the forward did not save (in all directions or in none) are null, and are
  // computed anew, from w_ih and the biases too.
  LstmBackwardDirection recurrence;
  const void* h_0 = nullptr;  // (N, P) storage
  const void* y = nullptr;    // as in the forward
  // out, storage, in the weights' shapes. All are null where no weight's gradient is wanted; b_*
  // without biases, w_hr without projection.
  void* grad_w_ih = nullptr;
  void* grad_w_hh = nullptr;
  void* grad_b_ih = nullptr;
  void* grad_b_hh = nullptr;
  void* grad_w_hr = nullptr;
};

}  // namespace lstm_fused
