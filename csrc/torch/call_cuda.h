// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA ops, with options of the cell or without, have in common.
#pragma once

#include "cuda/gradients/layer_backward.h"
#include "cuda/lstm_forward.h"
#include "cuda/status.h"
#include "torch/call.h"
#include "torch/cuda_context.h"

namespace lstm_fused {

// Every call begins here: an earlier one on the device may have failed since it was launched.
CudaContext begin_call(const Device& device);

enum class Recurrence { kForward, kBackward };

// What a plan depends on beside the layer.
struct PlannedCall {
  Recurrence recurrence = Recurrence::kForward;
  bool training = false;
  bool recompute = false;
  bool has_options = false, has_norms = false;  // of the cell
};

// Plans a call, and checks the kernel that the plan takes if it is the first time.
cuda::LstmPlan make_plan(const CudaContext& context, const CudaLayer& layer,
                         const PlannedCall& call);

// Leaves groups of blocks out of later plans for the device, and warns of it.
void leave_out_groups(const CudaLayer& layer, const cuda::LaunchRefused& refusal);

// Plans and runs a call by `run`; and once more, without groups of blocks, where the driver refuses
// to launch them. That begins anew, input GEMM and all, with a workspace of the second plan's size:
// what the first attempt has written is written again, and its inputs are as they were.
//
// NOTE: in a capture the driver may have ended it along with the launch. The launches of the second
// attempt then fail, which is raised, and the next capture is planned without groups.
template <typename Run>
void run_or_do_without_groups(const CudaLayer& layer, const Run& run) {
  try {
    return run();
  } catch (const cuda::LaunchRefused& refusal) {
    leave_out_groups(layer, refusal);
  }
  run();
}

Tensor new_workspace(int64_t bytes, const CudaLayer& layer);

// The kernels leave what is saved for rows past a length unwritten: zeroes that, so that a backward
// of other lengths finds no garbage.
void clear_saved(const CudaLayer& layer, const ForwardTensors& tensors);

// NOTE: the kernels always give the states' gradients, which cost next to nothing.
BackwardNeeds with_states(BackwardNeeds needs);

// Fill in all but the workspace.
void set_call(const CudaLayer& layer, const ForwardTensors& tensors, const CudaContext& context,
              cuda::LstmForwardCall& call);
void set_call(const CudaLayer& layer, const BackwardTensors& tensors, const CudaContext& context,
              cuda::LayerBackwardCall& call);

// What a backward gives, without the states' gradients unless they are needed.
BackwardResult needed_result(const CudaLayer& layer, const BackwardTensors& tensors,
                             const BackwardNeeds& needs);

}  // namespace lstm_fused
