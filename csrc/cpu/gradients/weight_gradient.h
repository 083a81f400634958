// SPDX-License-Identifier: BSD-3-Clause
// The gradients of weights: sums of outer products over all rows of data.
#pragma once

#include <cstdint>
#include <vector>

#include "common/types.h"
#include "cpu/gradients/plan.h"
#include "cpu/kernels/kernels.h"
#include "cpu/runtime/scratch.h"
#include "cpu/runtime/team.h"

namespace lstm_fused::cpu {

// grad_weight = Σ_m grad[m]ᵀ·operand[m] for one or two weights that share `grad`, as W_ih and W_hh
// do, and grad_bias = Σ_m grad[m]. No output may alias an input.
struct WeightGradientArgs {
  struct Weight {
    const void* const* operands = nullptr;  // (M) each points at a row of `columns` storage
    int64_t columns = 0;
    void* grad_weight = nullptr;  // out (grad_columns, columns) storage
  };
  DType dtype = DType::kFloat32;
  int64_t rows = 0;                    // M
  const void* const* grads = nullptr;  // (M) each points at a row of grad_columns storage
  int64_t grad_columns = 0;
  Weight weight[2];
  int weights = 1;
  void* grad_bias[2] = {};  // out (grad_columns) storage, the same in both; or null
};

// The sums, in parts that threads can work on at once: of `columns` of grad each. What is added may
// come in several pieces. The results' bits depend on the shape and the pieces alone.
class WeightGradient {
 public:
  // `args`, whose pointers need not point at rows yet, must outlive this. Where the plan has a
  // single block, each part gets all rows in one call of `add`.
  WeightGradient(const WeightGradientArgs& args, const WeightGradientPlan& plan);

  int64_t parts() const { return parts_; }
  // Adds rows [begin, end) to the sums of a part; or nothing, where there is no such part.
  void add(int64_t part, int64_t begin, int64_t end);
  // Writes the part's results.
  void store(int64_t part);

 private:
  struct Part {
    bool has_sums = false;  // else the sums are not initialised
    Buffer columns;         // (part's columns, block_stride_) operand: a block of grad, transposed
    Buffer panels;          // a block of one weight's operands
  };

  int64_t part_begin(int64_t part) const;
  int64_t panels(int weight) const;
  void* sums(int weight, int64_t column) const;
  void* bias_sums(int64_t column) const;
  void add_block(Part& part, int64_t row, int64_t count, int64_t column_begin, int64_t column_end);

  const WeightGradientArgs& args_;
  const KernelTable& table_;
  const int64_t storage_, accumulator_;  // bytes of an element
  const int64_t panel_columns_;
  const WeightGradientPlan plan_;
  const int64_t block_stride_;  // of whole vectors
  int64_t parts_ = 1;
  Buffer sums_[2];    // (grad_columns, whole panels) accumulator; unless it is a single block
  Buffer bias_sums_;  // (grad_columns) accumulator
  std::vector<Part> part_;
};

// The gradients of all rows at once.
void weight_gradient(const WeightGradientArgs& args, Isa isa, const Parallel& parallel);

// weight_gradient for the rows of each of B samples: sample b has rows [first_row[b],
// first_row[b + 1]), and each output is (B, …) of what it is above. Bits as of a call for each.
void sample_weight_gradients(const WeightGradientArgs& args, int64_t samples,
                             const int64_t* first_row, Isa isa, const Parallel& parallel);

}  // namespace lstm_fused::cpu
