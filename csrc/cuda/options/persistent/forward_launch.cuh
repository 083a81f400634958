// SPDX-License-Identifier: BSD-3-Clause
// Launches the forward kernels of one kind of product; instantiated in forward_*.cu.
#pragma once

#include "common/error.h"
#include "cuda/options/persistent/forward.cuh"

namespace lstm_fused::cuda {

template <typename Product>
void launch_cta_option_forward(const PersistentForwardArgs& args, const PersistentOptions& options,
                               const PersistentPlan& plan, cudaStream_t stream) {
  constexpr auto& kSizes = kCtaChunks<typename Product::Operand>;
  const dim3 grid(static_cast<unsigned>(plan.tiles), args.directions);
  if (plan.chunks == kSizes[0]) {
    persistent_option_forward_kernel<Product, kSizes[0]>
        <<<grid, plan.threads, 0, stream>>>(args, options);
  } else {
    LSTM_CHECK(plan.chunks == kSizes[1], "chunks: got ", plan.chunks, ", wanted those of a plan");
    persistent_option_forward_kernel<Product, kSizes[1]>
        <<<grid, plan.threads, 0, stream>>>(args, options);
  }
  check_launch("persistent_option_forward_kernel");
}

}  // namespace lstm_fused::cuda
