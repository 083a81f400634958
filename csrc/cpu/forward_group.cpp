// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/forward_group.h"

#include <algorithm>
#include <cstring>

namespace lstm_fused::cpu {

ForwardGroup::ForwardGroup(const LstmForwardArgs& args, const LstmPlan& plan,
                           const KernelTable& table, const PackedWeights& weights,
                           const Group& group, const std::vector<int64_t>& lengths)
    : args_(args),
      direction_(args.direction[group.direction]),
      plan_(plan),
      table_(table),
      weights_(weights),
      group_(group),
      storage_(dtype_size(args.dtype)),
      accumulator_(accumulator_size(args.dtype)),
      operand_(plan.dot ? storage_ : table.operand_size),
      cell_output_stride_(round_up(args.shape.hidden_size, kCacheLine / operand_)),
      state_stride_(round_up(args.shape.output_size, kCacheLine / operand_)),
      phases_per_step_((args.shape.projection ? 2 : 1) + (has_norms() ? 1 : 0)),
      lengths_(lengths.begin() + group.begin, lengths.begin() + group.end),
      input_gemms_(plan.team),
      team_(plan.team) {
  const LstmShape& shape = args.shape;
  const int64_t rows = group.rows();
  for (Buffer& state : state_) state = Buffer(rows * state_stride_ * operand_);
  if (shape.projection) cell_output_ = Buffer(rows * cell_output_stride_ * operand_);
  c_ = Buffer(rows * shape.hidden_size * accumulator_);
  load_initial_states(lengths_);
  if (args.options) load_option_states();

  if (plan.input_gemm_steps == 0) return;
  const int64_t panels = ceil_div(weights.w_ih.panels, plan.team);
  const int64_t gemm_rows = plan.input_gemm_steps * rows;
  for (InputGemm& gemm : input_gemms_) {
    if (!has_norms()) {
      gemm.preactivations = Buffer(gemm_rows * panels * table.nr() * accumulator_);
    }
    gemm.rows.reserve(gemm_rows);
    gemm.step_begin.reserve(plan.input_gemm_steps);
    if (operand_ != storage_) gemm.x = Buffer(gemm_rows * shape.input_size * operand_);
  }
}

// Both buffers begin as h_0: a row of the reverse direction begins at any step.
void ForwardGroup::load_initial_states(const std::vector<int64_t>& lengths) {
  const LstmShape& shape = args_.shape;
  for (int64_t j = 0; j < group_.rows(); ++j) {
    const int64_t n = group_.batch_row(j);
    const void* h_0 = advance(direction_.h_0, n * shape.output_size, storage_);
    const void* c_0 = advance(direction_.c_0, n * shape.hidden_size, storage_);
    void* c = advance(c_.get(), j * shape.hidden_size, accumulator_);
    const bool reset = group_.resets_first(args_.reset_mask, j, lengths[j]);
    for (const Buffer& state : state_) {
      void* h = advance(state.get(), j * state_stride_, operand_);
      if (reset) {
        std::memset(h, 0, shape.output_size * operand_);
      } else if (plan_.dot) {
        std::memcpy(h, h_0, shape.output_size * storage_);
      } else {
        table_.storage_to_operand(h_0, shape.output_size, h);
      }
    }
    if (reset) {
      std::memset(c, 0, shape.hidden_size * accumulator_);
    } else {
      table_.storage_to_accumulator(c_0, shape.hidden_size, c);
    }
  }
}

void ForwardGroup::run(int64_t phase, int partition) {
  const int64_t s = phase / phases_per_step_;
  if (phase % phases_per_step_ == 0) {
    if (plan_.input_gemm_steps > 0 && s % plan_.input_gemm_steps == 0) run_input_gemm(s, partition);
    run_cells(s, partition);
  } else if (has_norms() && phase % phases_per_step_ == 1) {
    run_normalised_cells(s, partition);
  } else {
    run_output_projection(s, partition);
  }
}

// x·W_ih + b of steps s, s + 1, … for the partition's own units.
void ForwardGroup::run_input_gemm(int64_t s, int partition) {
  const LstmShape& shape = args_.shape;
  InputGemm& gemm = input_gemms_[partition];
  const int64_t count = std::min(plan_.input_gemm_steps, group_.steps - s);

  // List the rows of x: those of each step, one step after the other.
  gemm.first_step = s;
  gemm.rows.clear();
  gemm.step_begin.clear();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t t = time(s + i);
    const int64_t first = group_.layout->sequence_row(t, shape.batch);
    gemm.step_begin.push_back(static_cast<int64_t>(gemm.rows.size()));
    for (int64_t j = 0; j < group_.active(t); ++j) {
      gemm.rows.push_back(first + group_.batch_row(j));
    }
  }

