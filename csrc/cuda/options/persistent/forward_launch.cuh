// SPDX-License-Identifier: BSD-3-Clause
// Launches the forward kernels of one kind of product; instantiated in forward_*.cu.
#pragma once

#include "cuda/options/persistent/cta_launch.cuh"
#include "cuda/options/persistent/forward.cuh"

namespace lstm_fused::cuda {

template <typename Product>
void launch_cta_option_forward(const RecurrenceArgs& args, const PersistentForwardArgs& kernel_args,
                               const PersistentOptions& options, const PersistentPlan& plan) {
  launch_cta_option_kernel<Product>(
      "persistent_option_forward_kernel", args, kernel_args, options, plan, [](auto chunks) {
        return &persistent_option_forward_kernel<Product, decltype(chunks)::value>;
      });
}

}  // namespace lstm_fused::cuda
