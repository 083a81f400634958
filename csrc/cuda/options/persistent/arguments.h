// SPDX-License-Identifier: BSD-3-Clause
// What the persistent kernels of options take beside the arguments of the plain ones, and the
// functions that launch them, for each kind of product in a file of its own.
#pragma once

#include "cuda/persistent/arguments.h"
#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

// One direction's.
struct PersistentOptionDirection {
  CellOptionInputs inputs;
  // The forward reads these biases, and not ForwardRecurrence::bias.
  const void* b_ih = nullptr;  // (4H) storage; null without bias
  const void* b_hh = nullptr;
  // The backward adds to these sums, zero at launch; null: not wanted.
  float* grad_peephole = nullptr;  // in/out (N, 3H): added to rows of some of the batch
  float* grad_reset_h = nullptr;   // in/out (N, H)
  float* grad_reset_c = nullptr;   // in/out (N, H)
};

// The fields are as in CellOptions.
struct PersistentOptions {
  bool coupled_gates = false;
  float cell_clip = 0, zoneout_c = 0, zoneout_h = 0;
  PersistentOptionDirection direction[kMaxDirections];
};

template <typename Product>
void launch_cta_option_forward(const RecurrenceArgs& args, const PersistentForwardArgs& kernel_args,
                               const PersistentOptions& options, const PersistentPlan& plan);
template <typename Product>
void launch_group_option_forward(const RecurrenceArgs& args,
                                 const PersistentForwardArgs& kernel_args,
                                 const PersistentOptions& options, const PersistentPlan& plan);
template <typename Product>
void launch_cta_option_backward(const RecurrenceArgs& args,
                                const PersistentBackwardArgs& kernel_args,
                                const PersistentOptions& options, const PersistentPlan& plan);
template <typename Product>
void launch_group_option_backward(const RecurrenceArgs& args,
                                  const PersistentBackwardArgs& kernel_args,
                                  const PersistentOptions& options, const PersistentPlan& plan);

}  // namespace lstm_fused::cuda
