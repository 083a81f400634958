// SPDX-License-Identifier: BSD-3-Clause
// The weights' gradients of each sample.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/runtime/team.h"
#include "torch/call.h"
#include "torch/layer.h"

namespace lstm_fused {

// o·tanh(c), which W_hr's gradient multiplies, (L, M, H); no rows without projection. Ahead of the
// recurrence, which may overwrite the gates.
Tensor unprojected_output(const Layer& layer, const BackwardTensors& tensors, cpu::Isa isa,
                          const cpu::Parallel& parallel);

// In the order of layer.weights, (samples, …) each: sums over the rows of each sample, row n of the
// batch being of sample n % samples.
std::vector<Tensor> sample_gradients(const Layer& layer, const BackwardTensors& tensors,
                                     const Tensor& unprojected, int64_t samples, cpu::Isa isa,
                                     const cpu::Parallel& parallel);

}  // namespace lstm_fused
