// SPDX-License-Identifier: BSD-3-Clause
// Launches the forward kernels of one kind of product; instantiated in forward_*.cu.
#pragma once

#include "common/error.h"
#include "cuda/persistent/forward.cuh"
#include "cuda/persistent/group_forward.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

template <typename Product>
void launch_cta_forward(const PersistentForwardArgs& args, const PersistentPlan& plan,
                        cudaStream_t stream) {
  constexpr auto& kSizes = kCtaChunks<typename Product::Operand>;
  const dim3 grid(static_cast<unsigned>(plan.tiles), args.directions);
  if (plan.chunks == kSizes[0]) {
    persistent_forward_kernel<Product, kSizes[0]><<<grid, plan.threads, 0, stream>>>(args);
  } else {
    LSTM_CHECK(plan.chunks == kSizes[1], "chunks: got ", plan.chunks, ", wanted those of a plan");
    persistent_forward_kernel<Product, kSizes[1]><<<grid, plan.threads, 0, stream>>>(args);
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
