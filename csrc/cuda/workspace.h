// SPDX-License-Identifier: BSD-3-Clause
// Where the parts of a call's workspace begin: byte offsets, each a multiple of 256. A part that a
// call does not use has no bytes. Pure functions of the shape, for plans and launchers alike.
#pragma once

#include <cstdint>

#include "common/lstm.h"

namespace lstm_fused::cuda {

// `composite`: with projection, W_hh·W_hr is multiplied out; see stepwise/forward.h.
struct StepwiseForwardWorkspace {
  // (L, N, H) storage: o·tanh(c) of the step before, which is h_prev without projection; zero where
  // a step is reset
  int64_t prev_cell_output = 0;
  int64_t h_prev = 0;           // (L, N, P) storage: W_hr·prev_cell_output, with projection
  int64_t first_recurrent = 0;  // (L, N, 4H) accumulator: h_0·W_hhᵀ
  int64_t cell = 0;             // (L, N, H) accumulator: c, unless it is saved
  int64_t cell_output = 0;      // (T, N, L·H) storage: o·tanh(c), with projection
  int64_t w_hh = 0;             // (L, 4H, P or H) storage: RecurrentWeights::w_hh
  int64_t w_hr = 0;             // (L, P, H) storage: RecurrentWeights::w_hr
  int64_t bytes = 0;
};
StepwiseForwardWorkspace stepwise_forward_workspace(const LstmShape& shape, DType dtype,
                                                    bool training, bool composite);

struct StepwiseBackwardWorkspace {
  int64_t recurrent = 0;  // (L, N, H) accumulator: the later step's gradient of o·tanh(c)
  int64_t cell = 0;       // (L, N, H) accumulator: the later step's gradient of c
  // With projection:
  int64_t grad_cell_output = 0;       // (T, N, L·H) storage: grad_y·W_hr
  int64_t grad_last_cell_output = 0;  // (L, N, H) storage: grad_h_n·W_hr
  int64_t grad_h_prev = 0;            // (L, T, N, P) storage: each step's gradient of its h_prev
  // Copies of weights, with or without projection, as in the forward:
  int64_t w_hh = 0;
  int64_t w_hr = 0;
  int64_t bytes = 0;
};
StepwiseBackwardWorkspace stepwise_backward_workspace(const LstmShape& shape, DType dtype,
                                                      bool composite);

// The workspace of the whole forward.
struct ForwardWorkspace {
  int64_t bias = 0;            // (L, 4H) accumulator
  int64_t preactivations = 0;  // (L, T, N, 4H) accumulator, unless they lie in `gates`
  int64_t recurrence = 0;      // RecurrenceArgs::workspace
  int64_t bytes = 0;
};
ForwardWorkspace forward_workspace(const LstmShape& shape, DType dtype,
                                   bool preactivations_in_gates, int64_t recurrence_bytes);

// The workspace of rebuild_gates.
struct RebuildWorkspace {
  int64_t preactivations = 0;  // (steps_per_product, N, 4H) accumulator, unless they lie in `gates`
  int64_t h_prev = 0;          // (T, N, P) storage; with lengths or resets
  int64_t steps_per_product = 0;
  int64_t bytes = 0;
};
RebuildWorkspace rebuild_workspace(const LstmShape& shape, DType dtype, bool has_lengths,
                                   bool has_reset_mask);

// The workspace of weight_gradients, for each of `samples`.
struct WeightGradientWorkspace {
  int64_t input = 0;   // (T, N, D) storage: x, zero past a length; with lengths
  int64_t h_prev = 0;  // (T, N, P) storage; with lengths or resets
  int64_t sums = 0;    // (parts, samples, 4H) accumulator: partial sums of the bias gradient
  int64_t bytes = 0;
};
WeightGradientWorkspace weight_gradient_workspace(const LstmShape& shape, DType dtype,
                                                  bool has_lengths, bool has_reset_mask,
                                                  int64_t samples);
// Rows that a part of a column sum takes.
int64_t rows_per_sum_part(int64_t rows);

struct LayerBackwardOptions {
  bool has_lengths = false, has_reset_mask = false;
  bool rebuilds_gates = false;
  bool wants_weights = false;
  int64_t samples = 1;           // of the weights' gradients
  int64_t recurrence_bytes = 0;  // LstmPlan::workspace_bytes
};

// The workspace of a layer's whole backward.
struct LayerBackwardWorkspace {
  int64_t grad_gates = 0;   // (L, T, N, 4H) storage
  int64_t grad_output = 0;  // (L, T, N, P) storage: whole gradient of h, with projection
  int64_t cell_output = 0;  // (L, T, N, H) storage: o·tanh(c), with projection, for the weights
  int64_t shared = 0;       // of what runs one after the other: rebuild_gates, the recurrence, and
                            // the weights' gradients
  int64_t bytes = 0;
};
LayerBackwardWorkspace layer_backward_workspace(const LstmShape& shape, DType dtype,
                                                const LayerBackwardOptions& options);

// ---- Where the cell has options ----

// Which kernels run the recurrence: stepwise ones, for layer normalisation or not, or persistent
// ones, with RecurrenceArgs::workspace of so many bytes.
struct OptionsKernels {
  bool stepwise = true, has_norms = false;
  int64_t recurrence_bytes = 0;
};

// The workspace of options_forward.
struct OptionsForwardWorkspace {
  int64_t preactivations = 0;  // (L, T, N, 4H) accumulator, unless they lie in `gates`
  int64_t recurrence = 0;      // RecurrenceArgs::workspace, of persistent kernels
  // Stepwise kernels alone use what follows.
  int64_t recurrent = 0;     // (L, N, 4H) accumulator: the recurrent GEMM's products, with norms
  int64_t output_parts = 0;  // (L, N, 2H) accumulator: o and c̃, with norms
  int64_t entering = 0;      // (L, N, P) storage: what the recurrent GEMM multiplies
  int64_t cell = 0;          // (L, N, H) accumulator: c, unless it is saved
  int64_t cell_output = 0;   // (L, N, H) storage: o·tanh(c̃), with projection
  int64_t h = 0;             // (L, N, P) storage: W_hr·cell_output, with projection
  int64_t w_hh = 0;          // as in StepwiseForwardWorkspace
  int64_t w_hr = 0;
  int64_t bytes = 0;
};
OptionsForwardWorkspace options_forward_workspace(const LstmShape& shape, DType dtype,
                                                  bool training, bool preactivations_in_gates,
                                                  const OptionsKernels& kernels);

// Accumulators of a unit that a step's backward keeps for itself, with norms.
constexpr int kNormScratch = 4 + kGates;

// The workspace of options_recurrence, (L, N, …) accumulators each.
struct OptionsBackwardWorkspace {
  int64_t recurrence = 0;      // as in the forward
  int64_t product = 0;         // P: the later step's gradient, through W_hh
  int64_t dh = 0;              // H: grad_output·W_hr, with projection
  int64_t cell = 0;            // H: the later step's gradient of c
  int64_t carry = 0;           // H: what of the gradient of h goes back as it is
  int64_t sums = 0;            // where those begin that are added up over the steps, from zero
  int64_t grad_peephole = 0;   // 3H
  int64_t grad_reset_h = 0;    // P
  int64_t grad_reset_c = 0;    // H
  int64_t grad_gains = 0;      // 2·4H, with norms
  int64_t grad_cell_norm = 0;  // 2H, with norms
  int64_t grad_bias = 0;       // 4H, with norms
  int64_t sums_end = 0;
  int64_t scratch = 0;  // kNormScratch·H, with norms
  int64_t w_hh = 0;     // as in StepwiseBackwardWorkspace
  int64_t w_hr = 0;
  int64_t bytes = 0;
};
OptionsBackwardWorkspace options_backward_workspace(const LstmShape& shape, DType dtype,
                                                    const OptionsKernels& kernels);

struct OptionsLayerNeeds {
  bool has_lengths = false, has_reset_mask = false;
  bool wants_weights = false;
  bool changes_h = false;  // by a mask, or by a reset to another state than zero
  OptionsKernels kernels;
};

// The workspace of options_backward.
struct OptionsLayerWorkspace {
  int64_t grad_gates = 0;        // (L, T, N, 4H) storage
  int64_t grad_recurrent = 0;    // (L, T, N, 4H) storage, with norms
  int64_t grad_output = 0;       // (L, T, N, P) storage, with projection
  int64_t cell_output = 0;       // (L, T, N, H) storage, with projection, for the weights
  int64_t recurrent_inputs = 0;  // (L, T, N, P) storage, for the weights, where h is changed
  int64_t shared = 0;            // of the recurrence, and then of the weights' gradients
  int64_t bytes = 0;
};
OptionsLayerWorkspace options_layer_workspace(const LstmShape& shape, DType dtype,
                                              const OptionsLayerNeeds& needs);

}  // namespace lstm_fused::cuda
