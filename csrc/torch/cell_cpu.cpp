// SPDX-License-Identifier: BSD-3-Clause
// One step, on tensors of two dimensions as the cell has them, since making views of three in
// Python takes longer than a small step does.
#include "torch/cell_cpu.h"

#include "common/error.h"
#include "cpu/gradients/layer_backward.h"
#include "cpu/lstm_forward.h"
#include "torch/call.h"
#include "torch/layer.h"
#include "torch/layer_cpu.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {
namespace {

// A gradient of a state: null where it is absent, which is zero.
const void* state_gradient(const std::optional<Tensor>& grad, const char* name, const Layer& layer,
                           Tensor& contiguous) {
  if (!grad) return nullptr;
  contiguous = checked(*grad, name, {layer.shape.batch, layer.shape.hidden_size}, layer);
  return const_element(contiguous, 0, 1);
}

}  // namespace

CellResult lstm_cell_cpu(const Tensor& input, const std::optional<Tensor>& h,
                         const std::optional<Tensor>& c, const std::vector<Tensor>& weights,
                         bool save_for_backward) {
  LSTM_CHECK(input.dim() == 2, "input must have 2 dimensions, got ", input.dim());
  LSTM_CHECK(weights.size() >= 2 && weights[1].dim() == 2, "weights must begin with w_ih and w_hh");
  Tensor zeros;
  if (!h || !c) zeros = zero_state(input, 0, input.size(0), weights[1].size(1));
  const CpuLayer layer = make_cell_layer(input, h ? *h : zeros, c ? *c : zeros, weights);
  const int64_t rows = layer.shape.batch, hidden = layer.shape.hidden_size;
  const ScalarType dtype = layer.input.scalar_type();
  const Tensor h_next = new_tensor({rows, hidden}, dtype, layer.device);
  const Tensor c_next = new_tensor({rows, hidden}, dtype, layer.device);
  const Tensor gates =
      new_tensor(save_for_backward ? Sizes{rows, kGates * hidden} : Sizes{0}, dtype, layer.device);
  const Tensor cells = new_tensor(save_for_backward ? Sizes{rows, hidden} : Sizes{0},
                                  accumulator_type(layer), layer.device);

  LstmForwardArgs args;
  args.shape = layer.shape;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.x = layer.input.const_data_ptr();
  LstmForwardDirection& direction = args.direction[0];
  direction.weights = layer.direction_weights(0);
  direction.h_0 = layer.h_0.const_data_ptr();
  direction.c_0 = layer.c_0.const_data_ptr();
  direction.h_n = element(h_next, 0, 1);
  direction.c_n = element(c_next, 0, 1);
  direction.gates = element(gates, 0, 1);
  direction.cells = element(cells, 0, 1);
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  cpu::lstm_forward(args, cpu::make_forward_plan(layer.shape, layer.dtype, facts), parallel);
  return {h_next, c_next, gates, cells};
}

BackwardResult lstm_cell_backward_cpu(const std::optional<Tensor>& grad_h_next,
                                      const std::optional<Tensor>& grad_c_next, const Tensor& input,
                                      const Tensor& h, const Tensor& c,
                                      const std::vector<Tensor>& weights, const Tensor& gates,
                                      const Tensor& cells, bool need_input, bool need_states,
                                      bool need_weights) {
  const CpuLayer layer = make_cell_layer(input, h, c, weights);
  const int64_t rows = layer.shape.batch, hidden = layer.shape.hidden_size;
  const ScalarType dtype = layer.input.scalar_type();
  const Tensor saved_gates = checked(gates, "gates", {rows, kGates * hidden}, layer);
  const Tensor saved_cells = checked_cells(cells, {rows, hidden}, layer);
  Tensor grad_h_rows, grad_c_rows;
  const auto new_gradient = [&](bool wanted, int64_t columns) {
    return new_tensor(wanted ? Sizes{rows, columns} : Sizes{0}, dtype, layer.device);
  };
  const Tensor grad_input = new_gradient(need_input, layer.shape.input_size);
  const Tensor grad_h = new_gradient(need_states, hidden);
  const Tensor grad_c = new_gradient(need_states, hidden);
  std::vector<Tensor> grad_weights;
  if (need_weights) grad_weights = new_weight_gradients(layer);
  keep_freed_gradients(grad_weights);

  cpu::LayerBackwardArgs args;
  args.shape = layer.shape;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.x = layer.input.const_data_ptr();
  args.grad_x = element(grad_input, 0, 1);
  LayerBackwardDirection& direction = args.direction[0];
  direction.recurrence.weights = layer.direction_weights(0);
  direction.recurrence.c_0 = layer.c_0.const_data_ptr();
  direction.recurrence.gates = const_element(saved_gates, 0, 1);
  direction.recurrence.cells = const_element(saved_cells, 0, 1);
  direction.recurrence.grad_h_n = state_gradient(grad_h_next, "grad_h_next", layer, grad_h_rows);
  direction.recurrence.grad_c_n = state_gradient(grad_c_next, "grad_c_next", layer, grad_c_rows);
  direction.recurrence.grad_h_0 = element(grad_h, 0, 1);
  direction.recurrence.grad_c_0 = element(grad_c, 0, 1);
  direction.h_0 = layer.h_0.const_data_ptr();
  if (need_weights) set_weight_gradients(layer, grad_weights, 0, direction);
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  cpu::layer_backward(
      args,
      cpu::make_layer_backward_plan(layer.shape, layer.layout.data_rows(), layer.dtype, facts),
      parallel);
  return {grad_input, grad_h, grad_c, grad_weights};
}

}  // namespace lstm_fused
