// SPDX-License-Identifier: BSD-3-Clause
// The weights' gradients: sums over all data rows.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/team.h"
#include "torch/call.h"
#include "torch/layer.h"

namespace lstm_fused {

// o·tanh(c), which W_hr's gradient multiplies, (L, M, H); no rows without projection. Ahead of the
// recurrence, which may overwrite the gates.
Tensor unprojected_output(const Layer& layer, const BackwardTensors& tensors, cpu::Isa isa,
                          const cpu::Parallel& parallel);

// In the order of layer.weights.
std::vector<Tensor> weight_gradients(const Layer& layer, const BackwardTensors& tensors,
                                     const Tensor& unprojected, cpu::Isa isa,
                                     const cpu::Parallel& parallel);

// What the weights' gradients are products of, its rows in the order of layer.input's; zero past a
// row's length. The last two have no rows without projection.
struct WeightOperands {
  Tensor grad_gates;   // (L, rows, 4H)
  Tensor previous;     // (L, rows, P) the state that entered each step
  Tensor input;        // (rows, D)
  Tensor grad_output;  // (L, rows, P)
  Tensor unprojected;  // (L, rows, H) o·tanh(c)
};
WeightOperands weight_operands(const Layer& layer, const BackwardTensors& tensors,
                               const Tensor& unprojected, const cpu::Parallel& parallel);

}  // namespace lstm_fused
