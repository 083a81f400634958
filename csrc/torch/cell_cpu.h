// SPDX-License-Identifier: BSD-3-Clause
// The ops of FusedLSTMCell on CPU tensors, as in schemas.h.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "torch/call.h"

namespace lstm_fused {

using CellResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

CellResult lstm_cell_cpu(const Tensor& input, const std::optional<Tensor>& h,
                         const std::optional<Tensor>& c, const std::vector<Tensor>& weights,
                         bool save_for_backward);
BackwardResult lstm_cell_backward_cpu(const std::optional<Tensor>& grad_h_next,
                                      const std::optional<Tensor>& grad_c_next, const Tensor& input,
                                      const Tensor& h, const Tensor& c,
                                      const std::vector<Tensor>& weights, const Tensor& gates,
                                      const Tensor& cells, bool need_input, bool need_states,
                                      bool need_weights);

}  // namespace lstm_fused
