// SPDX-License-Identifier: BSD-3-Clause
// The ops on CPU tensors: allocate, and call the core.
#include "common/error.h"
#include "cpu/gradients/layer_backward.h"
#include "cpu/gradients/sample_gradients.h"
#include "cpu/lstm_forward.h"
#include "torch/call.h"
#include "torch/cell_cpu.h"
#include "torch/guard.h"
#include "torch/layer.h"
#include "torch/layer_cpu.h"
#include "torch/options_cpu.h"
#include "torch/quantized_cpu.h"
#include "torch/registration.h"
#include "torch/stack_cpu.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {
namespace {

void run_forward(const CpuLayer& layer, const ForwardTensors& tensors) {
  const LstmForwardArgs args = forward_args(layer, tensors);
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
  const CpuLayer layer = make_cpu_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const ForwardTensors tensors(layer, save_for_backward, save_for_backward && !recompute,
                               return_cell_states);
  run_forward(layer, tensors);
  return tensors.result();
}

InferenceResult lstm_inference_cpu(const Tensor& input, const std::optional<Tensor>& h_0,
                                   const std::optional<Tensor>& c_0,
                                   const std::vector<Tensor>& weights, int64_t directions,
                                   int64_t num_layers) {
  LSTM_CHECK(input.dim() == 3, "input must have 3 dimensions, got ", input.dim());
  LSTM_CHECK(directions == 1 || directions == 2, "directions must be 1 or 2, got ", directions);
  LSTM_CHECK(num_layers >= 1, "num_layers must be at least 1, got ", num_layers);
  if (num_layers > 1) return lstm_stack_cpu(input, h_0, c_0, weights, directions, num_layers);
  LSTM_CHECK(weights.size() >= 2 && weights[1].dim() == 2, "weights must begin with w_ih and w_hh");
  const int64_t hidden = weights[1].size(0) / kGates, output = weights[1].size(1);
  const int64_t rows = input.size(1);
  const Tensor h = h_0 ? *h_0 : zero_state(input, directions, rows, output);
  const bool shares_zeros = !h_0 && !c_0 && output == hidden;
  const auto initial_cells = [&] {
    return c_0 ? *c_0 : zero_state(input, directions, rows, hidden);
  };
  const Tensor c = shares_zeros ? h : initial_cells();
  const CpuLayer layer = make_cpu_layer(input, h, c, weights, {}, {}, {});
  LSTM_CHECK(layer.shape.directions == directions, "h_0 must hold ", directions,
             " directions, got ", layer.shape.directions);
  const ForwardTensors tensors(layer, /*save_cells=*/false, /*save_gates=*/false,
                               /*return_cell_states=*/false);
  run_forward(layer, tensors);
  return {tensors.y, tensors.h_n, tensors.c_n};
}

cpu::LayerBackwardPlan backward_plan(const CpuLayer& layer, const cpu::Parallel& parallel) {
  return cpu::make_layer_backward_plan(layer.shape, layer.layout.data_rows(), layer.dtype,
                                       cpu::cpu_facts(parallel.threads));
}

BackwardResult lstm_backward_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, bool need_weights) {
  const CpuLayer layer = make_cpu_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, {need_input, need_states, need_weights, {}});
  const cpu::Parallel parallel = torch_parallel();
  cpu::layer_backward(backward_args(layer, tensors), backward_plan(layer, parallel), parallel);
  return tensors.result();
}

BackwardResult lstm_sample_gradients_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, int64_t samples) {
  const CpuLayer layer = make_cpu_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  check_samples(layer.shape, samples);
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, {need_input, need_states, /*weights=*/true, samples});
  const cpu::Parallel parallel = torch_parallel();
  cpu::sample_gradients(backward_args(layer, tensors), samples, backward_plan(layer, parallel),
                        parallel);
  return tensors.result();
}

}  // namespace

const Kernel kCpuKernels[] = {
    {"lstm_forward", TORCH_BOX(&Guarded<&lstm_forward_cpu>::call)},
    {"lstm_inference", TORCH_BOX(&Guarded<&lstm_inference_cpu>::call)},
    {"lstm_backward", TORCH_BOX(&Guarded<&lstm_backward_cpu>::call)},
    {"lstm_sample_gradients", TORCH_BOX(&Guarded<&lstm_sample_gradients_cpu>::call)},
    {"lstm_options_forward", TORCH_BOX(&Guarded<&lstm_options_forward_cpu>::call)},
    {"lstm_options_backward", TORCH_BOX(&Guarded<&lstm_options_backward_cpu>::call)},
    {"lstm_cell", TORCH_BOX(&Guarded<&lstm_cell_cpu>::call)},
    {"lstm_cell_backward", TORCH_BOX(&Guarded<&lstm_cell_backward_cpu>::call)},
    {"lstm_pack", TORCH_BOX(&Guarded<&lstm_pack_cpu>::call)},
    {"lstm_unpack", TORCH_BOX(&Guarded<&lstm_unpack_cpu>::call)},
    {"lstm_quantized", TORCH_BOX(&Guarded<&lstm_quantized_cpu>::call)},
    {"lstm_quantized_cell", TORCH_BOX(&Guarded<&lstm_quantized_cell_cpu>::call)},
    {nullptr, nullptr},
};

}  // namespace lstm_fused
