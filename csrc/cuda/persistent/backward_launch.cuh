// SPDX-License-Identifier: BSD-3-Clause
// Launches the backward kernels of one kind of product; instantiated in backward_*.cu.
#pragma once

#include <type_traits>

#include "common/error.h"
#include "cuda/device/row_grid.cuh"
#include "cuda/persistent/backward.cuh"
#include "cuda/persistent/group_backward.cuh"
#include "cuda/persistent/group_backward_single.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

// Whether all arrays that full warps access by two elements lie so that they may.
template <typename Storage>
bool moves_pairs(const PersistentBackwardArgs& args) {
  for (int i = 0; i < args.directions; ++i) {
    const BackwardRecurrence& d = args.direction[i];
    if (!is_aligned(d.gates, 2 * sizeof(Storage)) || !is_aligned(d.grad_y, 2 * sizeof(Storage)) ||
        !is_aligned(d.grad_gates, 2 * sizeof(Storage)) || !is_aligned(d.cells, 2 * sizeof(float))) {
      return false;
    }
  }
  return true;
}

template <typename Product>
void launch_cta_backward(const PersistentBackwardArgs& args, const PersistentPlan& plan,
                         cudaStream_t stream) {
  constexpr auto& kSizes = kCtaChunks<typename Product::Operand>;
  const dim3 grid(static_cast<unsigned>(plan.tiles), args.directions);
  const auto launch = [&](auto chunks) {
    constexpr int kChunks = decltype(chunks)::value;
    auto* kernel = &persistent_backward_kernel<Product, kChunks, false, false>;
    if constexpr (sizeof(typename Product::Operand) == 2) {
      if (plan.full && moves_pairs<typename Product::Storage>(args)) {
        kernel = &persistent_backward_kernel<Product, kChunks, true, true>;
      } else if (plan.full) {
        kernel = &persistent_backward_kernel<Product, kChunks, true, false>;
      }
    }
    kernel<<<grid, plan.threads, 0, stream>>>(args);
  };
  if (plan.chunks == kSizes[0]) {
    launch(std::integral_constant<int, kSizes[0]>{});
  } else {
    LSTM_CHECK(plan.chunks == kSizes[1], "chunks: got ", plan.chunks, ", wanted those of a plan");
    launch(std::integral_constant<int, kSizes[1]>{});
  }
  check_launch("persistent_backward_kernel");
}

template <typename Product>
void launch_group_backward(const PersistentBackwardArgs& args, const GroupArgs& group,
                           const PersistentPlan& plan, cudaStream_t stream) {
  const auto launch = [&](auto units) {
    constexpr int kUnits = decltype(units)::value;
    auto* kernel = &persistent_group_backward_kernel<Product, kUnits>;
    if (plan.group_tiles == 1) kernel = &persistent_group_backward_single_kernel<Product, kUnits>;
    launch_group_kernel(kernel, "persistent_group_backward_kernel", plan, args.directions, stream,
                        args, group);
  };
  if (plan.units == kGroupUnits[0]) {
    launch(std::integral_constant<int, kGroupUnits[0]>{});
  } else {
    LSTM_CHECK(plan.units == kGroupUnits[1], "units: got ", plan.units, ", wanted those of a plan");
    launch(std::integral_constant<int, kGroupUnits[1]>{});
  }
}

}  // namespace lstm_fused::cuda
