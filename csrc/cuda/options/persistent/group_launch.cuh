// SPDX-License-Identifier: BSD-3-Clause
// Launches the kernels of groups of blocks, of one kind of product; instantiated in group_*.cu.
#pragma once

#include "cuda/options/persistent/group_backward.cuh"
#include "cuda/options/persistent/group_forward.cuh"

namespace lstm_fused::cuda {

template <typename Product>
void launch_group_option_forward(const RecurrenceArgs& args,
                                 const PersistentForwardArgs& kernel_args,
                                 const PersistentOptions& options, const PersistentPlan& plan) {
  launch_group_kernel(&persistent_group_option_forward_kernel<Product>,
                      "persistent_group_option_forward_kernel", args, plan, kernel_args, options);
}

template <typename Product>
void launch_group_option_backward(const RecurrenceArgs& args,
                                  const PersistentBackwardArgs& kernel_args,
                                  const PersistentOptions& options, const PersistentPlan& plan) {
  dispatch_size<kGroupUnits>("units", plan.units, [&](auto units) {
    launch_group_kernel(&persistent_group_option_backward_kernel<Product, decltype(units)::value>,
                        "persistent_group_option_backward_kernel", args, plan, kernel_args,
                        options);
  });
}

}  // namespace lstm_fused::cuda
