// SPDX-License-Identifier: BSD-3-Clause
// The ops of a layer whose cell has options. Plans, allocates and launches as ops_cuda.cpp does.
#include "cuda/options/forward.h"
#include "cuda/options/layer_backward.h"
#include "torch/call_cuda.h"
#include "torch/ops_cuda.h"

namespace lstm_fused {

OptionForwardResult lstm_options_forward_cuda(
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const std::optional<Tensor>& peephole,
    const std::optional<Tensor>& h_mask, const std::optional<Tensor>& keep_c,
    const std::optional<Tensor>& keep_h, const std::optional<Tensor>& reset_h,
    const std::optional<Tensor>& reset_c, const std::optional<Tensor>& gains,
    const std::optional<Tensor>& cell_norm, bool coupled_gates, double cell_clip, double zoneout_c,
    double zoneout_h, bool save_for_backward, bool return_cell_states, bool recompute) {
  const CudaContext context = begin_call(device_of(input));
  const CudaLayer layer =
      make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const OptionTensors options =
      check_options(layer, peephole, h_mask, keep_c, keep_h, reset_h, reset_c, gains, cell_norm,
                    {coupled_gates, cell_clip, zoneout_c, zoneout_h});
  const bool saves_gates = save_for_backward && !recompute;
  const ForwardTensors tensors(layer, save_for_backward, saves_gates, return_cell_states);
  const NormTensors norms = new_norms(layer, options.gains && saves_gates);
  clear_saved(layer, tensors);
  if (layer.lengths) {
    fill_with_zeros(norms.normalised);
    fill_with_zeros(norms.scales);
  }

  cuda::OptionsForwardCall call;
  set_call(layer, tensors, context, call);
  call.options = options.options;
  for (int d = 0; d < layer.shape.directions; ++d) {
    call.direction[d].options = options.direction(layer, d);
    call.direction[d].norms = norms.direction(layer, d);
  }
  run_or_do_without_groups(layer, [&] {
    const cuda::LstmPlan plan = make_plan(context, layer,
                                          {Recurrence::kForward, save_for_backward, recompute,
                                           /*has_options=*/true, options.gains.has_value()});
    const Tensor workspace = new_workspace(plan.workspace_bytes, layer);
    call.workspace = workspace.mutable_data_ptr();
    cuda::options_forward(call, plan);
  });
  return std::tuple_cat(tensors.result(), std::make_tuple(norms.normalised, norms.scales));
}

OptionBackwardResult lstm_options_backward_cuda(
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
  const CudaContext context = begin_call(device_of(input));
  const CudaLayer layer =
      make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const OptionTensors options =
      check_options(layer, peephole, h_mask, keep_c, keep_h, reset_h, reset_c, gains, cell_norm,
                    {coupled_gates, cell_clip, zoneout_c, zoneout_h});
  const BackwardNeeds needs = {need_input, need_states, need_weights, {}};
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, with_states(needs));
  check_saved_gates(tensors);
  const NormTensors norms = check_norms(layer, options, normalised, scales);
  const OptionGradients grads(layer, options, need_options);

  cuda::OptionsBackwardCall call;
  set_call(layer, tensors, context, call);
  call.options = options.options;
  for (int d = 0; d < layer.shape.directions; ++d) {
    LstmBackwardDirection& recurrence = call.direction[d].recurrence;
    recurrence.options = options.direction(layer, d);
    recurrence.norms = norms.direction(layer, d);
    recurrence.grad_options = grads.direction(layer, d);
  }
  run_or_do_without_groups(layer, [&] {
    const cuda::LstmPlan plan =
        make_plan(context, layer,
                  {Recurrence::kBackward, /*training=*/true, /*recompute=*/false,
                   /*has_options=*/true, options.gains.has_value()});
    const Tensor workspace =
        new_workspace(cuda::options_backward_workspace_bytes(call, plan), layer);
    call.workspace = workspace.mutable_data_ptr();
    cuda::options_backward(call, plan);
  });
  return grads.result(needed_result(layer, tensors, needs));
}

}  // namespace lstm_fused
