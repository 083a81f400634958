// SPDX-License-Identifier: BSD-3-Clause
// Launches the forward kernels of one kind of product; instantiated in forward_*.cu.
#pragma once

#include <type_traits>

#include "common/error.h"
#include "cuda/device/row_grid.cuh"
#include "cuda/persistent/forward.cuh"
#include "cuda/persistent/group_forward.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

// Whether all arrays that full warps access by two elements lie so that they may.
template <typename Storage>
bool moves_pairs(const PersistentForwardArgs& args) {
  for (int i = 0; i < args.directions; ++i) {
    const ForwardRecurrence& d = args.direction[i];
    if (!is_aligned(d.y, 2 * sizeof(Storage)) || !is_aligned(d.gates, 2 * sizeof(Storage)) ||
        !is_aligned(d.cells, 2 * sizeof(float)) ||
        !is_aligned(d.preactivations, 2 * sizeof(float))) {
      return false;
    }
  }
  return true;
}

template <typename Product>
void launch_cta_forward(const PersistentForwardArgs& args, const PersistentPlan& plan,
                        cudaStream_t stream) {
  constexpr auto& kSizes = kCtaChunks<typename Product::Operand>;
  const dim3 grid(static_cast<unsigned>(plan.tiles), args.directions);
  const auto launch = [&](auto chunks) {
    constexpr int kChunks = decltype(chunks)::value;
    auto* kernel = &persistent_forward_kernel<Product, kChunks, false, false>;
    if constexpr (sizeof(typename Product::Operand) == 2) {
      if (plan.full && moves_pairs<typename Product::Storage>(args)) {
        kernel = &persistent_forward_kernel<Product, kChunks, true, true>;
      } else if (plan.full) {
        constexpr bool kHasPairs = full_lane_units(kChunks, /*backward=*/false) == 2;
        kernel = &persistent_forward_kernel<Product, kChunks, true, !kHasPairs>;
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
  check_launch("persistent_forward_kernel");
}

template <typename Product>
void launch_group_forward(const PersistentForwardArgs& args, const GroupArgs& group,
                          const PersistentPlan& plan, cudaStream_t stream) {
  launch_group_kernel(&persistent_group_forward_kernel<Product>, "persistent_group_forward_kernel",
                      plan, args.directions, stream, args, group);
}

}  // namespace lstm_fused::cuda
