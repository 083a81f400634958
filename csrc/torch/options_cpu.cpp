// SPDX-License-Identifier: BSD-3-Clause
#include "torch/options_cpu.h"

#include "cpu/lstm_forward.h"
#include "torch/layer_cpu.h"
#include "torch/torch_parallel.h"

namespace lstm_fused {

OptionForwardResult lstm_options_forward_cpu(
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, bool save_for_backward, bool return_cell_states, bool recompute) {
  const CpuLayer layer = make_cpu_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const OptionTensors options =
      check_options(layer, peephole, h_mask, keep_c, keep_h, reset_h, reset_c, gains, cell_norm,
                    {coupled_gates, cell_clip, zoneout_c, zoneout_h});
  const ForwardTensors tensors(layer, save_for_backward, save_for_backward && !recompute,
                               return_cell_states);
  LstmForwardArgs args = forward_args(layer, tensors);
  args.options = &options.options;
  const NormTensors norms = new_norms(layer, options.gains && save_for_backward && !recompute);
  clear_saved_rows(layer, norms.normalised);
  clear_saved_rows(layer, norms.scales);
  for (int d = 0; d < layer.shape.directions; ++d) {
    args.direction[d].options = options.direction(layer, d);
    args.direction[d].norms = norms.direction(layer, d);
  }
  const cpu::Parallel parallel = torch_parallel();
  const cpu::CpuFacts facts = cpu::cpu_facts(parallel.threads);
  const cpu::CellKind cell = options.gains ? cpu::CellKind::kNorms : cpu::CellKind::kOptions;
  cpu::lstm_forward(args, cpu::make_forward_plan(layer.shape, layer.dtype, facts, cell), parallel);
  return std::tuple_cat(tensors.result(), std::make_tuple(norms.normalised, norms.scales));
}

OptionBackwardResult lstm_options_backward_cpu(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, const Tensor& y, const Tensor& gates, const Tensor& cells,
    const Tensor& normalised, const Tensor& scales, bool need_input, bool need_states,
    bool need_weights, bool need_options) {
  const CpuLayer layer = make_cpu_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const OptionTensors options =
      check_options(layer, peephole, h_mask, keep_c, keep_h, reset_h, reset_c, gains, cell_norm,
                    {coupled_gates, cell_clip, zoneout_c, zoneout_h});
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, {need_input, need_states, need_weights, {}});
  check_saved_gates(tensors);
  const NormTensors norms = check_norms(layer, options, normalised, scales);
  const OptionGradients grads(layer, options, need_options);

  cpu::LayerBackwardArgs args = backward_args(layer, tensors);
  args.options = &options.options;
  for (int d = 0; d < layer.shape.directions; ++d) {
    LstmBackwardDirection& recurrence = args.direction[d].recurrence;
    recurrence.options = options.direction(layer, d);
    recurrence.norms = norms.direction(layer, d);
    recurrence.grad_options = grads.direction(layer, d);
  }
  const cpu::Parallel parallel = torch_parallel();
  cpu::layer_backward(args,
                      cpu::make_layer_backward_plan(layer.shape, layer.layout.data_rows(),
                                                    layer.dtype, cpu::cpu_facts(parallel.threads)),
                      parallel);
  return grads.result(tensors.result());
}

}  // namespace lstm_fused
