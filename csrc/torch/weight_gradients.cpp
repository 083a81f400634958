// SPDX-License-Identifier: BSD-3-Clause
#include "torch/weight_gradients.h"

#include <torch/csrc/stable/ops.h>

#include <array>

#include "cpu/rows.h"
#include "cpu/scratch.h"
#include "cpu/weight_gradient.h"

namespace lstm_fused {
namespace {

namespace ts = torch::stable;

Tensor direction_of(const Tensor& tensor, int64_t direction) {
  return ts::select(tensor, 0, direction);
}

// x of the data rows, of D features.
cpu::RowPointers input_rows(const Layer& layer) {
  return cpu::data_rows(layer.layout, layer.shape.batch, layer.input.const_data_ptr(),
                        layer.shape.input_size * dtype_size(layer.dtype));
}

// The state that entered each step, of the data rows, of P features; `zeros` are P of them.
cpu::RowPointers previous_states(const Layer& layer, const Tensor& y, int d, const Tensor& zeros) {
  const LstmShape& s = layer.shape;
  const int64_t size = dtype_size(layer.dtype);
  cpu::PreviousStates states;
  states.y = const_element(y, d * s.output_size, size);
  states.y_stride_bytes = s.directions * s.output_size * size;
  states.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, size);
  states.row_bytes = s.output_size * size;
  states.reset_mask = layer.reset_flags();
  states.reverse = d == 1;
  states.zeros = zeros.const_data_ptr();
  return cpu::previous_state_rows(layer.layout, s.batch, states);
}

Tensor zero_state(const Layer& layer) {
  return ts::new_zeros(layer.input, {layer.shape.output_size});
}

Tensor new_weight(const Layer& layer, int64_t rows, int64_t columns) {
  return new_tensor({rows, columns}, layer.input.scalar_type(), layer.device);
}

// dW_hr = Σ over data rows of grad_outputᵀ·(o·tanh(c)).
Tensor projection_gradient(const Layer& layer, const Tensor& grad_output, const Tensor& output,
                           cpu::Isa isa, const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  const Tensor grad = new_weight(layer, s.output_size, s.hidden_size);
  cpu::RowPointers rows(layer.data_rows);
  for (int64_t m = 0; m < layer.data_rows; ++m) {
    rows[m] = const_element(output, m * s.hidden_size, dtype_size(layer.dtype));
  }
  cpu::WeightGradientArgs args;
  args.dtype = layer.dtype;
  args.rows = layer.data_rows;
  args.grad = grad_output.const_data_ptr();
  args.grad_columns = s.output_size;
  args.weight[0] = {rows.data(), s.hidden_size, grad.mutable_data_ptr()};
  cpu::weight_gradient(args, isa, parallel);
  return grad;
}

}  // namespace

Tensor unprojected_output(const Layer& layer, const BackwardTensors& tensors, cpu::Isa isa,
                          const cpu::Parallel& parallel) {
  const int64_t hidden = layer.shape.hidden_size;
  const int64_t size = dtype_size(layer.dtype);
  const int directions = layer.shape.projection ? layer.shape.directions : 0;
  Tensor output = ts::new_empty(layer.input, {directions, layer.data_rows, hidden});
  const cpu::KernelTable& table = cpu::kernel_table(isa, layer.dtype);
  for (int d = 0; d < directions; ++d) {
    const void* gates = direction_of(tensors.gates, d).const_data_ptr();
    const void* cells = direction_of(tensors.cells, d).const_data_ptr();
    void* outputs = direction_of(output, d).mutable_data_ptr();
    parallel.for_each(layer.data_rows, [&](int64_t row) {
      table.unprojected_output(cpu::advance(gates, row * kGates * hidden, size),
                               cpu::advance(cells, row * hidden, accumulator_size(layer.dtype)), 1,
                               hidden, cpu::advance(outputs, row * hidden, size));
    });
  }
  return output;
}

