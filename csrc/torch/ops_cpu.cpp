// SPDX-License-Identifier: BSD-3-Clause
// The ops on CPU tensors: allocate, and call the core.
#include <torch/csrc/stable/tensor.h>

#include "common/error.h"
#include "cpu/gradients/input_gradient.h"
#include "cpu/gradients/layer_backward.h"
#include "cpu/gradients/lstm_backward.h"
#include "cpu/gradients/rebuild_gates.h"
#include "cpu/lstm_forward.h"
#include "torch/call.h"
#include "torch/cell_cpu.h"
#include "torch/guard.h"
#include "torch/layer.h"
#include "torch/registration.h"
#include "torch/sample_gradients.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {
namespace {

void run_forward(const Layer& layer, const ForwardTensors& tensors) {
  LstmForwardArgs args;
  args.shape = layer.shape;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.x = layer.input.const_data_ptr();
  args.reset_mask = layer.reset_flags();
  for (int d = 0; d < layer.shape.directions; ++d) args.direction[d] = tensors.direction(layer, d);
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  cpu::lstm_forward(args, cpu::make_forward_plan(layer.shape, layer.dtype, facts), parallel);
}

ForwardResult lstm_forward_cpu(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                               const std::vector<Tensor>& weights,
                               const std::optional<Tensor>& lengths,
                               const std::optional<Tensor>& batch_sizes,
                               const std::optional<Tensor>& reset_mask, bool save_for_backward,
                               bool return_cell_states, bool recompute) {
  const Layer layer = make_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const ForwardTensors tensors(layer, save_for_backward, save_for_backward && !recompute,
                               return_cell_states);
  run_forward(layer, tensors);
  return tensors.result();
}

InferenceResult lstm_inference_cpu(const Tensor& input, const std::optional<Tensor>& h_0,
                                   const std::optional<Tensor>& c_0,
                                   const std::vector<Tensor>& weights, int64_t directions) {
  LSTM_CHECK(input.dim() == 3, "input must have 3 dimensions, got ", input.dim());
  LSTM_CHECK(directions == 1 || directions == 2, "directions must be 1 or 2, got ", directions);
  LSTM_CHECK(weights.size() >= 2 && weights[1].dim() == 2, "weights must begin with w_ih and w_hh");
  const int64_t hidden = weights[1].size(0) / kGates, output = weights[1].size(1);
  const int64_t rows = input.size(1);
  const Tensor h = h_0 ? *h_0 : zero_state(input, directions, rows, output);
  const bool needs_zeros = h_0 || output != hidden;
  const Tensor c = c_0 ? *c_0 : needs_zeros ? zero_state(input, directions, rows, hidden) : h;
  const Layer layer = make_layer(input, h, c, weights, {}, {}, {});
  LSTM_CHECK(layer.shape.directions == directions, "h_0 must hold ", directions,
             " directions, got ", layer.shape.directions);
  const ForwardTensors tensors(layer, /*save_cells=*/false, /*save_gates=*/false,
                               /*return_cell_states=*/false);
  run_forward(layer, tensors);
  return {tensors.y, tensors.h_n, tensors.c_n};
}

// Makes the gates that the forward did not save.
void rebuild_gates(const Layer& layer, const BackwardTensors& tensors, const cpu::CpuFacts& facts,
                   const cpu::Parallel& parallel) {
  LstmGatesArgs args;
  args.shape = layer.shape;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.x = layer.input.const_data_ptr();
  args.reset_mask = layer.reset_flags();
  for (int d = 0; d < layer.shape.directions; ++d) {
    args.direction[d] = tensors.gates_direction(layer, d);
  }
  cpu::rebuild_gates(args, cpu::make_forward_plan(layer.shape, layer.dtype, facts), parallel);
}

Tensor new_grad_input(const Layer& layer, bool wanted) {
  return wanted ? new_sequence(layer, layer.shape.input_size)
                : new_tensor({0}, layer.input.scalar_type(), layer.device);
}

// Runs the recurrence; gives the input's gradient, empty unless `need_input`.
Tensor run_backward(const Layer& layer, const BackwardTensors& tensors, const cpu::LstmPlan& plan,
                    bool need_input, const cpu::Parallel& parallel) {
  LstmBackwardArgs args;
  args.shape = layer.shape;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.reset_mask = layer.reset_flags();
  for (int d = 0; d < layer.shape.directions; ++d) args.direction[d] = tensors.direction(layer, d);
  cpu::lstm_backward(args, plan, parallel);

  const Tensor grad_input = new_grad_input(layer, need_input);
  if (!need_input) return grad_input;
  cpu::InputGradientArgs input_args = {layer.shape, layer.dtype, &layer.layout,
                                       {},          {},          element(grad_input, 0, 1)};
  for (int d = 0; d < layer.shape.directions; ++d) {
    input_args.grad_gates[d] = args.direction[d].grad_gates;
    input_args.w_ih[d] = args.direction[d].weights.w_ih;
  }
  cpu::input_gradient(input_args, plan.isa, parallel);
  return grad_input;
}

BackwardResult lstm_backward_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, bool need_weights) {
  const Layer layer = make_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, need_states, /*keep_gate_gradients=*/false);
  const Tensor grad_input = new_grad_input(layer, need_input);
  const std::vector<Tensor> grad_weights = new_weight_gradients(layer, need_weights);

  cpu::LayerBackwardArgs args;
  args.shape = layer.shape;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.x = layer.input.const_data_ptr();
  args.reset_mask = layer.reset_flags();
  if (need_input) args.grad_x = grad_input.mutable_data_ptr();
  for (int d = 0; d < layer.shape.directions; ++d) {
    args.direction[d] = tensors.layer_direction(layer, d, grad_weights);
  }
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  cpu::layer_backward(
      args,
      cpu::make_layer_backward_plan(layer.shape, layer.layout.data_rows(), layer.dtype, facts),
      parallel);
  return {grad_input, tensors.grad_h_0, tensors.grad_c_0, grad_weights};
}

