// SPDX-License-Identifier: BSD-3-Clause
// The functions that launch the persistent kernels, for each kind of product in a file of its own.
#pragma once

#include "cuda/persistent/arguments.h"
#include "cuda/persistent/plan.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

// The products, defined in tile.cuh.
struct Bf16Product;
struct F16Product;
struct Tf32Product;
struct F32Product;

// A product as a value, for dispatch_product: the products are no complete types on the host.
template <typename T>
struct ProductTag {
  using Product = T;
};

// Calls run(ProductTag<…>{}) for the product of this kind.
template <typename Run>
void dispatch_product(ProductKind kind, const Run& run) {
  switch (kind) {
    case ProductKind::kBFloat16:
      return run(ProductTag<Bf16Product>{});
    case ProductKind::kFloat16:
      return run(ProductTag<F16Product>{});
    case ProductKind::kTf32:
      return run(ProductTag<Tf32Product>{});
    case ProductKind::kFloat32:
      return run(ProductTag<F32Product>{});
  }
}

// Launches the kernel of a plan: that of one block by run_block(tag, kernel_args); or that of
// groups, of the name `group_kernel`, by run_group(tag, kernel_args, group), once the workspace is
// laid out and cleared and holds a copy of the lengths. `tag`: the ProductTag of the plan.
template <typename Args, typename RunBlock, typename RunGroup>
void launch_plan(const RecurrenceArgs& args, const PersistentPlan& plan, const char* group_kernel,
                 Args kernel_args, const RunBlock& run_block, const RunGroup& run_group) {
  dispatch_product(plan.product, [&](auto tag) {
    if (!plan.group) return run_block(tag, kernel_args);
    const GroupArgs group = make_group_args(args, plan, group_kernel);
    kernel_args.lengths = copy_lengths(args, plan);
    run_group(tag, kernel_args, group);
  });
}

// Launches a group kernel so that its blocks are resident together, or not at all: throws
// LaunchRefused where the driver finds that they cannot be.
template <typename Kernel, typename... Args>
void launch_group_kernel(Kernel* kernel, const char* name, const PersistentPlan& plan,
                         int directions, cudaStream_t stream, const Args&... args) {
  // NOTE: the limit is the device's, not this plan's bytes, since it belongs to the kernel and not
  // to a launch of it: another thread may be about to launch it with more.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(plan.max_shared_bytes)),
             "cudaFuncSetAttribute");
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.group_blocks, plan.groups, directions);
  config.blockDim = dim3(plan.threads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<Args*>(&args)...};
  check_group_launch(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments),
                     name);
}

template <typename Product>
void launch_group_forward(const PersistentForwardArgs& args, const GroupArgs& group,
                          const PersistentPlan& plan, cudaStream_t stream);
template <typename Product>
void launch_cta_forward(const PersistentForwardArgs& args, const PersistentPlan& plan,
                        cudaStream_t stream);
template <typename Product>
void launch_group_backward(const PersistentBackwardArgs& args, const GroupArgs& group,
                           const PersistentPlan& plan, cudaStream_t stream);
template <typename Product>
void launch_cta_backward(const PersistentBackwardArgs& args, const PersistentPlan& plan,
                         cudaStream_t stream);

}  // namespace lstm_fused::cuda
