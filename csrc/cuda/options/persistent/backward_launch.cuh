// SPDX-License-Identifier: BSD-3-Clause
// Launches the backward kernels of one kind of product; instantiated in backward_*.cu.
#pragma once

#include "cuda/options/persistent/backward.cuh"
#include "cuda/options/persistent/cta_launch.cuh"

namespace lstm_fused::cuda {

template <typename Product>
void launch_cta_option_backward(const RecurrenceArgs& args,
                                const PersistentBackwardArgs& kernel_args,
                                const PersistentOptions& options, const PersistentPlan& plan) {
  launch_cta_option_kernel<Product>(
      "persistent_option_backward_kernel", args, kernel_args, options, plan, [](auto chunks) {
        return &persistent_option_backward_kernel<Product, decltype(chunks)::value>;
      });
}

}  // namespace lstm_fused::cuda
