// SPDX-License-Identifier: BSD-3-Clause
// Launches the forward kernels of one kind of product; instantiated in forward_*.cu.
#pragma once

#include "cuda/persistent/cta_launch.cuh"
#include "cuda/persistent/forward.cuh"
#include "cuda/persistent/group_forward.cuh"
#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

template <typename Product>
void launch_forward(const RecurrenceArgs& args, const PersistentForwardArgs& kernel_args,
                    const PersistentPlan& plan) {
  using Storage = typename Product::Storage;
  if (plan.group) {
    return launch_group_kernel(&persistent_group_forward_kernel<Product>,
                               "persistent_group_forward_kernel", args, plan, kernel_args);
  }
  launch_cta_kernel<Product, /*kBackward=*/false>(
      "persistent_forward_kernel", args, kernel_args, plan,
      [](const ForwardRecurrence& d) {
        return hold_pairs(sizeof(Storage), {d.y, d.gates}) &&
               hold_pairs(sizeof(float), {d.cells, d.preactivations});
      },
      [](auto chunks, auto is_full, auto moves_pairs) {
        return &persistent_forward_kernel<Product, decltype(chunks)::value,
                                          decltype(is_full)::value, decltype(moves_pairs)::value>;
      });
}

}  // namespace lstm_fused::cuda
