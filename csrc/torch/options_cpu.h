// SPDX-License-Identifier: BSD-3-Clause
// The ops of a layer whose cell has options; see schemas.h.
#pragma once

#include <optional>
#include <vector>

#include "torch/options.h"

namespace lstm_fused {

OptionForwardResult lstm_options_forward_cpu(
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, bool save_for_backward, bool return_cell_states, bool recompute);

OptionBackwardResult lstm_options_backward_cpu(
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
