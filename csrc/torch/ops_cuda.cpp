// SPDX-License-Identifier: BSD-3-Clause
// Allocates by torch's allocator and launches on torch's current stream; waits for nothing.
#include "torch/ops_cuda.h"

#include "common/error.h"
#include "cuda/blas.h"
#include "cuda/gradients/layer_backward.h"
#include "cuda/gradients/sample_gradients.h"
#include "cuda/lstm_forward.h"
#include "torch/cuda_context.h"
#include "torch/layer.h"

namespace lstm_fused {
namespace {

cuda::PlanSettings plan_settings(const CudaContext& context, bool training, bool recompute) {
  cuda::PlanSettings settings;
  settings.allow_tf32 = cuda::allows_tf32(context.blas_handle);
  settings.training = training;
  settings.recompute = recompute;
  settings.allow_persistent = cuda::allows_persistent();
  settings.facts = context.facts;
  return settings;
}

Tensor new_workspace(int64_t bytes, const CudaLayer& layer) {
  return new_tensor({bytes}, ScalarType::Byte, layer.device);
}

// The kernels leave what is saved for rows past a length unwritten: zeroes that, so that a backward
// of other lengths finds no garbage.
void clear_saved(const CudaLayer& layer, const ForwardTensors& tensors) {
  if (!layer.lengths) return;
  fill_with_zeros(tensors.gates);
  fill_with_zeros(tensors.cells);
}

// NOTE: the kernels always give the states' gradients, which cost next to nothing.
BackwardNeeds with_states(BackwardNeeds needs) {
  needs.states = true;
  return needs;
}

BackwardResult run_backward(const CudaLayer& layer, const BackwardTensors& tensors,
                            const BackwardNeeds& needs) {
  const CudaContext context = current_cuda_context(layer.device);
  const cuda::LstmPlan plan = cuda::make_backward_plan(
      layer.shape, layer.dtype, plan_settings(context, /*training=*/true, /*recompute=*/false));
  cuda::LayerBackwardCall call;
  call.shape = layer.shape;
  call.dtype = layer.dtype;
  call.lengths = layer.lengths_pointer();
  call.reset_mask = layer.reset_flags();
  call.x = layer.input.const_data_ptr();
  call.grad_x = element(tensors.grad_input, 0, 1);
  for (int d = 0; d < layer.shape.directions; ++d) call.direction[d] = tensors.direction(layer, d);
  const int64_t samples = needs.samples.value_or(1);
  const Tensor workspace =
      new_workspace(cuda::layer_backward_workspace_bytes(call, samples, plan), layer);
  call.workspace = workspace.mutable_data_ptr();
  call.blas_handle = context.blas_handle;
  call.stream = context.stream;
  if (needs.samples) {
    cuda::sample_gradients(call, samples, plan);
  } else {
    cuda::layer_backward(call, plan);
  }
  if (needs.states) return tensors.result();
  const auto none = [&] { return new_tensor({0}, layer.input.scalar_type(), layer.device); };
  return {tensors.grad_input, none(), none(), tensors.grad_weights};
}

}  // namespace

ForwardResult lstm_forward_cuda(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                const std::vector<Tensor>& weights,
                                const std::optional<Tensor>& lengths,
                                const std::optional<Tensor>& batch_sizes,
                                const std::optional<Tensor>& reset_mask, bool save_for_backward,
                                bool return_cell_states, bool recompute) {
  const CudaContext context = current_cuda_context(device_of(input));
  const CudaLayer layer =
      make_cuda_layer(input, h_0, c_0, weights, lengths, batch_sizes, reset_mask);
  const ForwardTensors tensors(layer, save_for_backward, save_for_backward && !recompute,
                               return_cell_states);
  clear_saved(layer, tensors);
  const cuda::LstmPlan plan = cuda::make_forward_plan(
      layer.shape, layer.dtype, plan_settings(context, save_for_backward, recompute));
  const Tensor workspace = new_workspace(plan.workspace_bytes, layer);

  cuda::LstmForwardCall call;
  call.shape = layer.shape;
  call.dtype = layer.dtype;
  call.lengths = layer.lengths_pointer();
  call.reset_mask = layer.reset_flags();
  call.x = layer.input.const_data_ptr();
  for (int d = 0; d < layer.shape.directions; ++d) call.direction[d] = tensors.direction(layer, d);
  call.workspace = workspace.mutable_data_ptr();
  call.blas_handle = context.blas_handle;
  call.stream = context.stream;
  cuda::lstm_forward(call, plan);
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
