// SPDX-License-Identifier: BSD-3-Clause
#include "cpu/gradients/backward_group.h"

#include <cstring>

namespace lstm_fused::cpu {

BackwardGroup::BackwardGroup(const LstmBackwardArgs& args, const LstmPlan& plan,
                             const KernelTable& table, const BackwardWeights& weights,
                             const Group& group)
    : args_(args),
      direction_(args.direction[group.direction]),
      plan_(plan),
      table_(table),
      weights_(weights),
      group_(group),
      storage_(dtype_size(args.dtype)),
      accumulator_(accumulator_size(args.dtype)),
      operand_(table.operand_size),
      gates_stride_(round_up(kGates * args.shape.hidden_size, kCacheLine / operand_)),
      output_stride_(round_up(args.shape.output_size, kCacheLine / operand_)),
      phases_per_step_((args.shape.projection ? 2 : 1) + (has_norms() ? 1 : 0)),
      team_(plan.team) {
  const LstmShape& shape = args.shape;
  const int64_t rows = group.rows();
  for (Buffer& buffer : grad_gates_) buffer = Buffer(rows * gates_stride_ * operand_);
  if (shape.projection) grad_output_ = Buffer(rows * output_stride_ * operand_);
  dc_ = Buffer(rows * shape.hidden_size * accumulator_);
  c_0_ = Buffer(rows * shape.hidden_size * accumulator_);
  if (args.options) make_option_buffers();
  for (int64_t j = 0; j < rows; ++j) {
    const int64_t n = group_.batch_row(j);
    void* dc = advance(dc_.get(), j * shape.hidden_size, accumulator_);
    if (direction_.grad_c_n) {
      table.storage_to_accumulator(advance(direction_.grad_c_n, n * shape.hidden_size, storage_),
                                   shape.hidden_size, dc);
    } else {
      std::memset(dc, 0, shape.hidden_size * accumulator_);
    }
    table.storage_to_accumulator(advance(direction_.c_0, n * shape.hidden_size, storage_),
                                 shape.hidden_size,
                                 advance(c_0_.get(), j * shape.hidden_size, accumulator_));
  }
}

void BackwardGroup::run(int64_t phase, int partition) {
  const int64_t k = phase / phases_per_step_;
  if (phase % phases_per_step_ == 0 && k > 0) run_initial_gradients(k - 1, partition);
  if (k == group_.steps) return;
  if (has_norms()) return run_norm_phase(k, phase % phases_per_step_, partition);
  if (phases_per_step_ == 2 && phase % 2 == 0) {
    run_output_gradients(k, partition);
  } else {
    run_cells(k, partition);
  }
}

// The recurrent GEMM, d(pre-activations)·W_hh: what step k - 1 sends back to h, for rows from `row`
// on.
Product BackwardGroup::recurrent_gemm(int64_t k, int64_t row) const {
  return product_with(grad_gates_[k % 2], gates_stride_, row, kGates * args_.shape.hidden_size,
                      weights_.w_hh, direction_.weights.w_hh, args_.shape.output_size);
}

// Rows of operands from `row` on times weights (size, columns), packed or as they are.
Product BackwardGroup::product_with(const Buffer& operands, int64_t stride, int64_t row,
                                    int64_t size, const PanelMatrix& packed, const void* weights,
                                    int64_t columns) const {
  Product product;
  product.operand = {advance(operands.get(), row * stride, operand_), stride, nullptr};
  product.size = size;
  if (plan_.unpacked) {
    product.matrix = weights;
    product.matrix_columns = columns;
  } else {
    product.panels = packed.data.get();
  }
  return product;
}

// Gradients of h_0 of the rows whose first step was k.
void BackwardGroup::run_initial_gradients(int64_t k, int partition) {
  if (args_.options) return run_option_initial_gradients(k, partition);
  const int64_t row = rows_with_earlier_step(k);
  LinearStep step;
  step.rows = group_.active(time(k)) - row;
  if (!direction_.grad_h_0 || step.rows <= 0) return;
  step.columns = args_.shape.output_size;
  const int64_t panels = ceil_div(step.columns, table_.nr());
  step.panel_begin = panel_of(partition, panels);
  step.panel_end = panel_of(partition + 1, panels);
  step.product = recurrent_gemm(k + 1, row);
  step.out = skip_rows(
      group_.batch_rows<MutableRows>(direction_.grad_h_0, args_.shape.output_size, storage_), row,
      storage_);
  table_.linear_step(step);
}

// With output projection: the whole gradient of the projected h.
void BackwardGroup::run_output_gradients(int64_t k, int partition) {
  if (args_.options) return run_option_output_gradients(k, partition);
  const LstmShape& shape = args_.shape;
  const int64_t t = time(k);
  const int64_t bounds[] = {0, rows_with_later_step(k), group_.active(t)};
  for (int part = 0; part < 2; ++part) {
    const int64_t row = bounds[part];
    LinearStep step;
    step.rows = bounds[part + 1] - row;
    if (step.rows <= 0) continue;
    step.columns = shape.output_size;
    const int64_t panels = ceil_div(shape.output_size, table_.nr());
    step.panel_begin = panel_of(partition, panels);
    step.panel_end = panel_of(partition + 1, panels);
    step.addends[0] = skip_rows(grad_y_rows(t), row, storage_);
    if (part == 0) {
      step.product = recurrent_gemm(k, row);
    } else {
      step.addends[1] = skip_rows(grad_h_n_rows(), row, storage_);
    }
    step.out =
        skip_rows(piece_rows<MutableRows>(piece_.grad_output, shape.output_size, t), row, storage_);
    step.operand_out = {advance(grad_output_.get(), row * output_stride_, operand_), output_stride_,
                        nullptr};
    table_.linear_step(step);
  }
}

void BackwardGroup::run_cells(int64_t k, int partition) {
  if (args_.options) return run_option_cells(k, partition);
  const LstmShape& shape = args_.shape;
  const int64_t hidden = shape.hidden_size;
  const int64_t t = time(k);
  // Rows differ in two ways: whether a later step sends them a gradient, and whether this is their
  // first step, so that their c_prev is c_0.
  const int64_t later = rows_with_later_step(k), earlier = rows_with_earlier_step(k);
  const int64_t bounds[] = {0, std::min(later, earlier), std::max(later, earlier),
                            group_.active(t)};
  for (int part = 0; part < 3; ++part) {
    const int64_t row = bounds[part];
    BackwardStep step;
    step.rows = bounds[part + 1] - row;
    if (step.rows <= 0) continue;
    step.hidden_size = hidden;
    const int64_t panels = ceil_div(hidden, table_.nr());
    step.panel_begin = panel_of(partition, panels);
    step.panel_end = panel_of(partition + 1, panels);
    step.descending = k % 2;  // serpentine sweep

    // The gradient of h.
    if (shape.projection) {
      step.product = product_with(grad_output_, output_stride_, row, shape.output_size,
                                  weights_.w_hr, direction_.weights.w_hr, hidden);
    } else {
      step.addends[0] = skip_rows(grad_y_rows(t), row, storage_);
      if (row < later) {
        step.product = recurrent_gemm(k, row);
      } else {
        step.addends[1] = skip_rows(grad_h_n_rows(), row, storage_);
      }
    }

    // The cell.
    step.grad_cell_states =
        skip_rows(group_.sequence_rows<Rows>(direction_.grad_cell_states, shape.directions * hidden,
                                             storage_, t),
                  row, storage_);
    step.gates = skip_rows(piece_rows<Rows>(piece_.gates, kGates * hidden, t), row, storage_);
    step.cells = skip_rows(group_.data_rows<Rows>(direction_.cells, hidden, accumulator_, t), row,
                           accumulator_);
    if (row < earlier) {
      step.c_prev =
          skip_rows(group_.data_rows<Rows>(direction_.cells, hidden, accumulator_, time(k + 1)),
                    row, accumulator_);
    } else {
      step.c_prev = {advance(c_0_.get(), row * hidden, accumulator_), hidden, nullptr};
    }
    step.dc = advance(dc_.get(), row * hidden, accumulator_);
    step.grad_gates =
        skip_rows(piece_rows<MutableRows>(piece_.grad_gates, kGates * hidden, t), row, storage_);
    step.operand_out = {advance(grad_gates_[(k + 1) % 2].get(), row * gates_stride_, operand_),
                        gates_stride_, nullptr};
    step.reset = skip_rows(group_.resets(args_.reset_mask, t, group_.active(t)), row);
    table_.backward_step(step);
  }
}

void BackwardGroup::store_initial_gradients(const std::vector<int64_t>& lengths) const {
  if (args_.options) store_option_gradients();
  const LstmShape& shape = args_.shape;
  for (int64_t j = 0; j < group_.rows(); ++j) {
    const int64_t n = group_.batch_row(j);
    if (direction_.grad_c_0) {
      table_.accumulator_to_storage(advance(dc_.get(), j * shape.hidden_size, accumulator_),
                                    shape.hidden_size,
                                    advance(direction_.grad_c_0, n * shape.hidden_size, storage_));
    }
    // A row without steps hands its final gradient on.
    if (direction_.grad_h_0 && lengths[group_.begin + j] == 0) {
      void* out = advance(direction_.grad_h_0, n * shape.output_size, storage_);
      const int64_t bytes = shape.output_size * storage_;
      if (direction_.grad_h_n) {
        std::memcpy(out, advance(direction_.grad_h_n, n * shape.output_size, storage_), bytes);
      } else {
        std::memset(out, 0, bytes);
      }
    }
  }
}

}  // namespace lstm_fused::cpu
