// SPDX-License-Identifier: BSD-3-Clause
// The ops on CUDA tensors, as in schemas.h.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "torch/call.h"
#include "torch/tensors.h"

namespace lstm_fused {

ForwardResult lstm_forward_cuda(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                const std::vector<Tensor>& weights,
                                const std::optional<Tensor>& lengths,
                                const std::optional<Tensor>& batch_sizes,
                                const std::optional<Tensor>& reset_mask, bool save_for_backward,
                                bool return_cell_states, bool recompute);

BackwardResult lstm_backward_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, bool need_weights);

BackwardResult lstm_sample_gradients_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, int64_t samples);

}  // namespace lstm_fused
