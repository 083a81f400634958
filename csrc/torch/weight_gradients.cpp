// SPDX-License-Identifier: BSD-3-Clause
#include "torch/weight_gradients.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>

#include "cpu/rows.h"

namespace lstm_fused {
namespace {

using torch::headeronly::ScalarType;
namespace ts = torch::stable;

// float16 GEMMs on the CPU run in float32: torch's own are a hundred times slower (measured
// 2.9 against 157 GFLOP/s), and less exact.
Tensor gemm_operand(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Half ? ts::to(tensor, ScalarType::Float) : tensor;
}

// aᵀ·b over the rows.
Tensor row_product(const Tensor& a, const Tensor& b) {
  return ts::matmul(ts::transpose(a, 0, 1), b);
}

Tensor to_layer_type(const Tensor& tensor, const Layer& layer) {
  return ts::to(tensor, layer.input.scalar_type());
}

Tensor direction_of(const Tensor& tensor, int64_t direction) {
  return ts::select(tensor, 0, direction);
}

Tensor rows_of(const Tensor& tensor, int64_t begin, int64_t end) {
  Tensor rows = tensor;
  return ts::narrow(rows, 0, begin, end - begin);
}

// x of the data rows, (M, D).
Tensor data_input(const Layer& layer, const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  const std::vector<int64_t> sizes = {layer.data_rows, s.input_size};
  if (layer.layout.packed || (!layer.ragged && layer.layout.row_of.empty())) {
    return ts::view(layer.input, sizes);
  }
  Tensor rows = ts::new_empty(layer.input, sizes);
  cpu::gather_data_rows(layer.layout, s.batch, layer.input.const_data_ptr(),
                        s.input_size * dtype_size(layer.dtype), rows.mutable_data_ptr(), parallel);
  return rows;
}

// The state that entered each step, of the data rows, (M, P).
Tensor previous_states(const Layer& layer, const Tensor& y, int d, const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  Tensor previous = ts::new_empty(layer.input, {layer.data_rows, s.output_size});
  const int64_t size = dtype_size(layer.dtype);
  cpu::PreviousStates states;
  states.y = static_cast<const char*>(y.const_data_ptr()) + d * s.output_size * size;
  states.y_stride_bytes = s.directions * s.output_size * size;
  const Tensor h_0 = direction_of(layer.h_0, d);
  states.h_0 = h_0.const_data_ptr();
  states.row_bytes = s.output_size * size;
  states.reset_mask = layer.reset_flags();
  states.reverse = d == 1;
  cpu::gather_previous_states(layer.layout, s.batch, states, previous.mutable_data_ptr(), parallel);
  return previous;
}

// dW_hh = Σ over data rows of grad_gatesᵀ·h_prev.
Tensor recurrent_gradient(const Layer& layer, const Tensor& grad_gates, const Tensor& y, int d,
                          const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  const int64_t rows = layer.data_rows;
  const int64_t batch = s.batch;
  const Tensor h_0 = direction_of(layer.h_0, d);
  const bool dense = !layer.layout.packed && !layer.ragged && !layer.reset_mask;

  if (dense) {
    // NOTE: h_prev is y moved by one step, so no copy is made of it.
    const Tensor y_rows = ts::view(y, std::vector<int64_t>{rows, s.directions * s.output_size});
    Tensor columns = y_rows;
    columns = ts::narrow(columns, 1, d * s.output_size, s.output_size);
    const bool reverse = d == 1;
    const int64_t first = reverse ? rows - batch : 0;
    const Tensor first_grad = rows_of(grad_gates, first, first + batch);
    Tensor grad = row_product(gemm_operand(first_grad), gemm_operand(h_0));
    if (rows == batch) return grad;
    const Tensor rest =
        reverse ? rows_of(grad_gates, 0, rows - batch) : rows_of(grad_gates, batch, rows);
    const Tensor before =
        reverse ? rows_of(columns, batch, rows) : rows_of(columns, 0, rows - batch);
    return ts::subtract(grad, row_product(gemm_operand(rest), gemm_operand(before)), -1.0);
  }

  return row_product(gemm_operand(grad_gates),
                     gemm_operand(previous_states(layer, y, d, parallel)));
}

// o·tanh(c) of the data rows, (M, H).
Tensor unprojected_output(const Layer& layer, const BackwardTensors& tensors, int d, cpu::Isa isa,
                          const cpu::Parallel& parallel) {
  const int64_t hidden = layer.shape.hidden_size;
  const int64_t rows = layer.data_rows;
  const int64_t size = dtype_size(layer.dtype);
  Tensor output = ts::new_empty(layer.input, {rows, hidden});
  const char* gate_rows = static_cast<const char*>(direction_of(tensors.gates, d).const_data_ptr());
  const char* cell_rows = static_cast<const char*>(direction_of(tensors.cells, d).const_data_ptr());
  char* output_rows = static_cast<char*>(output.mutable_data_ptr());
  const cpu::KernelTable& table = cpu::kernel_table(isa, layer.dtype);
  parallel.for_each(rows, [&](int64_t row) {
    table.unprojected_output(gate_rows + row * kGates * hidden * size,
                             cell_rows + row * hidden * accumulator_size(layer.dtype), 1, hidden,
                             output_rows + row * hidden * size);
  });
  return output;
}

}  // namespace

std::vector<Tensor> weight_gradients(const Layer& layer, const BackwardTensors& tensors,
                                     cpu::Isa isa, const cpu::Parallel& parallel) {
  const LstmShape& s = layer.shape;
  const Tensor x = gemm_operand(data_input(layer, parallel));
  std::vector<Tensor> grads;
  for (int d = 0; d < s.directions; ++d) {
    const Tensor grad_gates = direction_of(tensors.grad_gates, d);
    grads.push_back(to_layer_type(row_product(gemm_operand(grad_gates), x), layer));
    grads.push_back(
        to_layer_type(recurrent_gradient(layer, grad_gates, tensors.y, d, parallel), layer));
    if (layer.has_bias()) {
      const std::array<int64_t, 1> rows = {0};
      const Tensor grad_bias = ts::sum(grad_gates, rows);
      grads.push_back(grad_bias);
      grads.push_back(ts::clone(grad_bias));
    }
    if (s.projection) {
      // dW_hr = Σ over data rows of grad_outputᵀ·(o·tanh(c)).
      const Tensor output = unprojected_output(layer, tensors, d, isa, parallel);
      const Tensor grad_output = direction_of(tensors.grad_output, d);
      grads.push_back(
          to_layer_type(row_product(gemm_operand(grad_output), gemm_operand(output)), layer));
    }
  }
  return grads;
}

WeightOperands weight_operands(const Layer& layer, const BackwardTensors& tensors, cpu::Isa isa,
                               const cpu::Parallel& parallel) {
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
  const LstmShape& s = layer.shape;
  const int projections = s.projection ? s.directions : 0;
  WeightOperands operands;
  operands.grad_gates = in_input_order(s.directions, kGates * s.hidden_size,
                                       [&](int d) { return direction_of(tensors.grad_gates, d); });
  operands.previous = in_input_order(s.directions, s.output_size, [&](int d) {
    return previous_states(layer, tensors.y, d, parallel);
  });
  operands.input = direction_of(
      in_input_order(1, s.input_size, [&](int) { return data_input(layer, parallel); }), 0);
  operands.grad_output = in_input_order(
      projections, s.output_size, [&](int d) { return direction_of(tensors.grad_output, d); });
  operands.unprojected = in_input_order(projections, s.hidden_size, [&](int d) {
    return unprojected_output(layer, tensors, d, isa, parallel);
  });
  return operands;
}

}  // namespace lstm_fused
