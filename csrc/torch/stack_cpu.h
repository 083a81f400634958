// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "torch/call.h"

namespace lstm_fused {

// lstm_inference of several layers; see schemas.h.
InferenceResult lstm_stack_cpu(const Tensor& input, const std::optional<Tensor>& h_0,
                               const std::optional<Tensor>& c_0, const std::vector<Tensor>& weights,
                               int64_t directions, int64_t num_layers);

}  // namespace lstm_fused