BackwardResult lstm_sample_gradients_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, int64_t samples) {
  const Layer layer = make_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  LSTM_CHECK(samples >= 1 && layer.shape.batch % samples == 0,
             "samples must be at least 1 and divide the ", layer.shape.batch, " rows of h_0, got ",
             samples);
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, need_states, /*keep_gate_gradients=*/true);
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  const cpu::LstmPlan plan = cpu::make_backward_plan(layer.shape, layer.dtype, facts);
  if (tensors.rebuilds_gates) rebuild_gates(layer, tensors, facts, parallel);
  const Tensor unprojected = unprojected_output(layer, tensors, plan.isa, parallel);
  const Tensor grad_input = run_backward(layer, tensors, plan, need_input, parallel);
  return {grad_input, tensors.grad_h_0, tensors.grad_c_0,
          sample_gradients(layer, tensors, unprojected, samples, plan.isa, parallel)};
}

}  // namespace

const Kernel kCpuKernels[] = {
    {"lstm_forward", TORCH_BOX(&Guarded<&lstm_forward_cpu>::call)},
    {"lstm_inference", TORCH_BOX(&Guarded<&lstm_inference_cpu>::call)},
    {"lstm_backward", TORCH_BOX(&Guarded<&lstm_backward_cpu>::call)},
    {"lstm_sample_gradients", TORCH_BOX(&Guarded<&lstm_sample_gradients_cpu>::call)},
    {"lstm_cell", TORCH_BOX(&Guarded<&lstm_cell_cpu>::call)},
    {"lstm_cell_backward", TORCH_BOX(&Guarded<&lstm_cell_backward_cpu>::call)},
    {nullptr, nullptr},
};

}  // namespace lstm_fused
