// SPDX-License-Identifier: BSD-3-Clause
// A layer's forward where the cell has options: by the persistent kernels of options/persistent, or
// step by step, both directions in the same launches. Then for each step the recurrent GEMM by
// cuBLAS adds what enters it times W_hhᵀ onto x·W_ihᵀ, and one kernel is its epilogue, the cell.
// With projection each step takes one GEMM more, W_hr, and one kernel more: what a mask or a reset
// changes lies between the two products. With layer normalisation the two products of a step stay
// apart, and the kernel has a block for each row. Any shape and dtype.
#pragma once

#include "cuda/lstm_forward.h"

namespace lstm_fused::cuda {

// direction[].options and .norms are those of `options`.
struct OptionsForwardCall : LstmForwardCall {
  CellOptions options;
};

// `plan` must be make_options_forward_plan's for this shape, dtype and device.
void options_forward(const OptionsForwardCall& call, const LstmPlan& plan);

}  // namespace lstm_fused::cuda
