// SPDX-License-Identifier: BSD-3-Clause
// The gradients of weights: sums of outer products over all rows of data.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "cpu/kernels.h"
#include "cpu/team.h"

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

// The order of the sums depends on the shape alone, and so do the results' bits.
void weight_gradient(const WeightGradientArgs& args, Isa isa, const Parallel& parallel);

// The same for the rows of each of B samples: those of sample b are [first_row[b],
// first_row[b + 1]), and each output is (B, …) of what it is above. Bits as of a call for each.
void sample_weight_gradients(const WeightGradientArgs& args, int64_t samples,
                             const int64_t* first_row, Isa isa, const Parallel& parallel);

}  // namespace lstm_fused::cpu
