// SPDX-License-Identifier: BSD-3-Clause
// Launches the kernels of groups of blocks, of one kind of product; instantiated in group_*.cu.
#pragma once

#include "common/error.h"
#include "cuda/options/persistent/group_backward.cuh"
#include "cuda/options/persistent/group_forward.cuh"

namespace lstm_fused::cuda {

template <typename Product>
void launch_group_option_forward(const PersistentForwardArgs& args,
                                 const PersistentOptions& options, const GroupArgs& group,
                                 const PersistentPlan& plan, cudaStream_t stream) {
  launch_group_kernel(&persistent_group_option_forward_kernel<Product>,
                      "persistent_group_option_forward_kernel", plan, args.directions, stream, args,
                      options, group);
}

template <typename Product>
void launch_group_option_backward(const PersistentBackwardArgs& args,
                                  const PersistentOptions& options, const GroupArgs& group,
                                  const PersistentPlan& plan, cudaStream_t stream) {
  const auto launch = [&](auto* kernel) {
    launch_group_kernel(kernel, "persistent_group_option_backward_kernel", plan, args.directions,
                        stream, args, options, group);
  };
  if (plan.units == kGroupUnits[0]) {
    return launch(&persistent_group_option_backward_kernel<Product, kGroupUnits[0]>);
  }
  LSTM_CHECK(plan.units == kGroupUnits[1], "units: got ", plan.units, ", wanted those of a plan");
  launch(&persistent_group_option_backward_kernel<Product, kGroupUnits[1]>);
}

}  // namespace lstm_fused::cuda
