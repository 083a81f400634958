// SPDX-License-Identifier: BSD-3-Clause
// A layer's tensors as the CPU core's arguments.
#pragma once

#include "cpu/gradients/layer_backward.h"
#include "torch/call.h"

namespace lstm_fused {

// Zeroes the rows of what a forward saves, (L, rows, …) or empty, that no kernel writes: the last
// ones, past the rows of data. So a backward of other lengths finds no garbage.
void clear_saved_rows(const CpuLayer& layer, const Tensor& saved);

// A forward's. Zeroes the rows past a length: of sequences, of gates and of cells.
LstmForwardArgs forward_args(const CpuLayer& layer, const ForwardTensors& tensors);

// Has malloc keep the gradients' memory for the next backward once they are freed.
void keep_freed_gradients(const std::vector<Tensor>& grad_weights);

// A backward's. Zeroes the rows of grad_input past a length, which no kernel writes, and calls
// keep_freed_gradients.
cpu::LayerBackwardArgs backward_args(const CpuLayer& layer, const BackwardTensors& tensors);

}  // namespace lstm_fused
