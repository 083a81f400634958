// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA ops, with options of the cell or without, have in common.
#pragma once

#include "cuda/gradients/layer_backward.h"
#include "cuda/lstm_forward.h"
#include "torch/call.h"
#include "torch/cuda_context.h"

namespace lstm_fused {

// Every call begins here: an earlier one on the device may have failed since it was launched.
CudaContext begin_call(const Device& device);

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
