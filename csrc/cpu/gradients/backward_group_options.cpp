// SPDX-License-Identifier: BSD-3-Clause
// Backpropagation through time where the cell has options: the products of linear_step, then the
// option kernels on the same columns. No operand is cleared at a reset: what flows back there is
// the gradient of the state that the reset put in.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/gradients/backward_group.h"

namespace lstm_fused::cpu {

void BackwardGroup::make_option_buffers() {
  const LstmShape& shape = args_.shape;
  const CellOptionGradients& wanted = direction_.grad_options;
  const int64_t rows = group_.rows(), hidden = shape.hidden_size, output = shape.output_size;
  const auto zeros = [&](int64_t columns) {
    Buffer buffer(rows * columns * accumulator_);
    if (rows * columns > 0) std::memset(buffer.get(), 0, rows * columns * accumulator_);
    return buffer;
  };
  products_ = Buffer(rows * round_up(output, table_.nr()) * accumulator_);
  if (shape.projection) {
    output_products_ = Buffer(rows * round_up(hidden, table_.nr()) * accumulator_);
  }
  if (direction_.options.keep_h || args_.options->zoneout_h > 0) carry_ = zeros(hidden);
  if (wanted.peephole) grad_peephole_ = zeros(kPeepholes * hidden);
  if (wanted.reset_h) grad_reset_h_ = zeros(output);
  if (wanted.reset_c) grad_reset_c_ = zeros(hidden);
  if (!has_norms()) return;
  output_gradients_ = Buffer(rows * 3 * hidden * accumulator_);
  grad_activations_ = Buffer(rows * kGates * hidden * accumulator_);
  if (wanted.gains) grad_gains_ = zeros(kNorms * kGates * hidden);
  if (wanted.cell_norm) grad_cell_norm_ = zeros(2 * hidden);
  if (wanted.bias) grad_bias_ = zeros(kGates * hidden);
}

// The partition's columns of a product, into rows of `out` from `row` on.
void BackwardGroup::multiply(const Product& product, int64_t rows, int64_t columns, int partition,
                             const Buffer& out, int64_t row) const {
  LinearStep step;
  step.rows = rows;
  step.columns = columns;
  const int64_t panels = ceil_div(columns, table_.nr());
  step.panel_begin = panel_of(partition, panels);
  step.panel_end = panel_of(partition + 1, panels);
  step.product = product;
  const int64_t stride = panels * table_.nr();
  step.accumulator_out = {
      advance(out.get(), row * stride + step.panel_begin * table_.nr(), accumulator_), stride,
      nullptr};
  table_.linear_step(step);
}

// What step k - 1, the next in time, sends back to the h of rows from `row` on, on their way to
// where it is wanted.
StateGradientStep BackwardGroup::returned_gradient(int64_t k, int64_t row,
                                                   const Rows& product) const {
  const int64_t output = args_.shape.output_size, later = time(k - 1);
  StateGradientStep step;
  step.product = product;
  step.mask = skip_rows(group_.batch_rows<Rows>(direction_.options.h_mask, output, storage_), row,
                        storage_);
  step.carry = {advance(carry_.get(), row * output, accumulator_), output, nullptr};
  step.reset = skip_rows(group_.resets(args_.reset_mask, later, group_.active(later)), row);
  step.grad_reset = {advance(grad_reset_h_.get(), row * output, accumulator_), output, nullptr};
  return step;
}

// Gradients of h_0 of the rows whose first step was k.
void BackwardGroup::run_option_initial_gradients(int64_t k, int partition) {
  const int64_t row = rows_with_earlier_step(k), output = args_.shape.output_size;
  const int64_t rows = group_.active(time(k)) - row;
  if (rows <= 0 || (!direction_.grad_h_0 && !grad_reset_h_.get())) return;
  const int64_t panels = ceil_div(output, table_.nr()), stride = panels * table_.nr();
  multiply(recurrent_gemm(k + 1, row), rows, output, partition, products_, row);
  const int64_t begin = panel_of(partition, panels) * table_.nr();
  StateGradientStep step = returned_gradient(
      k + 1, row, {advance(products_.get(), row * stride + begin, accumulator_), stride, nullptr});
  step.rows = rows;
  step.begin = begin;
  step.end = std::min(panel_of(partition + 1, panels) * table_.nr(), output);
  step.storage_out = skip_rows(
      group_.batch_rows<MutableRows>(direction_.grad_h_0, output, storage_), row, storage_);
  table_.options->state_gradient(step);
}

// The whole gradient of h: with output projection as operands of what follows, else in products_.
void BackwardGroup::run_option_output_gradients(int64_t k, int partition) {
  const LstmShape& shape = args_.shape;
  const int64_t t = time(k), output = shape.output_size;
  const int64_t panels = ceil_div(output, table_.nr()), stride = panels * table_.nr();
  const int64_t begin = panel_of(partition, panels) * table_.nr();
  const int64_t bounds[] = {0, rows_with_later_step(k), group_.active(t)};
  for (int part = 0; part < 2; ++part) {
    const int64_t row = bounds[part], rows = bounds[part + 1] - row;
    if (rows <= 0) continue;
    StateGradientStep step;
    void* product = advance(products_.get(), row * stride + begin, accumulator_);
    if (part == 0) {
      multiply(recurrent_gemm(k, row), rows, output, partition, products_, row);
      step = returned_gradient(k, row, {product, stride, nullptr});
    } else {
      step.addends[1] = skip_rows(grad_h_n_rows(), row, storage_);
    }
    step.rows = rows;
    step.begin = begin;
    step.end = std::min(panel_of(partition + 1, panels) * table_.nr(), output);
    step.addends[0] = skip_rows(grad_y_rows(t), row, storage_);
    if (shape.projection) {
      step.storage_out =
          skip_rows(piece_rows<MutableRows>(piece_.grad_output, output, t), row, storage_);
      step.operand_out = {advance(grad_output_.get(), row * output_stride_, operand_),
                          output_stride_, nullptr};
    } else {
      step.accumulator_out = {product, stride, nullptr};
    }
    table_.options->state_gradient(step);
  }
}

void BackwardGroup::run_option_cells(int64_t k, int partition) {
  const LstmShape& shape = args_.shape;
  const int64_t hidden = shape.hidden_size, rows = group_.active(time(k));
  const int64_t panels = ceil_div(hidden, table_.nr()), stride = panels * table_.nr();
  const int64_t begin = panel_of(partition, panels) * table_.nr();
  const Buffer& products = shape.projection ? output_products_ : products_;
  if (shape.projection) {
    multiply(product_with(grad_output_, output_stride_, 0, shape.output_size, weights_.w_hr,
                          direction_.weights.w_hr, hidden),
             rows, hidden, partition, products, 0);
  } else {
    run_option_output_gradients(k, partition);
  }

  // Rows differ in whether this is their first step, so that their c_prev is c_0.
  const int64_t bounds[] = {0, rows_with_earlier_step(k), rows};
  for (int part = 0; part < 2; ++part) {
    const int64_t row = bounds[part];
    OptionBackwardStep step = option_step(k, row);
    step.rows = bounds[part + 1] - row;
    if (step.rows <= 0) continue;
    step.begin = begin;
    step.end = std::min(panel_of(partition + 1, panels) * table_.nr(), hidden);
    step.dh = {advance(products.get(), row * stride + begin, accumulator_), stride, nullptr};
    table_.options->backward(step);
  }
}

// The cell's backward for rows from `row` on, without its units and dh. They have an earlier step
// all, or none.
OptionBackwardStep BackwardGroup::option_step(int64_t k, int64_t row) const {
  const LstmShape& shape = args_.shape;
  const CellOptionInputs& inputs = direction_.options;
  const int64_t t = time(k), hidden = shape.hidden_size;
  const auto skip = [&](const auto& view, int64_t size) { return skip_rows(view, row, size); };
  const auto own = [&](const Buffer& buffer, int64_t columns) -> MutableRows {
    return {advance(buffer.get(), row * columns, accumulator_), columns, nullptr};
  };
  OptionBackwardStep step;
  step.hidden_size = hidden;
  step.options.options = *args_.options;
  step.options.peephole = inputs.peephole;
  step.options.keep_c = skip(group_.sequence_rows<Rows>(inputs.keep_c, hidden, 1, t), 1);
  step.options.keep_h = skip(group_.sequence_rows<Rows>(inputs.keep_h, hidden, 1, t), 1);
  step.options.reset_c = skip(group_.batch_rows<Rows>(inputs.reset_c, hidden, storage_), storage_);
  step.options.gains = inputs.gains;
  step.options.cell_norm = inputs.cell_norm;
  step.grad_cell_states = skip(group_.sequence_rows<Rows>(direction_.grad_cell_states,
                                                          shape.directions * hidden, storage_, t),
                               storage_);
  step.gates = skip(piece_rows<Rows>(piece_.gates, kGates * hidden, t), storage_);
  const auto cells_of = [&](int64_t at) {
    return skip(group_.data_rows<Rows>(direction_.cells, hidden, accumulator_, at), accumulator_);
  };
  step.cells = cells_of(t);
  if (row < rows_with_earlier_step(k)) {
    step.c_prev = cells_of(time(k + 1));
  } else {
    step.c_prev = {advance(c_0_.get(), row * hidden, accumulator_), hidden, nullptr};
  }
  step.dc = advance(dc_.get(), row * hidden, accumulator_);
  step.carry = own(carry_, hidden);
  step.grad_gates = skip(piece_rows<MutableRows>(piece_.grad_gates, kGates * hidden, t), storage_);
  step.operand_out = {advance(grad_gates_[(k + 1) % 2].get(), row * gates_stride_, operand_),
                      gates_stride_, nullptr};
  step.cell_output = skip(piece_rows<MutableRows>(piece_.cell_output, hidden, t), storage_);
  step.grad_peephole = own(grad_peephole_, kPeepholes * hidden);
  step.reset = skip_rows(group_.resets(args_.reset_mask, t, group_.active(t)), row);
  step.grad_reset_c = own(grad_reset_c_, hidden);
  step.output_gradients = own(output_gradients_, 3 * hidden);
  step.grad_activations = own(grad_activations_, kGates * hidden);
  step.grad_cell_norm = own(grad_cell_norm_, 2 * hidden);
  return step;
}

// The gradients of the states that resets put in.
void BackwardGroup::store_option_gradients() const {
  const CellOptionGradients& out = direction_.grad_options;
  const auto store = [&](const Buffer& sums, int64_t columns, void* to) {
    if (!to) return;
    for (int64_t j = 0; j < group_.rows(); ++j) {
      table_.accumulator_to_storage(advance(sums.get(), j * columns, accumulator_), columns,
                                    advance(to, group_.batch_row(j) * columns, storage_));
    }
  };
  store(grad_reset_h_, args_.shape.output_size, out.reset_h);
  store(grad_reset_c_, args_.shape.hidden_size, out.reset_c);
}

void BackwardGroup::add_parameter_gradients(Parameter parameter, int64_t columns,
                                            void* sums) const {
  const auto buffer = [&]() -> const Buffer& {
    switch (parameter) {
      case Parameter::kPeephole:
        return grad_peephole_;
      case Parameter::kGains:
        return grad_gains_;
      case Parameter::kCellNorm:
        return grad_cell_norm_;
      default:
        return grad_bias_;
    }
  };
  const auto add = [&](auto* to) {
    const auto* from = static_cast<const std::remove_pointer_t<decltype(to)>*>(buffer().get());
    for (int64_t j = 0; j < group_.rows(); ++j, from += columns) {
      for (int64_t i = 0; i < columns; ++i) to[i] += from[i];
    }
  };
  if (accumulator_ == 8) return add(static_cast<double*>(sums));
  add(static_cast<float*>(sums));
}

}  // namespace lstm_fused::cpu
