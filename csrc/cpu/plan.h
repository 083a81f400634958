// SPDX-License-Identifier: BSD-3-Clause
// How the recurrence of a call is carried out: a pure function of the shape, the dtype and the
// processor's facts.
#pragma once

#include <cstdint>
#include <string>

#include "common/lstm.h"
#include "cpu/cpu_features.h"

namespace lstm_fused::cpu {

struct LstmPlan {
  Isa isa = Isa::kBaseline;  // whose kernels run
  // Weights are used as they are, one dot product per gate and unit, since packing would cost more
  // than the call. Not with output projection, nor with input_gemm_steps.
  bool dot = false;
  // Backward: weights are read as they are, row by row, for the same reason.
  bool unpacked = false;
  // Batches are cut into groups of rows, which never wait for one another.
  int row_groups = 1;
  // Threads that share a group, each with its own hidden units, in step with one another.
  int team = 1;
  // Forward: steps whose x·W_ih is done in one product ahead of them; 0: fused into each step's,
  // which takes x as it is, so that its type must be the kernels' operand type.
  int64_t input_gemm_steps = 0;
};

// What cells compute. Those with options read packed weights alone; those with norms take x·W_ih
// apart from h·W_hh.
enum class CellKind { kPlain, kOptions, kNorms };

// Throw Error where check_shape does.
LstmPlan make_forward_plan(const LstmShape& shape, DType dtype, const CpuFacts& facts,
                           CellKind cell = CellKind::kPlain);
LstmPlan make_backward_plan(const LstmShape& shape, DType dtype, const CpuFacts& facts);

// Whether a backward's products read the weights as they are: LstmPlan::unpacked.
bool reads_weights_unpacked(const LstmShape& shape, DType dtype, Isa isa);
// Rows of data up to which packing costs more than it saves, whatever T is.
int64_t max_unpacked_rows(DType dtype, Isa isa);

// The plan in one line.
std::string describe_forward(const LstmPlan& plan);
std::string describe_backward(const LstmPlan& plan);

// The plan for a shape in one line, and why; for lstm_fused.explain. Of the backward see
// gradients/plan.h, which takes over why its recurrence goes as it does.
std::string explain_forward(const LstmShape& shape, DType dtype, const CpuFacts& facts,
                            CellKind cell = CellKind::kPlain);
std::string explain_backward(const LstmPlan& plan, const LstmShape& shape, DType dtype,
                             const CpuFacts& facts);

}  // namespace lstm_fused::cpu
