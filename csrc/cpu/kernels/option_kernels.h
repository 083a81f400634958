// SPDX-License-Identifier: BSD-3-Clause
// The kernels of a cell with options (common/cell_options.h), once per instruction set and storage
// type. A step's products are made by linear_step; what follows is these kernels' work, on the same
// units by the same worker. So the plain cell's kernels know nothing of options.
//
// Each works on rows [0, rows) of its arguments and on columns [begin, end), begin being a multiple
// of the vector width; it is thread-safe, allocates nothing and throws nothing.
#pragma once

#include <cstdint>

#include "common/cell_options.h"
#include "cpu/kernels/kernels.h"

namespace lstm_fused::cpu {

// What a cell reads of its direction's options, forward and backward; batch_rows are in batch
// order.
struct CellOptionRows {
  CellOptions options;
  const void* peephole = nullptr;   // (3, H) storage; or null
  Rows keep_c, keep_h;              // uint8, H each; or absent
  Rows reset_c;                     // storage; absent: zero
  const void* gains = nullptr;      // (2, 4H) storage; or null
  const void* cell_norm = nullptr;  // (2, H) storage; there if gains are
};

// Gates and cell from pre-activations.
struct OptionForwardStep {
  int64_t rows = 0, hidden_size = 0;
  int64_t begin = 0, end = 0;  // units
  CellOptionRows options;
  Rows preactivations;             // accumulator, gate order, those of `begin` first
  void* c = nullptr;               // in/out (rows, H) accumulator: the state
  Rows h_prev;                     // accumulator; where h_prev is kept
  MutableRows y;                   // out, storage; absent with output projection
  MutableRows cell_output;         // out, operand: o·tanh(c̃), with output projection
  MutableRows gates, cell_states;  // out, storage; or absent
  MutableRows cells;               // out, accumulator; or absent
  // out, accumulators, with a norm: o and c̃, (2H); what is made of them is normalised_output's work
  MutableRows output_parts;
  Resets next_reset;  // the state is reset after this step
};

// Whole rows' pre-activations, normalised: gain_x·n(input) + gain_h·n(recurrent) + bias.
struct NormaliseGatesStep {
  int64_t rows = 0, hidden_size = 0;
  Rows input, recurrent;        // accumulator, gate order, whole panels: the products
  const void* gains = nullptr;  // (2, 4H) storage
  const void* bias = nullptr;   // accumulator, gate order
  MutableRows out;              // accumulator, gate order; may be `recurrent`
  MutableRows normalised;       // out, (2, 4H) storage; or absent
  MutableRows scales;           // out, (2) accumulator; or absent
};

// h = o·tanh(gain_c·n(c̃) + bias_c) of whole rows, and what zoneout keeps.
struct NormalisedOutputStep {
  int64_t rows = 0, hidden_size = 0;
  CellOptionRows options;
  Rows output_parts;        // accumulator: o and c̃
  Rows h_prev;              // accumulator; where h_prev is kept
  MutableRows y;            // out, storage; absent with output projection
  MutableRows cell_output;  // out, operand; with output projection
};

// The state h that the next step multiplies, from what y shows of it.
struct NextStateStep {
  int64_t rows = 0;
  int64_t begin = 0, end = 0;
  Rows y;                   // storage
  Resets reset;             // rows whose state is replaced
  Rows reset_h;             // storage; absent: zero
  Rows mask;                // storage: factors; or absent
  MutableRows operand_out;  // operand: times the mask; or absent
  MutableRows storage_out;  // storage: times the mask; or absent
  MutableRows h_out;        // accumulator: without the mask; or absent
};

// The gradient of h: what the next step in time sends back, and what comes from outside.
struct StateGradientStep {
  int64_t rows = 0;
  int64_t begin = 0, end = 0;
  Rows product;            // accumulator, that of `begin` first: d(pre-activations)·W_hh; or absent
  Rows mask;               // storage: factors of the product; or absent
  Rows carry;              // accumulator, added to it: what zoneout kept; or absent
  Resets reset;            // rows whose product and carry go to grad_reset, not to h
  MutableRows grad_reset;  // in/out, accumulator; absent: dropped
  Rows addends[2];         // storage: gradients of y and of h_n; or absent
  MutableRows accumulator_out;  // that of `begin` first; may be the product; or absent
  MutableRows storage_out;      // or absent
  MutableRows operand_out;      // or absent
};

// The cell's backward.
struct OptionBackwardStep {
  int64_t rows = 0, hidden_size = 0;
  int64_t begin = 0, end = 0;  // units
  CellOptionRows options;
  Rows dh;                  // accumulator, that of `begin` first: the whole gradient of h
  Rows grad_cell_states;    // storage; or absent
  Rows gates;               // storage
  Rows cells, c_prev;       // accumulator
  void* dc = nullptr;       // in/out (rows, H) accumulator
  MutableRows carry;        // out, accumulator: the part of dh that goes to h_prev as it is
  MutableRows grad_gates;   // out (4H) storage
  MutableRows operand_out;  // out (4H) operand
  MutableRows cell_output;  // out, storage: what W_hr multiplied; or absent
  // With a norm, of whole rows: (3H) accumulators that output_backward leaves for `backward`, which
  // leaves the gradient of the pre-activations (4H) in grad_activations for gates_backward.
  MutableRows output_gradients, grad_activations;
  MutableRows grad_cell_norm;  // in/out (2H) accumulator, += ; or absent
  MutableRows grad_peephole;   // in/out (3H) accumulator, += ; or absent
  Resets reset;                // rows of this step whose c_prev is reset_c, which takes dc
  MutableRows grad_reset_c;    // in/out, accumulator; absent: dropped
};

// From the gradient of whole rows of pre-activations to those of the products.
struct GatesBackwardStep {
  int64_t rows = 0, hidden_size = 0;
  Rows grad_activations;        // (4H) accumulator
  Rows normalised;              // (2, 4H) storage
  Rows scales;                  // (2) accumulator
  const void* gains = nullptr;  // (2, 4H) storage
  MutableRows grad_input;       // out (4H) storage: of x·W_ih
  MutableRows grad_recurrent;   // out (4H) storage: of h_prev·W_hh
  MutableRows operand_out;      // out (4H) operand: of h_prev·W_hh
  MutableRows grad_gains;       // in/out (2, 4H) accumulator, += ; or absent
  MutableRows grad_bias;        // in/out (4H) accumulator, += ; or absent
};

struct OptionKernels {
  void (*normalise_gates)(const NormaliseGatesStep&);
  void (*forward)(const OptionForwardStep&);
  void (*normalised_output)(const NormalisedOutputStep&);
  void (*next_state)(const NextStateStep&);
  void (*state_gradient)(const StateGradientStep&);
  void (*output_backward)(const OptionBackwardStep&);
  void (*backward)(const OptionBackwardStep&);
  void (*gates_backward)(const GatesBackwardStep&);
};

}  // namespace lstm_fused::cpu
