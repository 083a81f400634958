// SPDX-License-Identifier: BSD-3-Clause
#include "torch/call.h"

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
Sizes gates_sizes(const Layer& layer) {
  return {layer.shape.directions, layer.sequence_rows, kGates * layer.shape.hidden_size};
}
Sizes cells_sizes(const Layer& layer) {
  return {layer.shape.directions, layer.sequence_rows, layer.shape.hidden_size};
}

// (T, N, columns), or (M, columns) when packed: y's layout.
Sizes sequence_sizes(const Layer& layer, int64_t columns) {
  if (layer.packed) return {layer.sequence_rows, columns};
  return {layer.steps, layer.shape.batch, columns};
}
Sizes y_sizes(const Layer& layer) {
  return sequence_sizes(layer, layer.shape.directions * layer.shape.output_size);
}
Sizes cell_states_sizes(const Layer& layer) {
  return sequence_sizes(layer, layer.shape.directions * layer.shape.hidden_size);
}

Tensor checked_gradient(const Layer& layer, const std::optional<Tensor>& grad, const char* name,
                        const Sizes& sizes) {
  return grad ? checked(*grad, name, sizes, layer) : new_storage(layer, {0});
}

// Gates that the forward did not save are an empty tensor of one dimension.
Tensor checked_gates(const Layer& layer, const Tensor& gates) {
  return checked(gates, "gates", Sizes{0}.equals(gates) ? Sizes{0} : gates_sizes(layer), layer);
}

}  // namespace

std::vector<Tensor> new_weight_gradients(const Layer& layer, std::optional<int64_t> samples) {
  const auto sizes_of = [&](const Tensor& weight) -> Sizes {
    const int64_t rows = weight.size(0);
    if (weight.dim() == 1) return samples ? Sizes{*samples, rows} : Sizes{rows};
    return samples ? Sizes{*samples, rows, weight.size(1)} : Sizes{rows, weight.size(1)};
  };
  std::vector<Tensor> grads;
  for (const Tensor& weight : layer.weights) {
    grads.push_back(new_tensor(sizes_of(weight), weight.scalar_type(), layer.device));
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

ForwardTensors::ForwardTensors(const Layer& layer, bool save_cells, bool save_gates,
                               bool return_cell_states)
    : y(new_storage(layer, y_sizes(layer))),
      h_n(new_storage(layer, h_sizes(layer))),
      c_n(new_storage(layer, c_sizes(layer))),
      cell_states(new_storage(layer, cell_states_sizes(layer), return_cell_states)),
      gates(new_storage(layer, gates_sizes(layer), save_gates)),
      cells(new_tensor(save_cells ? cells_sizes(layer) : Sizes{0}, accumulator_type(layer),
                       layer.device)) {}

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
                                 const Tensor& gates, const Tensor& cells,
                                 const BackwardNeeds& needs)
    : grad_y(checked_gradient(layer, grad_y, "grad_y", y_sizes(layer))),
      grad_h_n(checked_gradient(layer, grad_h_n, "grad_h_n", h_sizes(layer))),
      grad_c_n(checked_gradient(layer, grad_c_n, "grad_c_n", c_sizes(layer))),
      grad_cell_states(
          checked_gradient(layer, grad_cell_states, "grad_cell_states", cell_states_sizes(layer))),
      y(checked(y, "y", y_sizes(layer), layer)),
      gates(checked_gates(layer, gates)),
      cells(checked_cells(cells, cells_sizes(layer), layer)),
      grad_input(new_storage(layer, sequence_sizes(layer, layer.shape.input_size), needs.input)),
      grad_h_0(new_storage(layer, h_sizes(layer), needs.states)),
      grad_c_0(new_storage(layer, c_sizes(layer), needs.states)) {
  if (needs.weights) grad_weights = new_weight_gradients(layer, needs.samples);
}

LayerBackwardDirection BackwardTensors::direction(const Layer& layer, int direction) const {
  const LstmShape& s = layer.shape;
  const int64_t d = direction, rows = layer.sequence_rows;
  const int64_t storage = dtype_size(layer.dtype), accumulator = accumulator_size(layer.dtype);
  LayerBackwardDirection out;
  LstmBackwardDirection& recurrence = out.recurrence;
  recurrence.weights = layer.direction_weights(direction);
  recurrence.c_0 = const_element(layer.c_0, d * s.batch * s.hidden_size, storage);
  recurrence.gates = const_element(gates, d * rows * kGates * s.hidden_size, storage);
  recurrence.cells = const_element(cells, d * rows * s.hidden_size, accumulator);
  recurrence.grad_y = const_element(grad_y, d * s.output_size, storage);
  recurrence.grad_h_n = const_element(grad_h_n, d * s.batch * s.output_size, storage);
  recurrence.grad_c_n = const_element(grad_c_n, d * s.batch * s.hidden_size, storage);
  recurrence.grad_cell_states = const_element(grad_cell_states, d * s.hidden_size, storage);
  recurrence.grad_h_0 = element(grad_h_0, d * s.batch * s.output_size, storage);
  recurrence.grad_c_0 = element(grad_c_0, d * s.batch * s.hidden_size, storage);
  out.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, storage);
  out.y = const_element(y, d * s.output_size, storage);
  if (!grad_weights.empty()) set_weight_gradients(layer, grad_weights, direction, out);
  return out;
}

void set_weight_gradients(const Layer& layer, const std::vector<Tensor>& grads, int direction,
                          LayerBackwardDirection& out) {
  const int each = layer.weights_per_direction();
  const Tensor* from = grads.data() + direction * each;
  out.grad_w_ih = from[0].mutable_data_ptr();
  out.grad_w_hh = from[1].mutable_data_ptr();
  if (layer.has_bias()) {
    out.grad_b_ih = from[2].mutable_data_ptr();
    out.grad_b_hh = from[3].mutable_data_ptr();
  }
  if (layer.shape.projection) out.grad_w_hr = from[each - 1].mutable_data_ptr();
}

}  // namespace lstm_fused
