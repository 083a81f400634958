// SPDX-License-Identifier: BSD-3-Clause
// A group's steps where the cell has options: the products of linear_step, then the option kernels
// on the same units.
#include <algorithm>
#include <cstring>

#include "cpu/forward_group.h"
#include "cpu/kernels/option_kernels.h"

namespace lstm_fused::cpu {
namespace {

// h is kept from step to step.
bool keeps_h(const LstmForwardArgs& args, const CellOptionInputs& inputs) {
  return inputs.keep_h || args.options->zoneout_h > 0;
}

}  // namespace

// Replaces what load_initial_states has made of the states: masked, and reset to states other than
// zero.
void ForwardGroup::load_option_states() {
  const LstmShape& shape = args_.shape;
  const CellOptionInputs& inputs = direction_.options;
  const int64_t rows = group_.rows();
  if (keeps_h(args_, inputs)) h_prev_ = Buffer(rows * shape.output_size * accumulator_);
  if (has_norms()) make_norm_buffers();
  if (plan_.input_gemm_steps == 0) {
    const int64_t panels = ceil_div(ceil_div(shape.hidden_size, table_.vector_width), plan_.team);
    for (int i = 0; i < plan_.team; ++i) {
      preactivations_.emplace_back(rows * panels * table_.nr() * accumulator_);
    }
  }

  std::vector<uint8_t> resets(rows);
  for (int64_t j = 0; j < rows; ++j) {
    resets[j] = group_.resets_first(args_.reset_mask, j, lengths_[j]);
    if (!resets[j] || !inputs.reset_c) continue;
    table_.storage_to_accumulator(
        advance(inputs.reset_c, group_.batch_row(j) * shape.hidden_size, storage_),
        shape.hidden_size, advance(c_.get(), j * shape.hidden_size, accumulator_));
  }
  NextStateStep step;
  step.rows = rows;
  step.end = shape.output_size;
  step.y = group_.batch_rows<Rows>(direction_.h_0, shape.output_size, storage_);
  step.reset = {resets.data(), nullptr, rows};
  step.reset_h = group_.batch_rows<Rows>(inputs.reset_h, shape.output_size, storage_);
  step.mask = group_.batch_rows<Rows>(inputs.h_mask, shape.output_size, storage_);
  step.h_out = {h_prev_.get(), shape.output_size, nullptr};
  for (const Buffer& state : state_) {
    step.operand_out = {state.get(), state_stride_, nullptr};
    table_.options->next_state(step);
  }
}

// A step's cell, without its units and pre-activations.
OptionForwardStep ForwardGroup::option_step(const ForwardStep& plain, int64_t s) const {
  const LstmShape& shape = args_.shape;
  const CellOptionInputs& inputs = direction_.options;
  const int64_t t = time(s), hidden = shape.hidden_size;
  OptionForwardStep step;
  step.rows = plain.rows;
  step.hidden_size = hidden;
  step.options.options = *args_.options;
  step.options.peephole = inputs.peephole;
  step.options.keep_c = group_.sequence_rows<Rows>(inputs.keep_c, hidden, 1, t);
  step.options.keep_h = group_.sequence_rows<Rows>(inputs.keep_h, hidden, 1, t);
  step.options.reset_c = group_.batch_rows<Rows>(inputs.reset_c, hidden, storage_);
  step.options.gains = inputs.gains;
  step.options.cell_norm = inputs.cell_norm;
  step.c = plain.c;
  step.h_prev = {h_prev_.get(), hidden, nullptr};
  step.y = plain.y;
  if (shape.projection) step.cell_output = plain.h;
  step.gates = plain.gates;
  step.cell_states = plain.cell_states;
  step.cells = plain.cells;
  step.next_reset = plain.next_reset;
  return step;
}

void ForwardGroup::run_option_cells(int64_t s, int partition) {
  const LstmShape& shape = args_.shape;
  const ForwardStep plain = cell_step(s, partition);

  // Complete the pre-activations, those of the input GEMM in place.
  LinearStep gemm;
  gemm.rows = plain.rows;
  gemm.panel_begin = plain.panel_begin;
  gemm.panel_end = plain.panel_end;
  const int64_t stride = (plain.panel_end - plain.panel_begin) * table_.nr();
  if (plan_.input_gemm_steps > 0) {
    InputGemm& ahead = input_gemms_[partition];
    const int64_t row = ahead.step_begin[s - ahead.first_step];
    gemm.product = plain.recurrent;
    gemm.accumulator_out = {advance(ahead.preactivations.get(), row * stride, accumulator_), stride,
                            nullptr};
    gemm.accumulate = true;
  } else {
    gemm.product = plain.input;
    gemm.second = plain.recurrent;
    gemm.bias = plain.bias;
    gemm.accumulator_out = {preactivations_[partition].get(), stride, nullptr};
  }
  table_.linear_step(gemm);

  OptionForwardStep step = option_step(plain, s);
  step.begin = plain.panel_begin * table_.vector_width;
  step.end = std::min(plain.panel_end * table_.vector_width, shape.hidden_size);
  step.preactivations = {gemm.accumulator_out.base, stride, nullptr};
  table_.options->forward(step);
  if (!shape.projection) hand_on_state(s, 0, step.rows, step.begin, step.end);
}

// Makes columns [begin, end) of some rows of the state that the next step multiplies, from y.
void ForwardGroup::hand_on_state(int64_t s, int64_t row_begin, int64_t row_end, int64_t begin,
                                 int64_t end) {
  const LstmShape& shape = args_.shape;
  const CellOptionInputs& inputs = direction_.options;
  const int64_t output = shape.output_size, t = time(s);
  const auto skip = [&](const auto& rows, int64_t size) {
    return skip_rows(rows, row_begin, size);
  };
  NextStateStep step;
  step.rows = row_end - row_begin;
  step.begin = begin;
  step.end = std::min(end, output);
  step.y = skip(group_.sequence_rows<Rows>(direction_.y, shape.directions * output, storage_, t),
                storage_);
  step.reset = skip_rows(next_reset(s), row_begin);
  step.reset_h = skip(group_.batch_rows<Rows>(inputs.reset_h, output, storage_), storage_);
  step.mask = skip(group_.batch_rows<Rows>(inputs.h_mask, output, storage_), storage_);
  step.operand_out = {advance(state_[(s + 1) % 2].get(), row_begin * state_stride_, operand_),
                      state_stride_, nullptr};
  step.h_out = {advance(h_prev_.get(), row_begin * output, accumulator_), output, nullptr};
  table_.options->next_state(step);
}

// h_n is what y shows of the last step: the state itself has been masked.
void ForwardGroup::store_option_states() const {
  const LstmShape& shape = args_.shape;
  const int64_t bytes = shape.output_size * storage_;
  for (int64_t j = 0; j < group_.rows(); ++j) {
    const int64_t n = group_.batch_row(j);
    const void* h = advance(direction_.h_0, n * shape.output_size, storage_);
    if (lengths_[j] > 0) {
      const int64_t last = group_.direction == 0 ? lengths_[j] - 1 : 0;
      const Rows y = group_.sequence_rows<Rows>(direction_.y, shape.directions * shape.output_size,
                                                storage_, last);
      h = advance(y.base, (y.order ? y.order[j] : j) * y.stride, storage_);
    }
    std::memcpy(advance(direction_.h_n, n * shape.output_size, storage_), h, bytes);
    table_.accumulator_to_storage(advance(c_.get(), j * shape.hidden_size, accumulator_),
                                  shape.hidden_size,
                                  advance(direction_.c_n, n * shape.hidden_size, storage_));
  }
}

}  // namespace lstm_fused::cpu
