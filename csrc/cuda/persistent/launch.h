// SPDX-License-Identifier: BSD-3-Clause
// The functions that launch the persistent kernels, for each kind of product in a file of its own.
#pragma once

#include <iterator>
#include <type_traits>

#include "common/error.h"
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

// Calls run(std::integral_constant<int, size>{}) for the size of a plan, which is one of the two
// that kernels are compiled for. `what`: of which the plan has so many.
template <const auto& kSizes, typename Run>
void dispatch_size(const char* what, int size, const Run& run) {
  static_assert(std::size(kSizes) == 2, "all sizes are looked at");
  if (size == kSizes[0]) return run(std::integral_constant<int, kSizes[0]>{});
  LSTM_CHECK(size == kSizes[1], what, ": got ", size, ", wanted those of a plan");
  run(std::integral_constant<int, kSizes[1]>{});
}

// Launches a group kernel, once the workspace is laid out and cleared and holds a copy of the
// lengths, so that its blocks are resident together, or not at all: throws LaunchRefused where the
// driver finds that they cannot be. `name`: the kernel's, which every error of it has. `options`:
// what a kernel of options takes besides.
template <typename Kernel, typename Args, typename... Options>
void launch_group_kernel(Kernel* kernel, const char* name, const RecurrenceArgs& args,
                         const PersistentPlan& plan, Args kernel_args, const Options&... options) {
  static_assert(std::is_same_v<Kernel, void(Args, Options..., GroupArgs)>,
                "the kernel's arguments");
  const GroupArgs group = make_group_args(args, plan, name);
  kernel_args.lengths = copy_lengths(args, plan);
  // NOTE: the limit is the device's, not this plan's bytes, since it belongs to the kernel and not
  // to a launch of it: another thread may be about to launch it with more.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(plan.max_shared_bytes)),
             "cudaFuncSetAttribute");
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.group_blocks, plan.groups, kernel_args.directions);
  config.blockDim = dim3(plan.threads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = args.stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  void* arguments[] = {&kernel_args, const_cast<Options*>(&options)...,
                       const_cast<GroupArgs*>(&group)};
  check_group_launch(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments),
                     name);
}

// Launch the kernel of a plan.
template <typename Product>
void launch_forward(const RecurrenceArgs& args, const PersistentForwardArgs& kernel_args,
                    const PersistentPlan& plan);
template <typename Product>
void launch_backward(const RecurrenceArgs& args, const PersistentBackwardArgs& kernel_args,
                     const PersistentPlan& plan);

}  // namespace lstm_fused::cuda