  LinearStep step;
  step.rows = static_cast<int64_t>(gemm.rows.size());
  step.panel_begin = panel_of(partition, weights_.w_ih.panels);
  step.panel_end = panel_of(partition + 1, weights_.w_ih.panels);
  step.product = {
      {args_.x, shape.input_size, gemm.rows.data()}, shape.input_size, weights_.w_ih.data.get()};
  if (operand_ != storage_) {
    for (int64_t i = 0; i < step.rows; ++i) {
      table_.storage_to_operand(advance(args_.x, gemm.rows[i] * shape.input_size, storage_),
                                shape.input_size,
                                advance(gemm.x.get(), i * shape.input_size, operand_));
    }
    step.product.operand = {gemm.x.get(), shape.input_size, nullptr};
  }
  if (has_norms()) {
    step.accumulator_out = {
        advance(input_products_.get(), step.panel_begin * table_.nr(), accumulator_),
        panels_stride_, nullptr};
  } else {
    step.bias = weights_.bias.get();
    const int64_t stride = (step.panel_end - step.panel_begin) * table_.nr();
    step.accumulator_out = {gemm.preactivations.get(), stride, nullptr};
  }
  table_.linear_step(step);
}

ForwardStep ForwardGroup::cell_step(int64_t s, int partition) {
  const LstmShape& shape = args_.shape;
  const int64_t t = time(s);
  const int64_t panels = ceil_div(shape.hidden_size, table_.vector_width);
  ForwardStep step;
  step.rows = group_.active(t);
  step.hidden_size = shape.hidden_size;
  step.panel_begin = panel_of(partition, panels);
  step.panel_end = panel_of(partition + 1, panels);
  // Serpentine sweep: a step begins with the panels that the step before read last, which are still
  // in a cache. Measured, N=1 on one thread: H=64 6 %, H=256 9 % less.
  step.descending = s % 2;
  step.bias = weights_.bias.get();
  if (plan_.input_gemm_steps > 0) {
    const InputGemm& gemm = input_gemms_[partition];
    const int64_t stride = (step.panel_end - step.panel_begin) * table_.nr();
    const int64_t row = gemm.step_begin[s - gemm.first_step];
    step.preactivations = {advance(gemm.preactivations.get(), row * stride, accumulator_), stride,
                           nullptr};
  } else {
    step.input = {group_.sequence_rows<Rows>(args_.x, shape.input_size, storage_, t),
                  shape.input_size, weights_.w_ih.data.get()};
  }
  step.recurrent = {
      {state_[s % 2].get(), state_stride_, nullptr}, shape.output_size, weights_.w_hh.data.get()};
  step.c = c_.get();
  if (shape.projection) {
    step.h = {cell_output_.get(), cell_output_stride_, nullptr};
    step.h_is_state = false;
  } else {
    step.h = {state_[(s + 1) % 2].get(), state_stride_, nullptr};
    step.y = group_.sequence_rows<MutableRows>(direction_.y, shape.directions * shape.output_size,
                                               storage_, t);
  }
  step.cell_states = group_.sequence_rows<MutableRows>(
      direction_.cell_states, shape.directions * shape.hidden_size, storage_, t);
  step.gates =
      group_.data_rows<MutableRows>(direction_.gates, kGates * shape.hidden_size, storage_, t);
  step.cells = group_.data_rows<MutableRows>(direction_.cells, shape.hidden_size, accumulator_, t);
  step.next_reset = next_reset(s);
  return step;
}

