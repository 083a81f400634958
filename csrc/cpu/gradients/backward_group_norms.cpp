// SPDX-License-Identifier: BSD-3-Clause
// Backpropagation through time with layer normalisation: each worker's columns of the products, and
// in a phase of their own whole rows.
#include <algorithm>

#include "cpu/gradients/backward_group.h"

namespace lstm_fused::cpu {

void BackwardGroup::run_norm_phase(int64_t k, int64_t part, int partition) {
  const LstmShape& shape = args_.shape;
  if (part == 0) return run_option_output_gradients(k, partition);
  if (part + 1 == phases_per_step_) return run_normalised_cells(k, partition);
  multiply(product_with(grad_output_, output_stride_, 0, shape.output_size, weights_.w_hr,
                        direction_.weights.w_hr, shape.hidden_size),
           group_.active(time(k)), shape.hidden_size, partition, output_products_, 0);
}

void BackwardGroup::run_normalised_cells(int64_t k, int partition) {
  const LstmShape& shape = args_.shape;
  const int64_t hidden = shape.hidden_size, t = time(k), rows = group_.active(t);
  const int64_t stride = round_up(hidden, table_.nr());
  const Buffer& products = shape.projection ? output_products_ : products_;
  const int64_t first = rows * partition / plan_.team, last = rows * (partition + 1) / plan_.team;
  const int64_t earlier = std::clamp(rows_with_earlier_step(k), first, last);
  const int64_t bounds[] = {first, earlier, last};
  for (int part = 0; part < 2; ++part) {
    const int64_t row = bounds[part];
    if (bounds[part + 1] <= row) continue;
    OptionBackwardStep cell = option_step(k, row);
    cell.rows = bounds[part + 1] - row;
    cell.end = hidden;
    cell.dh = {advance(products.get(), row * stride, accumulator_), stride, nullptr};
    table_.options->output_backward(cell);
    table_.options->backward(cell);

    GatesBackwardStep gates;
    gates.rows = cell.rows;
    gates.hidden_size = hidden;
    gates.grad_activations = {cell.grad_activations.base, kGates * hidden, nullptr};
    const SavedNorms& norms = direction_.norms;
    gates.normalised =
        skip_rows(group_.data_rows<Rows>(norms.normalised, kNorms * kGates * hidden, storage_, t),
                  row, storage_);
    gates.scales =
        skip_rows(group_.data_rows<Rows>(norms.scales, kNorms, accumulator_, t), row, accumulator_);
    gates.gains = direction_.options.gains;
    gates.grad_input = cell.grad_gates;
    gates.grad_recurrent = skip_rows(
        piece_rows<MutableRows>(piece_.grad_recurrent, kGates * hidden, t), row, storage_);
    gates.operand_out = cell.operand_out;
    const auto own = [&](const Buffer& buffer, int64_t columns) -> MutableRows {
      return {advance(buffer.get(), row * columns, accumulator_), columns, nullptr};
    };
    gates.grad_gains = own(grad_gains_, kNorms * kGates * hidden);
    gates.grad_bias = own(grad_bias_, kGates * hidden);
    table_.options->gates_backward(gates);
  }
}

}  // namespace lstm_fused::cpu
