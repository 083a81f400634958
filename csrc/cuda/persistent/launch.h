// SPDX-License-Identifier: BSD-3-Clause
// What the persistent kernels take, and the functions that launch those of one kind of product,
// each in a file of its own.
#pragma once

#include <cstdint>

#include "cuda/persistent/plan.h"
#include "cuda/recurrence.h"
#include "cuda/status.h"

namespace lstm_fused::cuda {

// All as in recurrence.h.
template <typename Recurrence>
struct PersistentArgs {
  int steps, batch, hidden_size, directions;
  const int64_t* lengths;
  const uint8_t* reset_mask;
  Recurrence direction[kMaxDirections];
};
using PersistentForwardArgs = PersistentArgs<ForwardRecurrence>;
using PersistentBackwardArgs = PersistentArgs<BackwardRecurrence>;

// What the group kernels take besides; see PersistentPlan.
struct GroupArgs {
  int k_splits, warp_chunks, line_tiles, tiles;
  char* exchange;   // for each group two buffers, of the rows of its tiles
  uint32_t* flags;  // for each group group_flags(blocks); zero at launch
};

template <typename Recurrence>
PersistentArgs<Recurrence> make_persistent_args(const RecurrenceArgs& args,
                                                const Recurrence* directions) {
  PersistentArgs<Recurrence> result{};
  result.steps = static_cast<int>(args.shape.steps);
  result.batch = static_cast<int>(args.shape.batch);
  result.hidden_size = static_cast<int>(args.shape.hidden_size);
  result.directions = args.shape.directions;
  result.lengths = args.lengths;
  result.reset_mask = args.reset_mask;
  for (int i = 0; i < args.shape.directions; ++i) result.direction[i] = directions[i];
  return result;
}

// Defined in persistent_tile.cuh.
struct Bf16Product;
struct F16Product;
struct Tf32Product;
struct F32Product;

// In workspace (device), which it clears on the stream.
GroupArgs make_group_args(const PersistentPlan& plan, void* workspace, cudaStream_t stream);

// Launches a group kernel so that its blocks are resident together, or not at all.
template <typename Kernel, typename Args>
void launch_group_kernel(Kernel* kernel, const char* name, const PersistentPlan& plan,
                         const Args& args, const GroupArgs& group, cudaStream_t stream) {
  // NOTE: always the same, since the limit belongs to the kernel, not to this launch of it: another
  // thread may be about to launch it with more than this plan's bytes.
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(plan.max_shared_bytes)),
             "cudaFuncSetAttribute");
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(plan.group_blocks, plan.groups, args.directions);
  config.blockDim = dim3(plan.threads);
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<Args*>(&args), const_cast<GroupArgs*>(&group)};
  const cudaError_t status =
      cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
  // NOTE: a stream may have fewer SMs than its device, which the plan is made for.
  check_cuda(status, status == cudaErrorCooperativeLaunchTooLarge
                         ? "a launch of blocks that run together (LSTM_FUSED_CUDA_VARIANT=stepwise "
                           "does without)"
                         : name);
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
