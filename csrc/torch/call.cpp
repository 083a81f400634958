// SPDX-License-Identifier: BSD-3-Clause
#include "torch/call.h"

#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "common/error.h"

namespace lstm_fused {
namespace {

// A tensor of the layer's dtype and device, or an empty one.
Tensor new_storage(const Layer& layer, const Sizes& sizes, bool wanted = true) {
  return new_tensor(wanted ? sizes : Sizes{0}, layer.input.scalar_type(), layer.device);
}

Sizes h_sizes(const Layer& layer) {
  return {layer.shape.directions, layer.shape.batch, layer.shape.output_size};
}
Sizes c_sizes(const Layer& layer) {
  return {layer.shape.directions, layer.shape.batch, layer.shape.hidden_size};
}
// Of `rows` rows for each direction.
Sizes gates_sizes(const Layer& layer, int64_t rows) {
  return {layer.shape.directions, rows, kGates * layer.shape.hidden_size};
}

Tensor checked_gradient(const Layer& layer, const std::optional<Tensor>& grad, const char* name,
                        const Sizes& sizes) {
  return grad ? checked(*grad, name, sizes, layer) : new_storage(layer, {0});
}

// NOTE: not `checked`, whose dtype is the layer's.
Tensor checked_cells(const Layer& layer, const Tensor& cells) {
  LSTM_CHECK(
      Sizes({layer.shape.directions, layer.sequence_rows, layer.shape.hidden_size}).equals(cells) &&
          device_of(cells) == layer.device && cells.scalar_type() == accumulator_type(layer),
      "cells must be those that lstm_forward returned");
  return to_contiguous(cells, "cells");
}

// Zeroes what is saved for rows past their lengths, which the kernels neither write nor read, so
// that a backward of other lengths finds no garbage.
void clear_past_lengths(const Layer& layer, const Tensor& saved) {
  if (layer.lengths) return fill_with_zeros(saved);  // in the order of input's rows
  if (!layer.ragged || saved.numel() == 0) return;
  // Behind those that the data rows have, in their order.
  const int64_t unused = layer.sequence_rows - layer.data_rows;
  Tensor all = saved;
  fill_with_zeros(torch::stable::narrow(all, 1, layer.data_rows, unused));
}

}  // namespace

ScalarType accumulator_type(const Layer& layer) {
  return layer.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

std::vector<Tensor> new_weight_gradients(const Layer& layer, bool wanted) {
  std::vector<Tensor> grads;
  if (!wanted) return grads;
  for (const Tensor& weight : layer.weights) {
    const int64_t rows = weight.size(0);
    const Sizes sizes = weight.dim() == 1 ? Sizes{rows} : Sizes{rows, weight.size(1)};
    grads.push_back(new_tensor(sizes, weight.scalar_type(), layer.device));
  }
  return grads;
}

Tensor zero_state(const Tensor& input, int64_t directions, int64_t rows, int64_t features) {
  const Sizes sizes = directions ? Sizes{directions, rows, features} : Sizes{rows, features};
  Tensor state = new_tensor(sizes, input.scalar_type(), device_of(input));
  if (state.numel() > 0) {
    std::memset(state.mutable_data_ptr(), 0, state.numel() * state.element_size());
  }
  return state;
}

Sizes sequence_sizes(const Layer& layer, int64_t columns) {
  if (layer.layout.packed) return {layer.data_rows, columns};
  return {layer.steps, layer.shape.batch, columns};
}

Tensor new_sequence(const Layer& layer, int64_t columns) {
  Tensor sequence = new_storage(layer, sequence_sizes(layer, columns));
  if (layer.ragged) fill_with_zeros(sequence);
  return sequence;
}

ForwardTensors::ForwardTensors(const Layer& layer, bool save_cells, bool save_gates,
                               bool return_cell_states)
    : y(new_sequence(layer, layer.shape.directions * layer.shape.output_size)),
      h_n(new_storage(layer, h_sizes(layer))),
      c_n(new_storage(layer, c_sizes(layer))),
      cell_states(return_cell_states
                      ? new_sequence(layer, layer.shape.directions * layer.shape.hidden_size)
                      : new_storage(layer, {0})),
      gates(new_storage(layer, gates_sizes(layer, layer.sequence_rows), save_gates)),
      cells(new_tensor(
          save_cells ? Sizes{layer.shape.directions, layer.sequence_rows, layer.shape.hidden_size}
                     : Sizes{0},
          accumulator_type(layer), layer.device)) {
  clear_past_lengths(layer, gates);
  clear_past_lengths(layer, cells);
}

LstmForwardDirection ForwardTensors::direction(const Layer& layer, int direction) const {
  const LstmShape& s = layer.shape;
  const int64_t d = direction, rows = layer.sequence_rows;
  const int64_t storage = dtype_size(layer.dtype), accumulator = accumulator_size(layer.dtype);
  LstmForwardDirection out;
  out.weights = layer.direction_weights(direction);
  out.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, storage);
  out.c_0 = const_element(layer.c_0, d * s.batch * s.hidden_size, storage);
  out.y = element(y, d * s.output_size, storage);
  out.h_n = element(h_n, d * s.batch * s.output_size, storage);
  out.c_n = element(c_n, d * s.batch * s.hidden_size, storage);
  out.cell_states = element(cell_states, d * s.hidden_size, storage);
  out.gates = element(gates, d * rows * kGates * s.hidden_size, storage);
  out.cells = element(cells, d * rows * s.hidden_size, accumulator);
  return out;
}

BackwardTensors::BackwardTensors(const Layer& layer, const std::optional<Tensor>& grad_y,
                                 const std::optional<Tensor>& grad_h_n,
                                 const std::optional<Tensor>& grad_c_n,
                                 const std::optional<Tensor>& grad_cell_states, const Tensor& y,
                                 const Tensor& gates, const Tensor& cells, bool need_states,
                                 bool keep_gate_gradients)
    : grad_y(checked_gradient(
          layer, grad_y, "grad_y",
          sequence_sizes(layer, layer.shape.directions * layer.shape.output_size))),
      grad_h_n(checked_gradient(layer, grad_h_n, "grad_h_n", h_sizes(layer))),
      grad_c_n(checked_gradient(layer, grad_c_n, "grad_c_n", c_sizes(layer))),
      grad_cell_states(checked_gradient(
          layer, grad_cell_states, "grad_cell_states",
          sequence_sizes(layer, layer.shape.directions * layer.shape.hidden_size))),
      y(checked(y, "y", sequence_sizes(layer, layer.shape.directions * layer.shape.output_size),
                layer)),
      cells(checked_cells(layer, cells)),
      grad_gates(new_storage(layer, gates_sizes(layer, layer.data_rows), keep_gate_gradients)),
      rebuilds_gates(Sizes({0}).equals(gates)),
      gates(rebuilds_gates
                ? grad_gates
                : checked(gates, "gates", gates_sizes(layer, layer.sequence_rows), layer)),
      grad_output(new_storage(layer,
                              {layer.shape.projection ? layer.shape.directions : 0, layer.data_rows,
                               layer.shape.output_size},
                              keep_gate_gradients)),
      grad_h_0(new_storage(layer, h_sizes(layer), need_states)),
      grad_c_0(new_storage(layer, c_sizes(layer), need_states)) {}

LstmBackwardDirection BackwardTensors::direction(const Layer& layer, int direction) const {
  const LstmShape& s = layer.shape;
  const int64_t d = direction, rows = layer.sequence_rows;
  const int64_t gate_rows = rebuilds_gates ? layer.data_rows : rows;
  const int64_t storage = dtype_size(layer.dtype), accumulator = accumulator_size(layer.dtype);
  LstmBackwardDirection out;
  out.weights = layer.direction_weights(direction);
  out.c_0 = const_element(layer.c_0, d * s.batch * s.hidden_size, storage);
  out.gates = const_element(gates, d * gate_rows * kGates * s.hidden_size, storage);
  out.cells = const_element(cells, d * rows * s.hidden_size, accumulator);
  out.grad_y = const_element(grad_y, d * s.output_size, storage);
  out.grad_h_n = const_element(grad_h_n, d * s.batch * s.output_size, storage);
  out.grad_c_n = const_element(grad_c_n, d * s.batch * s.hidden_size, storage);
  out.grad_cell_states = const_element(grad_cell_states, d * s.hidden_size, storage);
  out.grad_gates = element(grad_gates, d * layer.data_rows * kGates * s.hidden_size, storage);
  out.grad_output = element(grad_output, d * layer.data_rows * s.output_size, storage);
  out.grad_h_0 = element(grad_h_0, d * s.batch * s.output_size, storage);
  out.grad_c_0 = element(grad_c_0, d * s.batch * s.hidden_size, storage);
  return out;
}

cpu::LayerBackwardArgs::Direction BackwardTensors::layer_direction(
    const Layer& layer, int d, const std::vector<Tensor>& grad_weights) const {
  const LstmShape& s = layer.shape;
  const int64_t storage = dtype_size(layer.dtype);
  cpu::LayerBackwardArgs::Direction out;
  out.recurrence = direction(layer, d);
  out.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, storage);
  out.y = const_element(y, d * s.output_size, storage);
  if (grad_weights.empty()) return out;
  const int each = layer.weights_per_direction();
  const Tensor* to = grad_weights.data() + d * each;
  out.grad_w_ih = to[0].mutable_data_ptr();
  out.grad_w_hh = to[1].mutable_data_ptr();
  if (layer.has_bias()) {
    out.grad_b_ih = to[2].mutable_data_ptr();
    out.grad_b_hh = to[3].mutable_data_ptr();
  }
  if (s.projection) out.grad_w_hr = to[each - 1].mutable_data_ptr();
  return out;
}

LstmGatesDirection BackwardTensors::gates_direction(const Layer& layer, int direction) const {
  const LstmShape& s = layer.shape;
  const int64_t d = direction, storage = dtype_size(layer.dtype);
  LstmGatesDirection out;
  out.weights = layer.direction_weights(direction);
  out.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, storage);
  out.y = const_element(y, d * s.output_size, storage);
  out.gates = element(grad_gates, d * layer.data_rows * kGates * s.hidden_size, storage);
  return out;
}

}  // namespace lstm_fused
