// SPDX-License-Identifier: BSD-3-Clause
// The ops on CUDA tensors, as in schemas.h.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "torch/call.h"
#include "torch/options.h"
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

OptionForwardResult lstm_options_forward_cuda(
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, bool save_for_backward, bool return_cell_states, bool recompute);

OptionBackwardResult lstm_options_backward_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, const Tensor& y, const Tensor& gates, const Tensor& cells,
    const Tensor& normalised, const Tensor& scales, bool need_input, bool need_states,
    bool need_weights, bool need_options);

}  // namespace lstm_fused
