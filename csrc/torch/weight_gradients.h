// SPDX-License-Identifier: BSD-3-Clause
// The weights' gradients: GEMMs over all data rows, by torch's BLAS.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "cpu/cpu_features.h"
#include "cpu/team.h"
#include "torch/call.h"
#include "torch/layer.h"

namespace lstm_fused {

// In the order of layer.weights.
std::vector<Tensor> weight_gradients(const Layer& layer, const BackwardTensors& tensors,
                                     cpu::Isa isa, const cpu::Parallel& parallel);

}  // namespace lstm_fused
