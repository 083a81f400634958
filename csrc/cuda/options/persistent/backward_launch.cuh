// SPDX-License-Identifier: BSD-3-Clause
// Launches the backward kernels of one kind of product; instantiated in backward_*.cu.
#pragma once

#include "common/error.h"
#include "cuda/options/persistent/backward.cuh"

namespace lstm_fused::cuda {

template <typename Product, int kChunks>
void launch_option_backward_kernel(const PersistentBackwardArgs& args,
                                   const PersistentOptions& options, const PersistentPlan& plan,
                                   cudaStream_t stream) {
  // NOTE: more than the 48 KB that a kernel may have without asking.
  const auto kernel = persistent_option_backward_kernel<Product, kChunks>;
  const int bytes = static_cast<int>(plan.shared_bytes);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(plan.tiles), args.directions);
  kernel<<<grid, plan.threads, plan.shared_bytes, stream>>>(args, options);
  check_launch("persistent_option_backward_kernel");
}

template <typename Product>
void launch_cta_option_backward(const PersistentBackwardArgs& args,
                                const PersistentOptions& options, const PersistentPlan& plan,
                                cudaStream_t stream) {
  constexpr auto& kSizes = kCtaChunks<typename Product::Operand>;
  if (plan.chunks == kSizes[0]) {
    return launch_option_backward_kernel<Product, kSizes[0]>(args, options, plan, stream);
  }
  LSTM_CHECK(plan.chunks == kSizes[1], "chunks: got ", plan.chunks, ", wanted those of a plan");
  launch_option_backward_kernel<Product, kSizes[1]>(args, options, plan, stream);
}

}  // namespace lstm_fused::cuda
