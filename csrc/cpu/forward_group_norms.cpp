// SPDX-License-Identifier: BSD-3-Clause
// A group's steps with layer normalisation, in two phases: each worker's units of the products, and
// then whole rows, since a norm needs all of a row's features.
#include "cpu/forward_group.h"

namespace lstm_fused::cpu {

void ForwardGroup::make_norm_buffers() {
  const int64_t rows = group_.rows();
  panels_stride_ = weights_.w_hh.panels * table_.nr();
  input_products_ = Buffer(plan_.input_gemm_steps * rows * panels_stride_ * accumulator_);
  recurrent_products_ = Buffer(rows * panels_stride_ * accumulator_);
  output_parts_ = Buffer(rows * 2 * args_.shape.hidden_size * accumulator_);
}

void ForwardGroup::run_norm_products(int64_t s, int partition) {
  const ForwardStep plain = cell_step(s, partition);
  LinearStep gemm;
  gemm.rows = plain.rows;
  gemm.panel_begin = plain.panel_begin;
  gemm.panel_end = plain.panel_end;
  gemm.product = plain.recurrent;
  gemm.accumulator_out = {
      advance(recurrent_products_.get(), plain.panel_begin * table_.nr(), accumulator_),
      panels_stride_, nullptr};
  table_.linear_step(gemm);
}

void ForwardGroup::run_normalised_cells(int64_t s, int partition) {
  const LstmShape& shape = args_.shape;
  const int64_t hidden = shape.hidden_size, t = time(s);
  const ForwardStep plain = cell_step(s, partition);
  const int64_t begin = plain.rows * partition / plan_.team;
  const int64_t end = plain.rows * (partition + 1) / plan_.team;
  if (begin == end) return;
  const auto own = [&](const Buffer& buffer, int64_t columns) -> MutableRows {
    return {advance(buffer.get(), begin * columns, accumulator_), columns, nullptr};
  };
  const auto skip = [&](const auto& rows, int64_t size) { return skip_rows(rows, begin, size); };

  // Normalise the pre-activations.
  NormaliseGatesStep gates;
  gates.rows = end - begin;
  gates.hidden_size = hidden;
  const InputGemm& ahead = input_gemms_[partition];
  const int64_t row = ahead.step_begin[s - ahead.first_step] + begin;
  gates.input = {advance(input_products_.get(), row * panels_stride_, accumulator_), panels_stride_,
                 nullptr};
  gates.out = own(recurrent_products_, panels_stride_);
  gates.recurrent = {gates.out.base, panels_stride_, nullptr};
  gates.gains = direction_.options.gains;
  gates.bias = weights_.bias.get();
  const SavedNorms& norms = direction_.norms;
  gates.normalised =
      skip(group_.data_rows<MutableRows>(norms.normalised, kNorms * kGates * hidden, storage_, t),
           storage_);
  gates.scales =
      skip(group_.data_rows<MutableRows>(norms.scales, kNorms, accumulator_, t), accumulator_);
  table_.options->normalise_gates(gates);

  // The cell.
  OptionForwardStep cell = option_step(plain, s);
  cell.rows = gates.rows;
  cell.end = hidden;
  cell.options.keep_c = skip(cell.options.keep_c, 1);
  cell.options.keep_h = skip(cell.options.keep_h, 1);
  cell.options.reset_c = skip(cell.options.reset_c, storage_);
  cell.preactivations = gates.recurrent;
  cell.c = advance(cell.c, begin * hidden, accumulator_);
  cell.h_prev = skip(cell.h_prev, accumulator_);
  cell.y = skip(cell.y, storage_);
  cell.cell_output = skip(cell.cell_output, operand_);
  cell.gates = skip(cell.gates, storage_);
  cell.cell_states = skip(cell.cell_states, storage_);
  cell.cells = skip(cell.cells, accumulator_);
  cell.next_reset = skip_rows(cell.next_reset, begin);
  cell.output_parts = own(output_parts_, 2 * hidden);
  table_.options->forward(cell);

  // The output.
  NormalisedOutputStep output;
  output.rows = gates.rows;
  output.hidden_size = hidden;
  output.options = cell.options;
  output.output_parts = {cell.output_parts.base, 2 * hidden, nullptr};
  output.h_prev = cell.h_prev;
  output.y = cell.y;
  output.cell_output = cell.cell_output;
  table_.options->normalised_output(output);
  if (!shape.projection) hand_on_state(s, begin, end, 0, hidden);
}

}  // namespace lstm_fused::cpu
