// SPDX-License-Identifier: BSD-3-Clause
// Launches the backward kernels of one kind of product; instantiated in backward_*.cu.
#pragma once

#include "cuda/persistent/backward.cuh"
#include "cuda/persistent/cta_launch.cuh"
#include "cuda/persistent/group_backward.cuh"
#include "cuda/persistent/group_backward_single.cuh"
#include "cuda/persistent/launch.h"

namespace lstm_fused::cuda {

template <typename Product>
void launch_group_backward(const RecurrenceArgs& args, const PersistentBackwardArgs& kernel_args,
                           const PersistentPlan& plan) {
  dispatch_size<kGroupUnits>("units", plan.units, [&](auto units) {
    constexpr int kUnits = decltype(units)::value;
    if (plan.group_tiles == 1) {
      return launch_group_kernel(&persistent_group_backward_single_kernel<Product, kUnits>,
                                 "persistent_group_backward_single_kernel", args, plan,
                                 kernel_args);
    }
    launch_group_kernel(&persistent_group_backward_kernel<Product, kUnits>,
                        "persistent_group_backward_kernel", args, plan, kernel_args);
  });
}

template <typename Product>
void launch_backward(const RecurrenceArgs& args, const PersistentBackwardArgs& kernel_args,
                     const PersistentPlan& plan) {
  using Storage = typename Product::Storage;
  if (plan.group) return launch_group_backward<Product>(args, kernel_args, plan);
  launch_cta_kernel<Product, /*kBackward=*/true>(
      "persistent_backward_kernel", args, kernel_args, plan,
      [](const BackwardRecurrence& d) {
        return hold_pairs(sizeof(Storage), {d.gates, d.grad_y, d.grad_gates}) &&
               hold_pairs(sizeof(float), {d.cells});
      },
      [](auto chunks, auto is_full, auto moves_pairs) {
        return &persistent_backward_kernel<Product, decltype(chunks)::value,
                                           decltype(is_full)::value, decltype(moves_pairs)::value>;
      });
}

}  // namespace lstm_fused::cuda
