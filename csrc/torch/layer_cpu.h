// SPDX-License-Identifier: BSD-3-Clause
// A layer's tensors as the CPU core's arguments.
#pragma once

#include "cpu/gradients/layer_backward.h"
#include "torch/call.h"

namespace lstm_fused {

// A forward's. Zeroes the rows past a length, which no kernel writes: of sequences; and of what is
// saved, where they are the last rows, so that a backward of other lengths finds no garbage.
LstmForwardArgs forward_args(const CpuLayer& layer, const ForwardTensors& tensors);

// A backward's. Zeroes the rows of grad_input past a length, which no kernel writes.
cpu::LayerBackwardArgs backward_args(const CpuLayer& layer, const BackwardTensors& tensors);

}  // namespace lstm_fused
