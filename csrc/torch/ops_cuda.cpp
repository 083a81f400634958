// SPDX-License-Identifier: BSD-3-Clause
// Allocates by torch's allocator and launches on torch's current stream; waits for nothing, but for
// the check before a kernel's first use.
#include "torch/ops_cuda.h"

#include "cuda/gradients/layer_backward.h"
#include "cuda/gradients/sample_gradients.h"
#include "cuda/lstm_forward.h"
#include "torch/call_cuda.h"
#include "torch/layer.h"

namespace lstm_fused {
namespace {

BackwardResult run_backward(const CudaLayer& layer, const BackwardTensors& tensors,
                            const BackwardNeeds& needs) {
  const CudaContext context = begin_call(layer.device);
  cuda::LayerBackwardCall call;
  set_call(layer, tensors, context, call);
  const int64_t samples = needs.samples.value_or(1);
  run_or_do_without_groups(layer, [&] {
    const cuda::LstmPlan plan =
        make_plan(context, layer, {Recurrence::kBackward, /*training=*/true, /*recompute=*/false});
    const Tensor workspace =
        new_workspace(cuda::layer_backward_workspace_bytes(call, samples, plan), layer);
    call.workspace = workspace.mutable_data_ptr();
    if (needs.samples) {
      cuda::sample_gradients(call, samples, plan);
    } else {
      cuda::layer_backward(call, plan);
    }
  });
  return needed_result(layer, tensors, needs);
}

}  // namespace

ForwardResult lstm_forward_cuda(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                const std::vector<Tensor>& weights,
                                const std::optional<Tensor>& lengths,
                                const std::optional<Tensor>& batch_sizes,
                                const std::optional<Tensor>& reset_mask, bool save_for_backward,
                                bool return_cell_states, bool recompute) {
  const CudaContext context = begin_call(device_of(input));
  const CudaLayer layer =
      make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const ForwardTensors tensors(layer, save_for_backward, save_for_backward && !recompute,
                               return_cell_states);
  clear_saved(layer, tensors);

  cuda::LstmForwardCall call;
  set_call(layer, tensors, context, call);
  run_or_do_without_groups(layer, [&] {
    const cuda::LstmPlan plan =
        make_plan(context, layer, {Recurrence::kForward, save_for_backward, recompute});
    const Tensor workspace = new_workspace(plan.workspace_bytes, layer);
    call.workspace = workspace.mutable_data_ptr();
    cuda::lstm_forward(call, plan);
  });
  return tensors.result();
}

BackwardResult lstm_backward_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, bool need_weights) {
  const CudaLayer layer =
      make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const BackwardNeeds needs = {need_input, need_states, need_weights, {}};
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, with_states(needs));
  return run_backward(layer, tensors, needs);
}

BackwardResult lstm_sample_gradients_cuda(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_c_n, const std::optional<Tensor>& grad_cell_states,
    const Tensor& input, const Tensor& h_0, const Tensor& c_0, const std::vector<Tensor>& weights,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& batch_sizes,
    const std::optional<Tensor>& reset_mask, const Tensor& y, const Tensor& gates,
    const Tensor& cells, bool need_input, bool need_states, int64_t samples) {
  const CudaLayer layer =
      make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  check_samples(layer.shape, samples);
  const BackwardNeeds needs = {need_input, need_states, /*weights=*/true, samples};
  const BackwardTensors tensors(layer, grad_y, grad_h_n, grad_c_n, grad_cell_states, y, gates,
                                cells, with_states(needs));
  return run_backward(layer, tensors, needs);
}

}  // namespace lstm_fused