void ForwardGroup::run_cells(int64_t s, int partition) {
  if (has_norms()) return run_norm_products(s, partition);
  if (args_.options) return run_option_cells(s, partition);
  const ForwardStep step = cell_step(s, partition);
  if (plan_.dot) {
    table_.dot_step({step, direction_.weights.w_ih, direction_.weights.w_hh});
  } else {
    table_.forward_step(step);
  }
}

void ForwardGroup::run_output_projection(int64_t s, int partition) {
  const LstmShape& shape = args_.shape;
  const int64_t t = time(s);
  LinearStep step;
  step.rows = group_.active(t);
  step.columns = shape.output_size;
  step.panel_begin = panel_of(partition, weights_.w_hr.panels);
  step.panel_end = panel_of(partition + 1, weights_.w_hr.panels);
  step.product = {{cell_output_.get(), cell_output_stride_, nullptr},
                  shape.hidden_size,
                  weights_.w_hr.data.get()};
  step.out = group_.sequence_rows<MutableRows>(direction_.y, shape.directions * shape.output_size,
                                               storage_, t);
  if (args_.options) {
    table_.linear_step(step);
    return hand_on_state(s, 0, step.rows, step.panel_begin * table_.nr(),
                         step.panel_end * table_.nr());
  }
  step.operand_out = {state_[(s + 1) % 2].get(), state_stride_, nullptr};
  step.reset = next_reset(s);
  table_.linear_step(step);
}

void ForwardGroup::store_final_states() const {
  if (args_.options) return store_option_states();
  const LstmShape& shape = args_.shape;
  for (int64_t j = 0; j < group_.rows(); ++j) {
    const int64_t n = group_.batch_row(j);
    // The buffer that the row's last step wrote: its own last in the forward direction.
    const int64_t last = group_.direction == 0 ? lengths_[j] : group_.steps;
    const void* h = advance(state_[last % 2].get(), j * state_stride_, operand_);
    void* h_n = advance(direction_.h_n, n * shape.output_size, storage_);
    if (plan_.dot) {
      std::memcpy(h_n, h, shape.output_size * storage_);
    } else {
      table_.operand_to_storage(h, shape.output_size, h_n);
    }
    table_.accumulator_to_storage(advance(c_.get(), j * shape.hidden_size, accumulator_),
                                  shape.hidden_size,
                                  advance(direction_.c_n, n * shape.hidden_size, storage_));
  }
}

void add_weights(const LstmForwardArgs& args, const LstmPlan& plan, const KernelTable& table,
                 Packer& packer, std::vector<PackedWeights>& weights) {
  const LstmShape& shape = args.shape;
  weights.resize(shape.directions);
  for (int d = 0; d < shape.directions; ++d) {
    const LstmWeights& from = args.direction[d].weights;
    const int64_t bias_size =
        round_up(shape.hidden_size, table.vector_width) * kGates * accumulator_size(args.dtype);
    weights[d].bias = Buffer(bias_size);
    table.pack_bias(from.b_ih, from.b_hh, shape.hidden_size, weights[d].bias.get());
    if (plan.dot) continue;
    packer.add_gates(from.w_ih, shape.hidden_size, shape.input_size, weights[d].w_ih);
    packer.add_gates(from.w_hh, shape.hidden_size, shape.output_size, weights[d].w_hh);
    if (shape.projection) {
      packer.add_transposed(from.w_hr, shape.output_size, shape.hidden_size, weights[d].w_hr);
    }
  }
}

void pack_weights(const LstmForwardArgs& args, const LstmPlan& plan, const KernelTable& table,
                  const Parallel& parallel, std::vector<PackedWeights>& weights) {
  Packer packer(table);
  add_weights(args, plan, table, packer, weights);
  packer.run(parallel);
}

}  // namespace lstm_fused::cpu
