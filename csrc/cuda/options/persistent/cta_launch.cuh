// SPDX-License-Identifier: BSD-3-Clause
// Launches the kernels of options of one block for each tile of rows and direction.
#pragma once

#include "cuda/options/persistent/arguments.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

// Launches the kernel that kernel_of(chunks) gives of an integral constant.
template <typename Product, typename Args, typename KernelOf>
void launch_cta_option_kernel(const char* name, const RecurrenceArgs& args, const Args& kernel_args,
                              const PersistentOptions& options, const PersistentPlan& plan,
                              const KernelOf& kernel_of) {
  const dim3 grid(static_cast<unsigned>(plan.tiles), kernel_args.directions);
  dispatch_size<kCtaChunks<typename Product::Operand>>("chunks", plan.chunks, [&](auto chunks) {
    auto* kernel = kernel_of(chunks);
    // NOTE: the backward's may be more than the 48 KB that a kernel may have without asking.
    if (plan.shared_bytes > 0) {
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(plan.shared_bytes)),
                 "cudaFuncSetAttribute");
    }
    kernel<<<grid, plan.threads, plan.shared_bytes, args.stream>>>(kernel_args, options);
  });
  check_launch(name);
}

}  // namespace lstm_fused::cuda
