// SPDX-License-Identifier: BSD-3-Clause
// Launches the persistent kernels where the cell has options: both directions, the whole sequence.
#pragma once

#include "cuda/options/backward.h"
#include "cuda/options/forward.h"

namespace lstm_fused::cuda {

// Sums over the steps that the backward makes, of a direction; zero at launch. Null: not wanted.
struct PersistentOptionSums {
  float* peephole = nullptr;  // (N, 3H)
  float* reset_h = nullptr;   // (N, H)
  float* reset_c = nullptr;   // (N, H)
};

// `preactivations`: each direction's (T, N, 4H) float, of the input GEMM, without bias.
// `workspace`: RecurrenceArgs::workspace. N > 0.
void launch_persistent_option_forward(const OptionsForwardCall& call, const LstmPlan& plan,
                                      void* const* preactivations, void* workspace);
void launch_persistent_option_backward(const OptionsBackwardCall& call, const LstmPlan& plan,
                                       const OptionRecurrence* directions,
                                       const PersistentOptionSums* sums, void* workspace);

}  // namespace lstm_fused::cuda
