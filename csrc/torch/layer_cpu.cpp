// SPDX-License-Identifier: BSD-3-Clause
#include "torch/layer_cpu.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/runtime/freed_memory.h"

namespace lstm_fused {

void clear_saved_rows(const CpuLayer& layer, const Tensor& saved) {
  if (!layer.is_ragged() || saved.numel() == 0) return;
  const int64_t data_rows = layer.layout.data_rows();
  Tensor all = saved;
  fill_with_zeros(torch::stable::narrow(all, 1, data_rows, layer.sequence_rows - data_rows));
}

void keep_freed_gradients(const std::vector<Tensor>& grad_weights) {
  int64_t bytes = 0;
  for (const Tensor& grad : grad_weights) bytes += grad.numel() * grad.element_size();
  cpu::keep_freed_memory(bytes);
}

LstmForwardArgs forward_args(const CpuLayer& layer, const ForwardTensors& tensors) {
  if (layer.is_ragged()) {
    fill_with_zeros(tensors.y);
    fill_with_zeros(tensors.cell_states);
  }
  clear_saved_rows(layer, tensors.gates);
  clear_saved_rows(layer, tensors.cells);
  LstmForwardArgs args;
  args.shape = layer.shape;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.x = layer.input.const_data_ptr();
  args.reset_mask = layer.reset_flags();
  for (int d = 0; d < layer.shape.directions; ++d) args.direction[d] = tensors.direction(layer, d);
  return args;
}

cpu::LayerBackwardArgs backward_args(const CpuLayer& layer, const BackwardTensors& tensors) {
  if (layer.is_ragged()) fill_with_zeros(tensors.grad_input);
  keep_freed_gradients(tensors.grad_weights);
  cpu::LayerBackwardArgs args;
  args.shape = layer.shape;
  args.dtype = layer.dtype;
  args.layout = &layer.layout;
  args.x = layer.input.const_data_ptr();
  args.reset_mask = layer.reset_flags();
  args.grad_x = element(tensors.grad_input, 0, 1);
  for (int d = 0; d < layer.shape.directions; ++d) args.direction[d] = tensors.direction(layer, d);
  return args;
}

}  // namespace lstm_fused
