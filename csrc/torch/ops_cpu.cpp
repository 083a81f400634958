// SPDX-License-Identifier: BSD-3-Clause
// The ops on CPU tensors: allocate, call the core, and leave the GEMMs over all T to torch's BLAS.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>
#include <utility>

#include "common/error.h"
#include "cpu/input_gradient.h"
#include "cpu/lstm_backward.h"
#include "cpu/lstm_forward.h"
#include "torch/layer.h"
#include "torch/torch_parallel.h"
#include "torch/weight_gradients.h"

namespace lstm_fused {
namespace {

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;
using GateGradientResult =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ScalarType accumulator_type(const Layer& layer) {
  return layer.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

// Pointer to element `offset`; null for tensors that are absent.
void* element(const Tensor& tensor, int64_t offset, int64_t size) {
  if (tensor.numel() == 0) return nullptr;
  return static_cast<char*>(tensor.mutable_data_ptr()) + offset * size;
}
const void* const_element(const Tensor& tensor, int64_t offset, int64_t size) {
  if (tensor.numel() == 0) return nullptr;
  return static_cast<const char*>(tensor.const_data_ptr()) + offset * size;
}

Sizes sequence_sizes(const Layer& layer, int64_t columns) {
  if (layer.layout.packed) return {layer.layout.data_rows(), columns};
  return {layer.shape.steps, layer.shape.batch, columns};
}

// A tensor in y's layout; zero where rows past their length are not written.
Tensor new_sequence(const Layer& layer, int64_t columns) {
  Tensor sequence = new_tensor(sequence_sizes(layer, columns), layer.input.scalar_type());
  if (layer.ragged) torch::stable::zero_(sequence);
  return sequence;
}

ForwardResult lstm_forward_cpu(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                               const std::vector<Tensor>& weights,
                               const std::optional<Tensor>& lengths,
                               const std::optional<Tensor>& batch_sizes,
                               const std::optional<Tensor>& reset_mask, bool save_for_backward,
                               bool return_cell_states) {
  const Layer layer = make_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const LstmShape& s = layer.shape;
  const int64_t rows = layer.sequence_rows();

  // Allocate the results.
  const ScalarType dtype = layer.input.scalar_type();
  Tensor y = new_sequence(layer, s.directions * s.output_size);
  Tensor h_n = new_tensor({s.directions, s.batch, s.output_size}, dtype);
  Tensor c_n = new_tensor({s.directions, s.batch, s.hidden_size}, dtype);
  Tensor cell_states = return_cell_states ? new_sequence(layer, s.directions * s.hidden_size)
                                          : new_tensor({0}, dtype);
  const bool save = save_for_backward;
  Tensor gates = save ? new_tensor({s.directions, rows, kGates * s.hidden_size}, dtype)
                      : new_tensor({0}, dtype);
  Tensor cells = save ? new_tensor({s.directions, rows, s.hidden_size}, accumulator_type(layer))
                      : new_tensor({0}, accumulator_type(layer));

  // Point the core at them.
  const int64_t storage = dtype_size(layer.dtype), accumulator = accumulator_size(layer.dtype);
  LstmForwardArgs args;
  args.shape = s;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.x = layer.input.const_data_ptr();
  args.reset_mask = layer.reset_flags();
  for (int d = 0; d < s.directions; ++d) {
    LstmForwardDirection& direction = args.direction[d];
    direction.weights = layer.direction_weights(d);
    direction.h_0 = const_element(layer.h_0, d * s.batch * s.output_size, storage);
    direction.c_0 = const_element(layer.c_0, d * s.batch * s.hidden_size, storage);
    direction.y = element(y, d * s.output_size, storage);
    direction.h_n = element(h_n, d * s.batch * s.output_size, storage);
    direction.c_n = element(c_n, d * s.batch * s.hidden_size, storage);
    direction.cell_states = element(cell_states, d * s.hidden_size, storage);
    direction.gates = element(gates, d * rows * kGates * s.hidden_size, storage);
    direction.cells = element(cells, d * rows * s.hidden_size, accumulator);
  }
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  cpu::lstm_forward(args, cpu::make_forward_plan(s, layer.dtype, facts), parallel);
  return {y, h_n, c_n, cell_states, gates, cells};
}

// What the recurrence's backward gives, and what the weights' gradients need beside it.
struct Backward {
  Layer layer;
  Tensor y, gates, cells;  // from the forward, checked
  GateGradients gradients;
  Tensor grad_input, grad_h_0, grad_c_0;
  cpu::Isa isa = cpu::Isa::kBaseline;
};

Backward run_backward(const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
                      const std::optional<Tensor>& grad_c_n,
                      const std::optional<Tensor>& grad_cell_states, Layer checked_layer,
                      const Tensor& y, const Tensor& gates, const Tensor& cells, bool need_input,
                      bool need_states, const cpu::Parallel& parallel) {
  Backward out;
  out.layer = std::move(checked_layer);
  const Layer& layer = out.layer;
  const LstmShape& s = layer.shape;
  const int64_t rows = layer.sequence_rows();
  const int64_t storage = dtype_size(layer.dtype), accumulator = accumulator_size(layer.dtype);

  const ScalarType dtype = layer.input.scalar_type();

  // Take the incoming gradients; an absent one is zero.
  const auto incoming = [&](const std::optional<Tensor>& grad, const char* name,
                            const Sizes& sizes) {
    return grad ? checked(*grad, name, sizes, layer) : new_tensor({0}, dtype);
  };
  const Sizes h_sizes = {s.directions, s.batch, s.output_size};
  const Sizes c_sizes = {s.directions, s.batch, s.hidden_size};
  const Tensor dy = incoming(grad_y, "grad_y", sequence_sizes(layer, s.directions * s.output_size));
  const Tensor dh_n = incoming(grad_h_n, "grad_h_n", h_sizes);
  const Tensor dc_n = incoming(grad_c_n, "grad_c_n", c_sizes);
  const Tensor dcell_states = incoming(grad_cell_states, "grad_cell_states",
                                       sequence_sizes(layer, s.directions * s.hidden_size));
  out.gates = checked(gates, "gates", {s.directions, rows, kGates * s.hidden_size}, layer);
  out.y = checked(y, "y", sequence_sizes(layer, s.directions * s.output_size), layer);
  LSTM_CHECK(Sizes({s.directions, rows, s.hidden_size}).equals(cells) && cells.is_cpu() &&
                 cells.scalar_type() == accumulator_type(layer),
             "cells must be those that lstm_forward returned");
  out.cells = to_contiguous(cells);

  // Allocate the results.
  const int64_t data_rows = layer.layout.data_rows();
  out.gradients.gates = new_tensor({s.directions, data_rows, kGates * s.hidden_size}, dtype);
  out.gradients.output =
      new_tensor({s.projection ? s.directions : 0, data_rows, s.output_size}, dtype);
  out.grad_h_0 = new_tensor(need_states ? h_sizes : Sizes{0}, dtype);
  out.grad_c_0 = new_tensor(need_states ? c_sizes : Sizes{0}, dtype);

  // Run the recurrence.
  LstmBackwardArgs args;
  args.shape = s;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.reset_mask = layer.reset_flags();
  for (int d = 0; d < s.directions; ++d) {
    LstmBackwardDirection& direction = args.direction[d];
    direction.weights = layer.direction_weights(d);
    direction.c_0 = const_element(layer.c_0, d * s.batch * s.hidden_size, storage);
    direction.gates = const_element(out.gates, d * rows * kGates * s.hidden_size, storage);
    direction.cells = const_element(out.cells, d * rows * s.hidden_size, accumulator);
    direction.grad_y = const_element(dy, d * s.output_size, storage);
    direction.grad_h_n = const_element(dh_n, d * s.batch * s.output_size, storage);
    direction.grad_c_n = const_element(dc_n, d * s.batch * s.hidden_size, storage);
    direction.grad_cell_states = const_element(dcell_states, d * s.hidden_size, storage);
    direction.grad_gates =
        element(out.gradients.gates, d * data_rows * kGates * s.hidden_size, storage);
    direction.grad_output = element(out.gradients.output, d * data_rows * s.output_size, storage);
    direction.grad_h_0 = element(out.grad_h_0, d * s.batch * s.output_size, storage);
    direction.grad_c_0 = element(out.grad_c_0, d * s.batch * s.hidden_size, storage);
  }
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  const cpu::LstmPlan plan = cpu::make_backward_plan(s, layer.dtype, facts);
  cpu::lstm_backward(args, plan, parallel);
  out.isa = plan.isa;

  // Turn the gate gradients into those of the input.
  out.grad_input = new_tensor({0}, dtype);
  if (need_input) {
    out.grad_input = new_sequence(layer, s.input_size);
    cpu::InputGradientArgs input_args = {s,  layer.dtype, &layer.layout,
                                         {}, {},          element(out.grad_input, 0, 1)};
    for (int d = 0; d < s.directions; ++d) {
      input_args.grad_gates[d] = args.direction[d].grad_gates;
      input_args.w_ih[d] = args.direction[d].weights.w_ih;
    }
    cpu::input_gradient(input_args, plan.isa, parallel);
  }
  return out;
}

BackwardResult lstm_backward_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, bool need_weights) {
  const cpu::Parallel parallel = torch_parallel();
  Backward b = run_backward(grad_y, grad_h_n, grad_c_n, grad_cell_states,
                            make_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask),
                            y, gates, cells, need_input, need_states, parallel);
  std::vector<Tensor> grad_weights;
  if (need_weights) {
    grad_weights = weight_gradients(b.layer, b.gradients, b.y, b.gates, b.cells, b.isa, parallel);
  }
  return {b.grad_input, b.grad_h_0, b.grad_c_0, grad_weights};
}

GateGradientResult lstm_gate_gradients_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells) {
  const cpu::Parallel parallel = torch_parallel();
  const Backward b = run_backward(
      grad_y, grad_h_n, grad_c_n, grad_cell_states,
      make_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask), y, gates, cells,
      /*need_input=*/true, /*need_states=*/true, parallel);
  const WeightOperands operands =
      weight_operands(b.layer, b.gradients, b.y, b.gates, b.cells, b.isa, parallel);
  return {b.grad_input,      b.grad_h_0,     b.grad_c_0,           operands.grad_gates,
          operands.previous, operands.input, operands.grad_output, operands.unprojected};
}

}  // namespace
}  // namespace lstm_fused

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) {
  m.impl("lstm_forward", TORCH_BOX(&lstm_fused::lstm_forward_cpu));
  m.impl("lstm_backward", TORCH_BOX(&lstm_fused::lstm_backward_cpu));
  m.impl("lstm_gate_gradients", TORCH_BOX(&lstm_fused::lstm_gate_gradients_cpu));
}
