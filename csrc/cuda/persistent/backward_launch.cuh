// SPDX-License-Identifier: BSD-3-Clause
// Launches the backward kernels of one kind of product; instantiated in backward_*.cu.
#pragma once

#include "common/error.h"
#include "cuda/persistent/backward.cuh"
#include "cuda/persistent/group_backward.cuh"
#include "cuda/persistent/launch.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

template <typename Product>
void launch_cta_backward(const PersistentBackwardArgs& args, const PersistentPlan& plan,
                         cudaStream_t stream) {
  constexpr auto& kSizes = kCtaChunks<typename Product::Operand>;
  const dim3 grid(static_cast<unsigned>(plan.tiles), args.directions);
  if (plan.chunks == kSizes[0]) {
    persistent_backward_kernel<Product, kSizes[0]><<<grid, plan.threads, 0, stream>>>(args);
  } else {
    LSTM_CHECK(plan.chunks == kSizes[1], "chunks: got ", plan.chunks, ", wanted those of a plan");
    persistent_backward_kernel<Product, kSizes[1]><<<grid, plan.threads, 0, stream>>>(args);
  }
  check_launch("persistent_backward_kernel");
}

template <typename Product>
void launch_group_backward(const PersistentBackwardArgs& args, const GroupArgs& group,
                           const PersistentPlan& plan, cudaStream_t stream) {
  constexpr char kName[] = "persistent_group_backward_kernel";
  if (plan.units == kGroupUnits[0]) {
    launch_group_kernel(&persistent_group_backward_kernel<Product, kGroupUnits[0]>, kName, plan,
                        args.directions, stream, args, group);
  } else {
    LSTM_CHECK(plan.units == kGroupUnits[1], "units: got ", plan.units, ", wanted those of a plan");
    launch_group_kernel(&persistent_group_backward_kernel<Product, kGroupUnits[1]>, kName, plan,
                        args.directions, stream, args, group);
  }
}

}  // namespace lstm_fused::cuda
