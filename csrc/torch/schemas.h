// SPDX-License-Identifier: BSD-3-Clause
// The ops' schemas. T and N reach an op through tensor shapes only, so that they stay symbolic.
#pragma once

namespace lstm_fused {

// One layer, both directions. `weights` holds for each direction w_ih, w_hh [, b_ih, b_hh] [,
// w_hr]. Without batch_sizes input is (T, N, D); with them it is a PackedSequence's data. Returns
// y, h_n, c_n, cell_states, gates, cells; the last two are for the backward, and those not asked
// for are empty: of save_for_backward, `recompute` leaves out the gates, four fifths of the memory.
constexpr const char* kLstmForwardSchema =
    "lstm_forward(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? lengths, "
    "Tensor? batch_sizes, Tensor? reset_mask, bool save_for_backward, "
    "bool return_cell_states, bool recompute=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor)";

// The fast path of a call that needs no gradients, masks or cell states: the first three results
// of lstm_forward, input being (T, N, D). Without h_0 or c_0 that state is zero. Of several layers
// `weights` and the states hold those of all, layer by layer. For eager calls on the CPU alone,
// where a step of a small LSTM takes less time than making the other results does.
constexpr const char* kLstmInferenceSchema =
    "lstm_inference(Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] weights, int directions, "
    "int num_layers=1) -> (Tensor, Tensor, Tensor)";

// Returns grad_input, grad_h_0, grad_c_0 and grad_weights; those not asked for are empty. Without
// gates (an empty tensor of one dimension) it computes them anew.
constexpr const char* kLstmBackwardSchema =
    "lstm_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, "
    "Tensor? grad_cell_states, Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, "
    "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, Tensor y, Tensor gates, "
    "Tensor cells, bool need_input, bool need_states, bool need_weights) -> "
    "(Tensor, Tensor, Tensor, Tensor[])";

// A backward that gives the weights' gradients of each of B `samples`, (B, …) in the place of (…):
// row n of the batch is of sample n % B. Returns what lstm_backward does.
constexpr const char* kLstmSampleGradientsSchema =
    "lstm_sample_gradients(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, "
    "Tensor? grad_cell_states, Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, "
    "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, Tensor y, Tensor gates, "
    "Tensor cells, bool need_input, bool need_states, int samples) -> "
    "(Tensor, Tensor, Tensor, Tensor[])";

// lstm_forward with options of the cell, whose formulas common/cell_options.h has. peephole (L, 3,
// H): w_ci, w_cf, w_co. h_mask (L, N, P): factors of h where it enters W_hh. keep_c and keep_h,
// bool (L, rows of input, H): where zoneout keeps c and h; without them zoneout_c and zoneout_h are
// the parts that are kept. reset_h (L, N, P) and reset_c (L, N, H): the state that enters where
// reset_mask is set. gains (L, 2, 4H) and cell_norm (L, 2, H), gain and bias: layer normalisation.
// cell_clip 0: no limit. Returns beside lstm_forward's results normalised (L, rows, 8H) and scales
// (L, rows, 2), for the backward, empty as its gates may be.
constexpr const char* kLstmOptionsForwardSchema =
    "lstm_options_forward(Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, Tensor? lengths, "
    "Tensor? batch_sizes, Tensor? reset_mask, Tensor? peephole, Tensor? h_mask, Tensor? keep_c, "
    "Tensor? keep_h, Tensor? reset_h, Tensor? reset_c, Tensor? gains, Tensor? cell_norm, "
    "bool coupled_gates, float cell_clip, float zoneout_c, float zoneout_h, "
    "bool save_for_backward, bool return_cell_states, bool recompute=False) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";

// lstm_backward with options; it needs the gates. Returns what lstm_backward does, and
// grad_peephole, grad_reset_h and grad_reset_c; those not asked for, or of what was not given, are
// empty.
constexpr const char* kLstmOptionsBackwardSchema =
    "lstm_options_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, "
    "Tensor? grad_cell_states, Tensor input, Tensor h_0, Tensor c_0, Tensor[] weights, "
    "Tensor? lengths, Tensor? batch_sizes, Tensor? reset_mask, Tensor? peephole, Tensor? h_mask, "
    "Tensor? keep_c, Tensor? keep_h, Tensor? reset_h, Tensor? reset_c, Tensor? gains, "
    "Tensor? cell_norm, bool coupled_gates, float cell_clip, float zoneout_c, float zoneout_h, "
    "Tensor y, Tensor gates, Tensor cells, Tensor normalised, Tensor scales, bool need_input, "
    "bool need_states, bool need_weights, bool need_options) -> "
    "(Tensor, Tensor, Tensor, Tensor[], Tensor, Tensor, Tensor, Tensor, Tensor)";

// One step, of FusedLSTMCell: input (N, D), h and c (N, H), zero if absent. Returns the next h and
// c and, for the backward (else empty), gates (N, 4H) and cells (N, H). For eager calls on the CPU.
constexpr const char* kLstmCellSchema =
    "lstm_cell(Tensor input, Tensor? h, Tensor? c, Tensor[] weights, bool save_for_backward) -> "
    "(Tensor, Tensor, Tensor, Tensor)";

// Returns grad_input, grad_h, grad_c and grad_weights; those not asked for are empty.
constexpr const char* kLstmCellBackwardSchema =
    "lstm_cell_backward(Tensor? grad_h_next, Tensor? grad_c_next, Tensor input, Tensor h, "
    "Tensor c, Tensor[] weights, Tensor gates, Tensor cells, bool need_input, bool need_states, "
    "bool need_weights) -> (Tensor, Tensor, Tensor, Tensor[])";

// Packs one direction's float32 weights for lstm_quantized, as torch.uint8: w_ih, w_hh [, b_ih,
// b_hh] [, w_hr]. type: "int8", "bfloat16" or "float16". With scales, (4H) each, the weights are
// integers times them already.
constexpr const char* kLstmPackSchema =
    "lstm_pack(Tensor[] weights, str type, Tensor? w_ih_scales=None, Tensor? w_hh_scales=None) -> "
    "Tensor";

// The weights that packed ones stand for; b_hh is zero.
constexpr const char* kLstmUnpackSchema = "lstm_unpack(Tensor packed) -> Tensor[]";

// A stack of layers with packed weights, of each layer and direction, without gradients. States of
// all layers, (layers·L, N, P or H), zero if absent; h_0 must be there with batch_sizes. Else as
// lstm_forward. Returns y, h_n, c_n and cell_states of the last layer (empty unless asked for).
constexpr const char* kLstmQuantizedSchema =
    "lstm_quantized(Tensor input, Tensor? h_0, Tensor? c_0, Tensor[] packed, Tensor? lengths, "
    "Tensor? batch_sizes, Tensor? reset_mask, int hidden_size, int output_size, int directions, "
    "bool return_cell_states) -> (Tensor, Tensor, Tensor, Tensor)";

// One step, of QuantizedLSTMCell: input (N, D), h and c (N, H), zero if absent. Returns the next h
// and c.
constexpr const char* kLstmQuantizedCellSchema =
    "lstm_quantized_cell(Tensor input, Tensor? h, Tensor? c, Tensor packed, int hidden_size) -> "
    "(Tensor, Tensor)";

}  // namespace lstm_fused
