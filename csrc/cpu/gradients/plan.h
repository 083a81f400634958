// SPDX-License-Identifier: BSD-3-Clause
// How a layer's backward is carried out: a pure function of the shape, the number of data rows, the
// dtype and the processor's facts.
#pragma once

#include <cstdint>
#include <string>

#include "common/lstm.h"
#include "cpu/cpu_features.h"
#include "cpu/plan.h"

namespace lstm_fused::cpu {

// The plan for summing up the gradient of a weight, or of two that share their rows of grad.
struct WeightGradientPlan {
  Isa isa = Isa::kBaseline;     // whose kernels run
  int threads = 1;              // that work on parts of the sums
  int64_t block_rows = 0;       // rows of data in one pass, at most; the results' bits depend on it
  bool single_block = false;    // all rows are one block, whose sums are the results
  bool outer_products = false;  // and so few that packing them would cost more than the sums
};

// How the backward goes through a layer: the recurrence of a piece of some steps, then the
// gradients that follow from its gates' gradients, then the next piece.
struct LayerBackwardPlan {
  LstmPlan recurrence;
  LstmPlan forward;                 // which the gates are computed anew by, where none were saved
  int64_t piece_steps = 1;          // steps that go together, at least 1
  int gradient_threads = 1;         // for the gradients of x and of the weights
  WeightGradientPlan gate_weights;  // W_ih, W_hh and the biases
  WeightGradientPlan output_projection;  // W_hr
};

// sums: of a row's outer products. in_one_piece: all rows are added at once.
WeightGradientPlan make_weight_gradient_plan(int64_t rows, int64_t sums, bool in_one_piece,
                                             DType dtype, Isa isa, int threads);

// data_rows: M, which is below T·N where rows differ in length. piece_steps: steps of a piece where
// pieces may be chosen freely; 0: as the shape and the dtype suggest. All steps go together where
// rows differ in length, and for two directions of a 16-bit type. Throws Error where check_shape
// does, and unless 0 ≤ M ≤ T·N.
LayerBackwardPlan make_layer_backward_plan(const LstmShape& shape, int64_t data_rows, DType dtype,
                                           const CpuFacts& facts, int64_t piece_steps = 0);

// Threads for sums of so many multiply-adds, of those that there are: all, or one.
int gradient_threads(int64_t work, int threads);

// Whether both directions' parts of grad_x are one sum. Elsewhere the second one is added to what
// the first one left, as the two go through time against each other; a 16-bit type would round
// twice.
bool sums_directions_at_once(const LstmShape& shape, DType dtype);

// The plan in one line.
std::string describe_layer_backward(const LayerBackwardPlan& plan, const LstmShape& shape);

// The plan for a shape in one line, and why; for lstm_fused.explain.
std::string explain_layer_backward(const LstmShape& shape, int64_t data_rows, DType dtype,
                                   const CpuFacts& facts);

}  // namespace lstm_fused::cpu
