// SPDX-License-Identifier: BSD-3-Clause
// The weights' gradients: GEMMs over all data rows, by torch's BLAS.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/team.h"
#include "torch/layer.h"

namespace lstm_fused {

struct GateGradients {
  Tensor gates;   // (L, M, 4H) of the pre-activations
  Tensor output;  // (L, M, P) of the projected h; no rows without projection
};

// In the order of layer.weights.
std::vector<Tensor> weight_gradients(const Layer& layer, const GateGradients& gradients,
                                     const Tensor& y, const Tensor& gates, const Tensor& cells,
                                     cpu::Isa isa, const cpu::Parallel& parallel);

}  // namespace lstm_fused