std::vector<Tensor> weight_gradients(const Layer& layer, const BackwardTensors& tensors,
                                     const Tensor& unprojected, cpu::Isa isa,
                                     const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  const int64_t gates = kGates * s.hidden_size;
  const cpu::RowPointers x = input_rows(layer);
  const Tensor zeros = zero_state(layer);
  std::vector<Tensor> grads;
  for (int d = 0; d < s.directions; ++d) {
    const Tensor grad_gates = direction_of(tensors.grad_gates, d);
    const Tensor grad_w_ih = new_weight(layer, gates, s.input_size);
    const Tensor grad_w_hh = new_weight(layer, gates, s.output_size);
    const cpu::RowPointers previous = previous_states(layer, tensors.y, d, zeros);
    cpu::WeightGradientArgs args;
    args.dtype = layer.dtype;
    args.rows = layer.data_rows;
    args.grad = grad_gates.const_data_ptr();
    args.grad_columns = gates;
    args.weight[0] = {x.data(), s.input_size, grad_w_ih.mutable_data_ptr()};
    args.weight[1] = {previous.data(), s.output_size, grad_w_hh.mutable_data_ptr()};
    args.weights = 2;
    cpu::weight_gradient(args, isa, parallel);
    grads.push_back(grad_w_ih);
    grads.push_back(grad_w_hh);
    if (layer.has_bias()) {
      const std::array<int64_t, 1> rows = {0};
      const Tensor grad_bias = ts::sum(grad_gates, rows);
      grads.push_back(grad_bias);
      grads.push_back(ts::clone(grad_bias));
    }
    if (s.projection) {
      grads.push_back(projection_gradient(layer, direction_of(tensors.grad_output, d),
                                          direction_of(unprojected, d), isa, parallel));
    }
  }
  return grads;
}

WeightOperands weight_operands(const Layer& layer, const BackwardTensors& tensors,
                               const Tensor& unprojected, const cpu::Parallel& parallel) {
  // Data rows (M, features) of each direction, in the order of layer.input's rows.
  const auto in_input_order = [&](int directions, int64_t features, const auto& data_of) {
    const int64_t rows = layer.sequence_rows;
    const int64_t row_bytes = features * dtype_size(layer.dtype);
    Tensor sequence = ts::new_zeros(layer.input, {directions, rows, features});
    for (int d = 0; d < directions; ++d) {
      const Tensor data = data_of(d);
      cpu::scatter_data_rows(layer.layout, layer.shape.batch, data.const_data_ptr(), row_bytes,
                             static_cast<char*>(sequence.mutable_data_ptr()) + d * rows * row_bytes,
                             parallel);
    }
    return sequence;
  };
  const auto gathered = [&](const cpu::RowPointers& rows, int64_t features) {
    const Tensor data = ts::new_empty(layer.input, {layer.data_rows, features});
    cpu::gather_rows(rows, features * dtype_size(layer.dtype), data.mutable_data_ptr(), parallel);
    return data;
  };
  const LstmShape& s = layer.shape;
  const int projections = s.projection ? s.directions : 0;
  const Tensor zeros = zero_state(layer);
  WeightOperands operands;
  operands.grad_gates = in_input_order(s.directions, kGates * s.hidden_size,
                                       [&](int d) { return direction_of(tensors.grad_gates, d); });
  operands.previous = in_input_order(s.directions, s.output_size, [&](int d) {
    return gathered(previous_states(layer, tensors.y, d, zeros), s.output_size);
  });
  operands.input =
      direction_of(in_input_order(1, s.input_size,
                                  [&](int) { return gathered(input_rows(layer), s.input_size); }),
                   0);
  operands.grad_output = in_input_order(
      projections, s.output_size, [&](int d) { return direction_of(tensors.grad_output, d); });
  operands.unprojected = in_input_order(projections, s.hidden_size,
                                        [&](int d) { return direction_of(unprojected, d); });
  return operands;
}

}  // namespace lstm_fused
