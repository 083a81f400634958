// SPDX-License-Identifier: BSD-3-Clause
// The ops' schemas. T and N reach an op through tensor shapes only, so that they stay symbolic.
#pragma once

namespace lstm_fused {

// One layer, both directions. `weights` holds for each direction w_ih, w_hh [, b_ih, b_hh] [,
// w_hr]. Without batch_sizes input is (T, N, D); with them it is a PackedSequence's data. Returns
// y, h_n, c_n, cell_states, gates, cells; the last two are for the backward, and those not asked
// for are empty.
constexpr const char* kLstmForwardSchema =
    "lstm_forward(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? lengths, "
    "Tensor? batch_sizes, Tensor? reset_mask, bool save_for_backward, "
    "bool return_cell_states) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";

// Returns grad_input, grad_h_0, grad_c_0 and grad_weights; those not asked for are empty.
constexpr const char* kLstmBackwardSchema =
    "lstm_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, "
    "Tensor? grad_cell_states, Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, "
    "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, Tensor y, Tensor gates, "
    "Tensor cells, bool need_input, bool need_states, bool need_weights) -> "
    "(Tensor, Tensor, Tensor, Tensor[])";

}  // namespace lstm_fused
